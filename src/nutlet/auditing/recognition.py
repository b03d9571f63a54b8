"""How a judge scores reconstructions: a classifier that the attacker never saw names them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nutlet.data import Examples
from nutlet.predict import evaluate

__all__ = ["recognised"]


def recognised(images: Tensor, judge: nn.Module) -> float:
    """Return the share of reconstructions, 0 to 1, to which the judge gives the class that they are of.

    Images that are all alike, such as the mean of all inputs, get one in as many as there are classes; so does noise,
    on average. The judge must not be the victim: any adversarial example of it would pass.

    Args:
        images: one for each class, in order, ``(classes, ...)``, normalised as the judge expects.
        judge: classifier trained on other examples than the victim, ``(B, ...) -> (B, classes)``.

    >>> recognised(torch.eye(3), nn.Identity()), recognised(torch.ones(4, 4), nn.Identity())
    (1.0, 0.25)
    """
    return evaluate(judge, Examples(images, torch.arange(len(images))))
