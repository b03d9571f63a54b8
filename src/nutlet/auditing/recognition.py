"""How a judge scores reconstructions: a classifier that the attacker never saw names them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nutlet.data.examples import Examples
from nutlet.tasks.predict import predict

__all__ = ["recognised"]


def recognised(images: Tensor, judge: nn.Module) -> Tensor:
    """Return which reconstructions the judge gives the class that they are of, ``(classes,)`` bool.

    Images that are all alike, such as the mean of all inputs, get one in as many as there are classes; so does noise,
    on average. The judge must not be the victim: any adversarial example of it would pass.

    Args:
        images: one for each class, in order, ``(classes, ...)``, normalised as the judge expects.
        judge: classifier trained with another seed than the victim, ``(B, ...) -> (B, classes)``.

    >>> recognised(torch.eye(3), nn.Identity()).tolist(), recognised(torch.ones(3, 3), nn.Identity()).tolist()
    ([True, True, True], [True, False, False])
    """
    order = torch.arange(len(images))
    outputs = predict(judge, Examples(images, order))
    # An image without numbers has no class.
    return (outputs.argmax(1) == order) & ~outputs.isnan().any(1)
