"""Choosing ranks: how much of each layer is kept, by its own spectrum or within a budget for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Literal

import numpy as np
from torch import nn

from nutlet.constraints.stack import constrained_weight
from nutlet.methods.budget import Options
from nutlet.methods.low_rank.decompositions import Decomposed, Piece, Ranks, Shape, limits

__all__ = [
    "Call",
    "Choice",
    "Cost",
    "Written",
    "by_cost",
    "candidates",
    "cheapest",
    "costs",
    "portions",
    "spread",
]

Call = tuple[Shape, Shape]
"""Shapes of what a layer takes and gives, batch first."""

Cost = Literal["parameters", "macs"]

MOMENTS = 2**27
"""How many numbers the input moments may hold at a time (1 GiB)."""


@dataclass(frozen=True)
class Choice:
    """One way to write a layer.

    Args:
        ranks: of the decomposition; none for the layer as it is.
        error: what is lost of the squared norm of the weight.
        parameters: of its weights.
        macs: of one example.
    """

    ranks: Ranks
    error: float
    parameters: int
    macs: float

    def cost(self, what: Cost) -> float:
        """Return the parameters or the multiply-accumulates."""
        return self.parameters if what == "parameters" else self.macs


@dataclass(frozen=True)
class Written:
    """A layer taken apart, and how it can be written.

    Args:
        taken: its decomposition.
        norm: squared norm of its weight.
        choices: as it is, then all that is cheaper.
    """

    taken: Decomposed
    norm: float
    choices: list[Choice]


def costs(parts: Sequence[Piece], calls: Iterable[Call]) -> tuple[int, float]:
    """Return the parameters of a chain, and the multiply-accumulates of one example in these calls.

    Each layer of the chain has done its stride along the axes that it and those before it cover.

    >>> costs([Piece((4, 3, 5, 1), (0,)), Piece((8, 4, 1, 5), (1,))], [((2, 3, 16, 16), (2, 8, 8, 8))])
    (220, 17920.0)
    """
    work = 0.0
    for taken, given in calls:
        dense = len(parts[0].shape) == 2
        places = list(taken[1:-1] if dense else taken[2:])
        for part in parts:
            for axis in part.axes:
                places[axis] = given[2 + axis]
            work += prod(part.shape) * prod(places)
    return sum(prod(part.shape) for part in parts), work


def candidates(kind: str, shape: Shape) -> list[Ranks]:
    """Return the ranks to choose from: all of them; of the pairs of Tucker-2 those on a grid, and that a core can have.

    >>> candidates("svd", (2, 8)), candidates("tucker", (2, 4, 3))
    ([(1,), (2,)], [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (2, 4)])
    """
    if kind == "tucker":
        grids = [np.unique(np.linspace(1, limit, min(limit, 48)).round().astype(int)) for limit in limits(kind, shape)]
        kernel, pairs = prod(shape[2:]), product(*grids)
        return [(int(o), int(i)) for o, i in pairs if o <= i * kernel and i <= o * kernel]
    return [(rank,) for rank in range(1, limits(kind, shape)[0] + 1)]


def spread(ranks: Sequence[Ranks], count: int) -> list[Ranks]:
    """Return at most ``count`` of them, from a sixteenth of the way up to the last, in about equal ratios.

    >>> spread([(rank,) for rank in range(1, 161)], 5)
    [(10,), (20,), (40,), (80,), (160,)]
    """
    if not ranks:
        return []
    return [
        ranks[k - 1] for k in np.unique(np.geomspace(max(len(ranks) / 16, 1), len(ranks), count).round().astype(int))
    ]


def cheapest(choices: Iterable[Choice], error: float) -> Choice | None:
    """Return the choice of fewest parameters that loses no more than ``error``, or None.

    >>> cheapest([Choice((1,), 0.3, 10, 10), Choice((2,), 0.05, 20, 20), Choice((3,), 0.0, 30, 30)], 0.1)
    Choice(ranks=(2,), error=0.05, parameters=20, macs=20)
    """
    enough = [choice for choice in choices if choice.error <= error]
    return min(enough, key=lambda choice: (choice.parameters, choice.error), default=None)


def by_cost(layers: Mapping[str, Written], what: Cost) -> dict[str, Options]:
    """Return what the choices of each layer cost and lose, as a budget is spent on them."""
    return {name: [(choice.cost(what), choice.error) for choice in layer.choices] for name, layer in layers.items()}


def portions(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, nn.Module]]:
    """Yield the layers in portions whose input moments fit into memory."""
    portion: dict[str, nn.Module] = {}
    numbers = 0
    for name, layer in layers.items():
        more = constrained_weight(layer)[0].numel() ** 2
        if portion and numbers + more > MOMENTS:
            yield portion
            portion, numbers = {}, 0
        portion[name] = layer
        numbers += more
    yield portion
