"""How much of each layer goes, so that a share of everything does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor

from nutlet.methods.pruning.patterns import most

__all__ = ["LEVELS", "Distribution", "by_rank", "by_sensitivity", "erk_densities"]

Distribution = Literal["global", "uniform", "erk", "sensitivity"]

LEVELS = (0.25, 0.5, 0.75, 0.9, 0.97, 1.0)
"""Shares of a layer that are removed to measure how it takes it; at the last one unit stays."""


def by_rank(units: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
    """Return how many units each layer keeps where all are ranked together.

    >>> by_rank({"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([3.0, 2.0])}, 0.25)
    {'a': 1, 'b': 2}
    """
    everything = torch.cat(list(units.values()))
    kept = most(everything, len(everything) - round(len(everything) * sparsity))
    parts = torch.split(kept, [len(row) for row in units.values()])
    return {name: int(part.sum()) for name, part in zip(units, parts, strict=True)}


def erk_densities(shapes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
    """Return the share that each layer keeps: proportional to ``sum(shape) / prod(shape)``, at most 1.

    The Erdős-Rényi kernel (Evci et al. 2020, arXiv:1911.11134, section 3): large layers lose more.

    >>> densities = erk_densities({"small": (5, 5), "large": (50, 50)}, 0.8)
    >>> densities["small"], round(densities["large"], 3)
    (1.0, 0.192)
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / prod(shape) for name, shape in shapes.items()}
    full: set[str] = set()
    while True:
        left = sum(sizes.values()) * (1 - sparsity) - sum(sizes[name] for name in full)
        factor = left / max(sum(raw[name] * sizes[name] for name in raw.keys() - full), 1e-12)
        over = {name for name in raw.keys() - full if factor * raw[name] > 1}
        if not over:
            return {name: 1.0 if name in full else factor * raw[name] for name in raw}
        full |= over


def by_sensitivity(sizes: Mapping[str, int], sparsity: float, cost: Callable[[str, int], float]) -> dict[str, int]:
    """Return how many units each layer keeps, such that the costs of all together are least.

    The cost of a layer is measured at :data:`LEVELS`, alone, and taken as linear in between. What is cheapest for
    each unit goes first: the least of a sum of convex curves. A curve that is not convex is made so by giving stretches
    that get cheaper their mean slope.

    Args:
        sizes: units of each layer.
        sparsity: share of all units that goes.
        cost: of a layer alone with this many units left; called once for each layer and level.
    """
    stretches: list[tuple[float, str, float]] = []
    for name, size in sizes.items():
        shares, costs = [0.0], [0.0]
        for level in LEVELS:
            shares.append(level)
            costs.append(cost(name, max(1, round(size * (1 - level)))))
        stretches += [(slope / size, name, width * size) for slope, width in _convex(shares, costs)]
    gone = dict.fromkeys(sizes, 0.0)
    budget = sum(sizes.values()) * sparsity
    for _, name, width in sorted(stretches, key=lambda stretch: stretch[0]):
        taken = min(width, budget)
        gone[name] += taken
        budget -= taken
    return {name: size - round(gone[name]) for name, size in sizes.items()}


def _convex(places: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """Return slopes and widths of the largest convex curve below the points, from left to right.

    >>> _convex([0, 1, 2, 3], [0, 2, 2, 5])
    [(1.0, 2), (3.0, 1)]
    """
    hull: list[tuple[float, float]] = []
    for k in range(1, len(places)):
        width, rise = places[k] - places[k - 1], values[k] - values[k - 1]
        while hull and hull[-1][0] >= rise / width:
            slope, before = hull.pop()
            width, rise = width + before, rise + slope * before
        hull.append((rise / width, width))
    return hull
