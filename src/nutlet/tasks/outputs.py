"""What the outputs of a classifier are: logits, or probabilities that its last layer made of them.

Losses, temperatures and divergences are defined on logits. A model that ends in a softmax is trained on the logarithms
of its probabilities, which are logits of the same distribution; one that ends in a sigmoid on the log-odds.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from nutlet.errors import ModelError

__all__ = ["TWO_OUTPUTS", "OutputKind", "check_finite", "class_loss", "kind_of", "to_logits"]

OutputKind = Literal["logits", "log-probabilities", "probabilities", "independent probabilities"]
"""What a row of outputs holds. Independent probabilities are those of one sigmoid for each class."""

_TOLERANCE = 1e-3

TWO_OUTPUTS = """\
    class TwoOutputs(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, x):
            z = self.net(x).reshape(len(x), 1)
            return torch.cat([{low}, z], 1)
    model = TwoOutputs(model)"""
"""Python that makes a classifier of two classes of a model with one output ``z``; ``low`` is that of class 0."""


def kind_of(outputs: Tensor, last: str = "") -> OutputKind:
    """Return what the rows of ``outputs`` hold, told by their values.

    Args:
        outputs: ``(N, classes)`` on real inputs, the more the surer.
        last: plain name of the operation that made them. Values in [0, 1] alone do not tell a sigmoid: normalised
            features and a clamp have such too.

    >>> logits = torch.tensor([[1.0, -2.0, 0.5]])
    >>> [kind_of(f(logits)) for f in (lambda z: z, lambda z: z.softmax(1), lambda z: z.log_softmax(1))]
    ['logits', 'probabilities', 'log-probabilities']
    """
    if outputs.shape[1] < 2:
        return "logits"
    values = outputs.double()
    if bool((values >= 0).all()) and _are_one(values.sum(1)):
        return "probabilities"
    if bool((values <= 0).all()) and _are_one(values.exp().sum(1)):
        return "log-probabilities"
    if last in ("sigmoid", "hardsigmoid") and bool(((values >= 0) & (values <= 1)).all()):
        return "independent probabilities"
    return "logits"


def _are_one(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() < _TOLERANCE).all())


def to_logits(outputs: Tensor, kind: OutputKind) -> Tensor:
    """Return logits of the distribution that ``outputs`` stand for, of the same shape.

    Args:
        outputs: ``(B, classes)``.
        kind: what they hold. The logarithms of probabilities are logits: their softmax is the probabilities again.

    >>> p = torch.tensor([[0.2, 0.8]])
    >>> to_logits(p, "probabilities").softmax(1)
    tensor([[0.2000, 0.8000]])
    """
    limits = torch.finfo(outputs.dtype)
    if kind == "probabilities":
        return outputs.clamp_min(limits.tiny).log()
    if kind == "independent probabilities":
        return outputs.logit(eps=limits.eps)
    return outputs


def class_loss(outputs: Tensor, y: Tensor, kind: OutputKind = "logits", reduction: str = "mean") -> Tensor:
    """Return the cross entropy of the labels under the distribution of the outputs, in nats.

    Args:
        outputs: ``(B, classes)``.
        y: class indices ``(B,)``.
        kind: what the outputs hold.
        reduction: as for :func:`torch.nn.functional.cross_entropy`.
    """
    return F.cross_entropy(to_logits(outputs, kind), y, reduction=reduction)


def check_finite(name: str, outputs: npt.NDArray[np.floating], *, first: int = 0, total: int | None = None) -> None:
    """Raise ModelError where outputs ``(B, ...)`` hold NaN or plus infinity: their argmax would count as an answer.

    Args:
        name: of the model, for the message.
        outputs: of one batch, or of all examples.
        first: index of the first example of the batch.
        total: number of all examples, where these are a part.
    """
    broken = np.flatnonzero((np.isnan(outputs) | np.isposinf(outputs)).reshape(len(outputs), -1).any(1))
    if len(broken):
        among = f"{len(outputs):,}" if total in (None, len(outputs)) else f"a batch of {len(outputs):,}"
        raise ModelError(
            f"{name} gives NaN or infinity for {len(broken):,} of {among} examples, the first at index "
            f"{first + broken[0]}; expected finite scores: look for a zero scale, a division by zero, or float16 "
            "overflow"
        )
