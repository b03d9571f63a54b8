"""Which inputs are worth a query, by what the clone so far makes of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Strategy", "entropy", "k_center", "select"]

Strategy = Literal["uncertainty", "k-center", "mix"]


def entropy(p: Tensor) -> Tensor:
    """Return ``-sum_c p_c log p_c`` of each row, in nats.

    >>> entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor([0.0000, 0.6931])
    """
    each: Tensor = torch.special.entr(p)
    return each.sum(1)


def k_center(points: Tensor, centres: Tensor, count: int) -> Tensor:
    """Return the indices of ``count`` points, each the farthest from all centres and those taken before it.

    The greedy algorithm of Gonzalez 1985: the largest distance to a centre is at most twice the best possible.

    Args:
        points: ``(N, D)``.
        centres: ``(M, D)``; with none the first point is the first centre.
        count: at most N.

    >>> k_center(torch.tensor([[0.0], [1.0], [9.0], [10.0]]), torch.tensor([[0.0]]), 2)
    tensor([3, 1])
    """
    nearest = torch.full((len(points),), torch.inf)
    for part in torch.split(centres, 256):
        nearest = torch.minimum(nearest, torch.cdist(points, part).amin(1))
    taken = []
    for _ in range(count):
        index = int(nearest.argmax())
        taken.append(index)
        nearest = torch.minimum(nearest, (points - points[index]).norm(dim=1))
        nearest[index] = -1  # not again, even where all distances are 0
    return torch.tensor(taken, dtype=torch.long)


def select(strategy: Strategy, candidates: Tensor, centres: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` candidates to ask about next.

    Args:
        strategy: ``uncertainty`` takes those of largest entropy, ``k-center`` those that cover the others best, ``mix``
            those that cover best the four times ``count`` of largest entropy.
        candidates: the clone's probabilities for them, ``(N, classes)``.
        centres: the same for what was asked about already, ``(M, classes)``.
        count: at most N.
    """
    if strategy == "k-center":
        return k_center(candidates, centres, count)
    uncertain = entropy(candidates).argsort(descending=True, stable=True)
    if strategy == "uncertainty":
        return uncertain[:count]
    uncertain = uncertain[: 4 * count]
    return uncertain[k_center(candidates[uncertain], centres, count)]
