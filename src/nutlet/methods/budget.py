"""Spending a budget over layers: which way of writing each layer, so that all together lose least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Options", "Step", "choose", "descent", "share_out"]

Options = Sequence[tuple[float, float]]
"""Ways of writing one layer as ``(cost, loss)``, in any units that are the same for all layers; the first is the layer
as it is, and what costs as much as that or more is never chosen."""


@dataclass(frozen=True)
class Step:
    """One layer made cheaper, from one of its options to another.

    Args:
        layer: its name.
        option: index of the option after the step.
        saving: cost that the step saves.
        price: loss that it adds for each unit of cost saved.
    """

    layer: str
    option: int
    saving: float
    price: float


def descent(layers: Mapping[str, Options]) -> list[Step]:
    """Return the order in which layers are made cheaper: each step the one of least loss for what it saves.

    Only the lower convex hull of a layer's options is walked, so that the price never falls later on: every beginning
    of the list is then the best there is for its cost, of those with options on the hulls (Shoham & Gersho 1988,
    "Efficient bit allocation for an arbitrary set of quantizers", doi:10.1109/29.90373).

    >>> steps = descent({"easy": [(8, 0.0), (4, 0.1), (2, 0.5)], "hard": [(8, 0.0), (4, 2.0), (2, 2.4)]})
    >>> [(step.layer, step.option) for step in steps]
    [('easy', 1), ('easy', 2), ('hard', 2)]
    """
    steps = []
    for layer, options in layers.items():
        hull = [0]
        for option in sorted(range(1, len(options)), key=lambda k: (-options[k][0], options[k][1])):
            if options[option][0] >= options[hull[-1]][0]:
                continue
            while len(hull) > 1 and _price(options, *hull[-2:]) >= _price(options, hull[-2], option):
                hull.pop()
            hull.append(option)
        for before, after in pairwise(hull):
            saving = options[before][0] - options[after][0]
            steps.append(Step(layer, after, saving, _price(options, before, after)))
    return sorted(steps, key=lambda step: step.price)


def choose(layers: Mapping[str, Options], saving: float) -> tuple[dict[str, int], float]:
    """Return the option of each layer that changes, with as little loss as the descent finds, and what they save.

    Args:
        layers: as for :func:`descent`.
        saving: cost to save at least; if that cannot be reached, all that can be saved is.

    >>> choose({"easy": [(8, 0.0), (4, 0.1), (2, 0.5)], "hard": [(8, 0.0), (4, 2.0), (2, 2.4)]}, 5)
    ({'easy': 2}, 6.0)
    """
    chosen: dict[str, int] = {}
    saved = 0.0
    for step in descent(layers):
        if saved >= saving:
            break
        options, option = layers[step.layer], step.option
        before = options[chosen.get(step.layer, 0)][0]
        if saved + step.saving > saving:
            # The last step need not go all the way.
            enough = [k for k in range(1, len(options)) if options[k][0] <= before - (saving - saved)]
            option = min(enough, key=lambda k: options[k][1], default=option)
        saved += before - options[option][0]
        chosen[step.layer] = option
    return chosen, saved


def share_out(layers: Mapping[str, Options], saving: float) -> dict[str, float]:
    """Return how much of the cost of each layer goes where any amount can: losses are linear between options.

    Args:
        layers: as for :func:`descent`.
        saving: cost that goes in all; if there is less to save, all of that.

    >>> share_out({"easy": [(8, 0.0), (0, 1.0)], "hard": [(8, 0.0), (4, 2.0), (0, 8.0)]}, 10)
    {'easy': 8.0, 'hard': 2.0}
    """
    gone = dict.fromkeys(layers, 0.0)
    for step in descent(layers):
        part = min(step.saving, saving)
        gone[step.layer] += part
        saving -= part
    return gone


def _price(options: Options, before: int, after: int) -> float:
    (cost, loss), (less, more) = options[before], options[after]
    return (more - loss) / (cost - less)
