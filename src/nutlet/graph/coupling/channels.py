"""Which channels go together: what one walk through a model finds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.graph.coupling import layers, products  # noqa: F401  their rules
from nutlet.graph.coupling.follow import Follower
from nutlet.graph.coupling.numbers import compact, varying
from nutlet.graph.coupling.rules import RULES, unknown
from nutlet.tasks.inputs import Inputs

__all__ = ["Channels", "Family", "Place", "followed"]

Place = tuple[str, int]
"""A weight of a layer by name, and one of its dimensions."""


@dataclass(frozen=True, eq=False)
class Family:
    """Channels that lie at the same places of the same weights, so that any of them can go in the place of another.

    Args:
        root: where the first layer makes them.
        labels: of the channels, ``(channels,)``.
        places: all places where they lie.
        makers: those of the places where they are made.
    """

    root: Place
    labels: Tensor
    places: tuple[Place, ...]
    makers: tuple[Place, ...]


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a model: which number lies where, and which numbers are one.

    Args:
        axes: for each weight of a layer, by name: the labels along its dimensions.
        elements: for each other parameter or buffer that was reached: the labels of its elements.
        made: names of the weights that make channels, with the dimension along which they do.
        labels: for each number that was issued, the least one that it was joined with.
        fixed: why channels have to stay, by label.
        shapes: for each call, in order, the shapes of its tensors.
        element: for each number whether none that it was joined with is that of a channel.
        attention: for each module of attention whose heads go as a whole, the labels of its heads.
        parts: for each call that splits by given sizes, the labels of its results.
        decided: what rules decided by shapes, by call.
        reshaped: for each call that changes a shape, the labels of its result.
        heads: modules of attention whose heads go as a whole.
    """

    axes: dict[str, dict[int, Tensor]]
    elements: dict[str, Tensor]
    made: dict[str, int]
    labels: Tensor
    fixed: dict[int, str]
    shapes: list[list[tuple[int, ...]]]
    element: Tensor
    attention: dict[str, list[int]]
    parts: dict[int, list[Tensor]]
    decided: dict[int, Any]
    reshaped: dict[int, Tensor]
    heads: tuple[str, ...]

    @cached_property
    def families(self) -> list[Family]:
        """All families, also of channels that have to stay, in the order in which their first layer runs."""
        places: dict[int, list[Place]] = {}
        for name, dims in self.axes.items():
            for dim, labels in dims.items():
                for label in dict.fromkeys(labels.tolist()):
                    places.setdefault(label, []).append((name, dim))
        found: dict[tuple[Place, ...], list[int]] = {}
        for label, where in places.items():
            if label > 0 and any(self.made.get(name) == dim for name, dim in where):
                found.setdefault(tuple(where), []).append(label)
        families = []
        for lying, channels in found.items():
            makers = tuple((name, dim) for name, dim in lying if self.made.get(name) == dim)
            families.append(Family(makers[0], torch.tensor(channels), lying, makers))
        return families

    def at(self, place: Place) -> Tensor:
        """Return the labels along a dimension of a weight."""
        return self.axes[place[0]][place[1]]

    def among(self, labels: set[int]) -> Tensor:
        """Return for each number, taken as a label, whether it is one of ``labels``: ``(count,)``."""
        among = torch.zeros(len(self.labels), dtype=torch.bool)
        among[list(labels)] = True
        return among

    def cuts(self, gone: set[int]) -> dict[str, list[tuple[int, Tensor]]]:
        """Return what stays of each parameter and buffer without some channels: dimensions and places, by name.

        Args:
            gone: labels of the channels.

        Raises:
            NoSliceError: what would go of a parameter is no whole slice of it.
        """
        lost = self.among(gone)
        found: dict[str, list[tuple[int, Tensor]]] = {}
        for name, dims in self.axes.items():
            found[name] = [(dim, (~lost[labels]).nonzero()[:, 0]) for dim, labels in dims.items() if lost[labels].any()]
        for name, labels in self.elements.items():
            away = lost[labels]
            if not away.any():
                continue
            slices = compact(away.long())
            if len(directions := varying(slices)) != 1:
                raise NoSliceError(name, set(labels[away].tolist()))
            (dim,) = directions
            found[name] = [(dim, (slices.flatten() == 0).nonzero()[:, 0])]
        return {name: cuts for name, cuts in found.items() if cuts}


class NoSliceError(Exception):
    """What would go of a parameter is no whole slice of it.

    Args:
        name: of the parameter.
        labels: of the channels that would go.
    """

    def __init__(self, name: str, labels: set[int]) -> None:
        super().__init__(f"what would go of {name} is no whole slice of it")
        self.labels = labels


def followed(model: nn.Module, example: Inputs, *, heads: bool = False) -> Channels:
    """Return the channels of a model.

    Args:
        model: without constraints; not changed.
        example: inputs, batch first, of which the first is used.
        heads: whether heads of attention go as a whole everywhere; otherwise only where the channels within a head
            cannot go (the scale of attention may follow from their number).
    """
    f = _followed(model, example, ())
    if attention := [path for path, reason in f.products.items() if heads or reason]:
        f = _followed(model, example, attention)
    labels = f.ledger.labels()
    channel = torch.zeros(len(labels), dtype=torch.bool)
    channel[labels[~f.ledger.element]] = True
    return Channels(
        axes={name: {dim: labels[numbers] for dim, numbers in dims.items()} for name, dims in f.axes.items()},
        elements={name: labels[numbers] for name, numbers in f.elements.items()},
        made=f.made,
        labels=labels,
        fixed=f.ledger.reasons(labels),
        shapes=f.shapes,
        element=~channel[labels],
        attention={path: list(dict.fromkeys(labels[numbers].tolist())) for path, numbers in f.attention.items()},
        parts={number: [labels[numbers] for numbers in parts] for number, parts in f.parts.items()},
        decided=f.decided,
        reshaped={number: labels[numbers] for number, numbers in f.reshaped.items()},
        heads=f.heads,
    )


def _followed(model: nn.Module, example: Inputs, heads: Collection[str]) -> Follower:
    f = Follower(model, RULES, unknown, heads=heads)
    f.walk(example[:1])
    return f
