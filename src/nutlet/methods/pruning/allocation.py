"""How much of each layer goes, so that a share of everything does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor

from nutlet.methods.budget import share_out
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


def by_sensitivity(sizes: Mapping[str, int], sparsity: float, losses: Mapping[str, Sequence[float]]) -> dict[str, int]:
    """Return how many units each layer keeps, such that the losses of all together are least.

    The loss of a layer is known at :data:`LEVELS`, alone, and taken as linear in between.

    Args:
        sizes: units of each layer.
        sparsity: share of all units that goes.
        losses: of each layer alone with each of the levels removed.

    >>> by_sensitivity({"easy": 100, "hard": 100}, 0.5, {"easy": [1.0] * 6, "hard": [9.0] * 6})
    {'easy': 0, 'hard': 100}
    """
    curves = {
        name: [(size, 0.0), *((size * (1 - level), loss) for level, loss in zip(LEVELS, losses[name], strict=True))]
        for name, size in sizes.items()
    }
    gone = share_out(curves, sum(sizes.values()) * sparsity)
    return {name: size - round(gone[name]) for name, size in sizes.items()}
