"""How much single weights matter: by their size, by what they are multiplied with, by what the loss says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor, nn

from nutlet.constraints.stack import constrained_weight
from nutlet.errors import ConfigError
from nutlet.functions import name_of
from nutlet.graph.statistics import WITH_ROWS, input_rows, observe, weight_gradients, without_rows
from nutlet.training.context import Context

__all__ = ["Criterion", "Own", "own_scores", "saliencies"]

Own = Callable[[nn.Module, Mapping[str, nn.Module], Context], Mapping[str, Tensor]]
"""A criterion of your own: given the model, the layers in question by name, and the context (whose calibration examples
and loss it may use), it returns how much each weight, ``(out, in, ...)`` like the weight, or each output channel,
``(channels,)``, of each layer matters; finite, and more is more. It must not change the model."""

Criterion = Literal["magnitude", "activation", "taylor"] | Own

SMALL_BATCH = 32
"""Examples to a gradient: their mean square over batches is what tells weights of a converged model apart."""


def saliencies(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    criterion: Criterion,
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
        criterion: one of the above, or a function, see :data:`Own`.
        context: whose calibration examples inputs and gradients are taken from, and whose loss.

    Returns:
        Tensors of the shapes of the weights, zero or more; a weight that is zero already matters nothing.
    """
    if callable(criterion):
        return own_scores(criterion, model, layers, context, lambda layer: constrained_weight(layer).shape), []
    weights = {name: constrained_weight(layer).abs() for name, layer in layers.items()}
    if criterion == "magnitude":
        return weights, []
    if criterion == "activation":
        factors = _input_norms(model, layers, context)
    else:
        gradients = weight_gradients(model, layers, context.calibration("gradients", SMALL_BATCH), context.loss)
        factors = {name: squares.sqrt() for name, (_, squares) in gradients.items() if squares.any()}
    notes = []
    for name in layers:
        if name not in factors:
            unseen = without_rows(layers[name]) if criterion == "activation" else "no gradient is seen there"
            notes.append(f"{name}: {unseen}, left alone")
    return {name: weights[name] * factor for name, factor in factors.items()}, notes


def own_scores(
    criterion: Own,
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    context: Context,
    shape: Callable[[nn.Module], tuple[int, ...]],
) -> dict[str, Tensor]:
    """Return what a criterion of the user's says of ``layers``, of which each has scores of ``shape(layer)``.

    Raises:
        ConfigError: a layer has no scores, or ones of another shape, or not finite.
    """
    found = criterion(model, layers, context)
    scores = {}
    for name, layer in layers.items():
        given = found.get(name) if isinstance(found, Mapping) else None
        expected = tuple(shape(layer))
        if not isinstance(given, Tensor) or tuple(given.shape) != expected or not bool(given.isfinite().all()):
            what = f"a tensor {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
            raise ConfigError(
                f"the criterion {name_of(criterion)} gave {what} for the layer {name}; expected finite scores of shape "
                f"{expected} for each layer that it was given: return {{name: scores}}"
            )
        scores[name] = given.detach().float()
    return scores


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
