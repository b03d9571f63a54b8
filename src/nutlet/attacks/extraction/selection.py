"""Which inputs are worth a query, by what the clone so far makes of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nutlet.tasks import CLASSIFICATION, Task

__all__ = ["Strategy", "entropy", "k_center", "select", "uncertainty"]

Strategy = Literal["uncertainty", "k-center", "mix"]


def entropy(p: Tensor) -> Tensor:
    """Return ``-sum_c p_c log p_c`` of each row, in nats.

    >>> entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor([0.0000, 0.6931])
    """
    each: Tensor = torch.special.entr(p)
    return each.sum(1)


def uncertainty(p: Tensor, task: Task) -> Tensor:
    """Return the mean entropy of the answers to each input, ``(N,)`` in nats.

    Args:
        p: probabilities ``(N, ...)``.
        task: what they are of: classes of which one is right, at each position, or labels that hold or not.
    """
    each: Tensor = torch.special.entr(p)
    each = each + torch.special.entr(1 - p) if task.class_dim is None else each.sum(task.class_dim)
    return each.reshape(len(p), -1).mean(1)


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


def select(strategy: Strategy, candidates: Tensor, centres: Tensor, count: int, task: Task = CLASSIFICATION) -> Tensor:
    """Return the indices of the ``count`` candidates to ask about next.

    Args:
        strategy: ``uncertainty`` takes those of largest entropy, ``k-center`` those that cover the others best, ``mix``
            those that cover best the four times ``count`` of largest entropy.
        candidates: the clone's probabilities for them, or its values where the task has none, ``(N, ...)``.
        centres: the same for what was asked about already, ``(M, ...)``.
        count: at most N.
        task: what they mean; one without probabilities takes ``k-center`` only.
    """
    points, centres = candidates.flatten(1), centres.flatten(1)
    if strategy == "k-center":
        return k_center(points, centres, count)
    uncertain = uncertainty(candidates, task).argsort(descending=True, stable=True)
    if strategy == "uncertainty":
        return uncertain[:count]
    uncertain = uncertain[: 4 * count]
    return uncertain[k_center(points[uncertain], centres, count)]
