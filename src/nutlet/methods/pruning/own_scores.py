"""A criterion of the user's own: a function that says how much each part of each layer matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from nutlet.errors import ConfigError, shown
from nutlet.functions import Named, find, name_of
from nutlet.training.context import Context

__all__ = ["OwnCriterion", "Scorer", "named", "own_scores"]

Scorer = Callable[[nn.Module, Mapping[str, nn.Module], Context], Mapping[str, Tensor]]
"""``(model, layers, context) -> scores``: for each of ``layers``, by its name in ``model``, how much its parts matter.

Scores are finite, zero or more, and what has the least goes first. They have the shape of what is pruned: of
``PruneWeights`` that of the weight; of ``PruneChannels`` ``(outputs,)``, summed over layers whose channels are coupled;
of ``PruneHeads``, whose layers are those that read the heads, ``(inputs,)``, summed over each head. The model must not
be changed; ``context`` has the calibration examples and the loss."""

OwnCriterion = Annotated[Scorer, Named("model, layers, context")]


def named(criterion: str | Scorer) -> str:
    """Return what a criterion is called in notes."""
    return criterion if isinstance(criterion, str) else name_of(criterion) or repr(criterion)


def own_scores(
    criterion: str | Scorer,
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    shapes: Mapping[str, tuple[int, ...]],
    context: Context,
) -> dict[str, Tensor]:
    """Return what the user's function says of ``layers``, checked.

    Args:
        criterion: the function, or the name of one that a recipe gave before it was imported.
        model: what ``layers`` belong to.
        layers: by name.
        shapes: of the scores that are expected, by name of the layer.
        context: passed on.

    Raises:
        ConfigError: the function is not there, or what it gives does not fit.
    """
    function = find(criterion) if isinstance(criterion, str) else criterion
    who = f"the criterion {named(criterion)}"
    if function is None:
        raise ConfigError(
            f"{who} is not there: its module is not imported, and no file may cause that; expected `import "
            f"{named(criterion).partition(':')[0]}` before the run (in the file of the model's factory, say), or the "
            "function itself"
        )
    given = function(model, layers, context)
    if not isinstance(given, Mapping):
        raise ConfigError(f"{who} returned {shown(given)}; expected a mapping of the name of each layer to its scores")
    scores = {}
    for name, shape in shapes.items():
        if name not in given:
            raise ConfigError(f"{who} gave no scores for {name}; expected some: `exclude` leaves a layer out")
        score = given[name]
        if not isinstance(score, Tensor) or tuple(score.shape) != tuple(shape):
            found = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else shown(score)
            raise ConfigError(f"{who} gave {found} for {name}; expected a tensor of shape {tuple(shape)}")
        score = score.detach().float()
        if not bool(torch.isfinite(score).all()) or bool((score < 0).any()):
            raise ConfigError(f"{who} gave scores for {name} that are negative, NaN or infinite; expected zero or more")
        scores[name] = score
    return scores
