"""How much single weights matter: by their size, by what they are multiplied with, by what the loss says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from nutlet.constraints.stack import constrained_weight
from nutlet.graph.statistics import WITH_ROWS, input_rows, observe, weight_gradients, without_rows
from nutlet.methods.pruning.own_scores import OwnCriterion, own_scores
from nutlet.training.context import Context

__all__ = ["Criterion", "saliencies"]

Criterion = Literal["magnitude", "activation", "taylor"] | OwnCriterion

SMALL_BATCH = 32
"""Examples to a gradient: their mean square over batches is what tells weights of a converged model apart."""


def saliencies(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    criterion: Criterion | str,
    context: Context,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return how much each weight of each layer matters, and sentences about the layers where that cannot be said.

    ``magnitude``
        ``|w|`` (Han et al. 2015, arXiv:1506.02626), no example is looked at.
    ``activation``
        ``|w| ||x||`` with the root mean square of the input that the weight is multiplied with (Wanda: Sun et al. 2023,
        arXiv:2306.11695).
    ``taylor``
        ``|w g|``, the first-order change of the loss, as root mean square over small batches (Molchanov et al. 2019,
        arXiv:1906.10771, equation 8: the squares are averaged, since the gradients of a trained model cancel out).

    Args:
        model: not changed.
        layers: layers of ``model`` by name.
        criterion: one of the above, or a function, see :data:`~nutlet.methods.pruning.own_scores.Scorer`.
        context: whose calibration examples inputs and gradients are taken from, and whose loss.

    Returns:
        Tensors of the shapes of the weights, zero or more; a weight that is zero already matters nothing.
    """
    weights = {name: constrained_weight(layer).abs() for name, layer in layers.items()}
    if criterion == "magnitude":
        return weights, []
    if criterion == "activation":
        factors = _input_norms(model, layers, context)
    elif criterion != "taylor":
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        return own_scores(criterion, model, layers, shapes, context), []
    else:
        gradients = weight_gradients(model, layers, context.calibration("gradients", SMALL_BATCH), context.loss)
        factors = {name: squares.sqrt() for name, (_, squares) in gradients.items() if squares.any()}
    notes = []
    for name in layers:
        if name not in factors:
            unseen = without_rows(layers[name]) if criterion == "activation" else "no gradient is seen there"
            notes.append(f"{name}: {unseen}, left alone")
    return {name: weights[name] * factor for name, factor in factors.items()}, notes


def _input_norms(model: nn.Module, layers: Mapping[str, nn.Module], context: Context) -> dict[str, Tensor]:
    """Return the root mean square of the input that each weight is multiplied with, of the shape of the weight.

    The diagonal of :func:`nutlet.graph.statistics.input_moments` without the rest of it, which grows with the square of
    the inputs.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        rows = input_rows(layer, x)
        sums[name] = sums.get(name, 0) + rows.double().square().sum(1)
        counts[name] = counts.get(name, 0) + rows.shape[1]

    seen = [name for name, layer in layers.items() if isinstance(layer, WITH_ROWS)]
    observe(model, seen, note, context.calibration("norms of inputs"))
    norms = {}
    for name, total in sums.items():
        weight = constrained_weight(layers[name])
        mean = (total / counts[name]).sqrt().to(weight.dtype)
        norms[name] = mean.repeat_interleave(len(weight) // len(mean), 0).view_as(weight)
    return norms
