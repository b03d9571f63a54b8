"""What all quantizers of weights have in common: a code for each weight, and the value of a code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import Constraint, constraints

__all__ = [
    "LEAST_SCALE",
    "Quantizer",
    "along",
    "fitting",
    "formats",
    "looked_up",
    "round_ste",
    "scale_grad",
    "shapes_only",
    "straight_through",
]

LEAST_SCALE = 1e-12
"""Scales stay above this: that of a channel of zeros would be zero."""


_FITTING = ContextVar("_FITTING", default=True)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Make quantizers, for the block, without fitting them: what is read from a file will overwrite their values."""
    token = _FITTING.set(False)
    try:
        yield
    finally:
        _FITTING.reset(token)


def fitting() -> bool:
    """Whether quantizers that are made are fitted to their weight, see :func:`shapes_only`."""
    return _FITTING.get()


class Quantizer(Constraint):
    """A weight on few values: ``forward(w) = values(codes(w))``, with the gradient passing straight through.

    What is coded once is coded alike ever after: ``codes(values(c)) == c``. So the constrained weight can take the
    place of the raw one, and codes with the tensors of the constraint are all that has to be stored.
    """

    @property
    def levels(self) -> range:
        """The codes that occur; their number says how many bits one takes."""
        raise NotImplementedError

    @property
    def integer(self) -> bool:
        """Whether values are codes of at most 8 bits times one scale per output channel, as integer kernels want."""
        return False

    def codes(self, weight: Tensor) -> Tensor:
        """Return the code of the value nearest to each weight, int16 of the same shape."""
        raise NotImplementedError

    def values(self, codes: Tensor) -> Tensor:
        """Return the float weight of ``codes``."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """Return the nearest representable weights."""
        return straight_through(weight, self.values(self.codes(weight)))

    def stored(self, weight: Tensor) -> Tensor:
        """Return what an exported file keeps for ``weight``: codes of one byte."""
        return self.codes(weight).to(torch.uint8 if self.levels.start >= 0 else torch.int8)

    def with_zero(self, weight: Tensor) -> Quantizer:
        """Return a format that stores ``weight`` as it is, with the zeros that a mask made, where one can be had."""
        return self

    def restored(self, stored: Tensor) -> Tensor:
        """Return the weight of what :meth:`stored` gave, in operations that export."""
        return self.values(stored)


def formats(layer: nn.Module) -> list[Quantizer]:
    """Return the formats that a weight is under, in the order they apply; the last has the last word on its values."""
    return [constraint for constraint in constraints(layer) if isinstance(constraint, Quantizer)]


def along(axis: int, ndim: int) -> list[int]:
    """Return the shape that spreads one number for each index of ``axis`` over a tensor of ``ndim`` axes.

    >>> along(1, 4)
    [1, -1, 1, 1]
    """
    return [-1 if d == axis else 1 for d in range(ndim)]


def looked_up(values: Tensor, indices: Tensor) -> Tensor:
    """Return ``values[indices]`` in the operation that every runtime has."""
    return values.index_select(0, indices.flatten().int()).view(indices.shape)


def straight_through(weight: Tensor, wanted: Tensor) -> Tensor:
    """Return ``wanted`` exactly; its gradient goes to ``weight`` as well (Bengio et al. 2013, arXiv:1308.3432)."""
    result: Tensor = _Through.apply(weight, wanted)  # type: ignore[no-untyped-call]
    return result


def round_ste(x: Tensor) -> Tensor:
    """Return ``x`` rounded half to even, with the gradient of ``x``."""
    return straight_through(x, x.detach().round())


def scale_grad(x: Tensor, share: float) -> Tensor:
    """Return ``x`` exactly, with ``share`` of its gradient: how Esser et al. 2020 (arXiv:1902.08153) slow a scale."""
    result: Tensor = _Slower.apply(x, share)  # type: ignore[no-untyped-call]
    return result


class _Through(torch.autograd.Function):
    """Adding and subtracting ``weight`` would have the same gradient, and a result that is off in the last digit."""

    @staticmethod
    def forward(context: Any, weight: Tensor, wanted: Tensor) -> Tensor:
        return wanted.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient


class _Slower(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, share: float) -> Tensor:
        context.share = share
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.share, None
