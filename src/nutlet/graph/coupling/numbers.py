"""Numbers of channels: integers that lie beside the tensors of a forward pass and say which channel is where.

A number is issued for each channel that a layer makes, and for each element of a parameter that is no layer's weight.
Numbers that meet (``x + y``) are *joined*: their channels are coupled and can only be removed together; a label is the
least number of those joined (the representative of a union-find). A number whose channel has to stay is *fixed*, with
the reason. 0 is no channel and broadcasts against all: constants, and what is computed from all channels.

Numbers are kept compact: a dimension along which they do not vary has size 1.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

__all__ = ["NOTHING", "Ledger", "aligned", "compact", "first_along", "lines", "varying"]

Array = npt.NDArray[np.int64]
NOTHING = torch.zeros(1, dtype=torch.long)
"""The number of no channel."""


def compact(numbers: Tensor) -> Tensor:
    """Return ``numbers`` with size 1 in each dimension along which they do not vary.

    >>> compact(torch.tensor([[1, 2], [1, 2]]))
    tensor([[1, 2]])
    """
    for dim in range(numbers.ndim):
        if numbers.shape[dim] > 1:
            first = numbers.narrow(dim, 0, 1)
            if numbers.stride(dim) == 0 or bool((numbers == first).all()):
                numbers = first
    return numbers


def varying(numbers: Tensor) -> set[int]:
    """Return the dimensions along which compact numbers vary."""
    return {dim for dim, size in enumerate(numbers.shape) if size > 1}


def aligned(numbers: Tensor, ndim: int) -> Tensor:
    """Return ``numbers`` with as many dimensions as they broadcast to."""
    return numbers.reshape((1,) * (ndim - numbers.ndim) + tuple(numbers.shape))


class Ledger:
    """Which numbers there are, which were joined, and which are fixed for what reason."""

    def __init__(self) -> None:
        self.element = torch.zeros(1, dtype=torch.bool)
        """For each number whether it is that of an element of a parameter, not of a channel."""
        self._pairs: list[Array] = []
        self._fixed: list[tuple[Array, str]] = []

    @property
    def count(self) -> int:
        """How many numbers there are, 0 included."""
        return len(self.element)

    def issue(self, count: int, *, elements: bool = False) -> Tensor:
        """Return ``(count,)`` numbers that nothing has yet."""
        first = self.count
        self.element = torch.cat([self.element, torch.full((count,), elements)])
        return torch.arange(first, self.count)

    def only_elements(self, numbers: Tensor) -> bool:
        """Whether none of ``numbers`` is that of a channel."""
        return bool(self.element[numbers[numbers > 0]].all())

    def join(self, one: Tensor, other: Tensor) -> None:
        """Join the numbers at the same places of two tensors that broadcast together; 0 joins nothing."""
        pairs = torch.stack([one + 0 * other, other + 0 * one], -1).reshape(-1, 2)
        pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs > 0).all(1)]
        if len(pairs):
            self._pairs.append(np.unique(pairs.numpy(), axis=0))

    def fix(self, numbers: Tensor, reason: str) -> None:
        """Let the channels of these numbers stay."""
        found = np.unique(numbers.numpy())
        found = found[found > 0]
        if len(found):
            self._fixed.append((found, reason))

    def labels(self) -> Tensor:
        """Return for each number the least one that it is joined with, directly or through others: ``(count,)``."""
        pairs = np.concatenate(self._pairs) if self._pairs else np.zeros((0, 2), np.int64)
        edges = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), (self.count, self.count))
        _, component = connected_components(edges, directed=False)
        least = np.full(component.max() + 1, self.count, np.int64)
        np.minimum.at(least, component, np.arange(self.count))
        return torch.from_numpy(least[component])

    def reasons(self, labels: Tensor) -> dict[int, str]:
        """Return why channels have to stay, by label: the first reason that was found for each."""
        found: dict[int, str] = {}
        for numbers, reason in self._fixed:
            for label in labels[torch.from_numpy(numbers)].tolist():
                found.setdefault(label, reason)
        return found


def lines(numbers: Tensor) -> list[list[int]]:
    """Return the numbers along each dimension, where they lie first along the others."""
    dims = set(range(numbers.ndim))
    return [first_along(numbers, dims - {dim}).flatten().tolist() for dim in range(numbers.ndim)]


def first_along(numbers: Tensor, dims: Iterable[int]) -> Tensor:
    """Return the first of compact numbers along dimensions, with size 1 there."""
    for dim in dims:
        numbers = numbers.narrow(dim, 0, 1)
    return numbers
