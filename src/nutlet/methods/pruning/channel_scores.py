"""How much whole output channels matter: by what they give, by what the loss says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import constrained_weight, output_axis
from nutlet.data.examples import Examples
from nutlet.graph.statistics import Loss, batch_gradients, channels_first, observe, weight_gradients
from nutlet.methods.pruning.criteria import SMALL_BATCH

__all__ = ["ChannelCriterion", "channel_scores"]

ChannelCriterion = Literal["magnitude", "activation", "taylor", "second-order"]


def channel_scores(
    model: nn.Module, names: Iterable[str], criterion: str, examples: Examples, loss: Loss | None = None
) -> dict[str, Tensor]:
    """Return one score, zero or more, for each output channel of each layer; without meaning for ``magnitude``.

    ``activation``
        The mean of ``|a|`` over examples and positions, a the output of the layer before any norm or non-linearity,
        divided by its mean over the channels: layers that are added differ in scale (Hu et al. 2016, arXiv:1607.03250,
        count the zeros of it).
    ``taylor``
        The mean over small batches of ``(sum of w g)^2`` over the weights that make the channel: the square of the
        first-order change of the loss without it (Molchanov et al. 2019, arXiv:1906.10771, equations 8 and 9).
    ``second-order``
        Half the sum of ``w^2 E[g^2]``: the second-order change of the loss with the diagonal of the Fisher information
        for the Hessian (Optimal Brain Damage, LeCun et al. 1989; Theis et al. 2018, arXiv:1801.05787).

    Args:
        model: not changed.
        names: layers of ``model``.
        criterion: one of the above.
        examples: what activations or gradients are taken from.
        loss: whose gradients; the cross entropy of logits by default.
    """
    layers = {name: model.get_submodule(name) for name in names}
    if criterion == "activation":
        return _sizes_of_outputs(model, layers, examples)
    if criterion == "second-order":
        squares = weight_gradients(model, layers, examples.batches(SMALL_BATCH), loss)
        return {
            n: _by_channel(layer, constrained_weight(layer).square() * squares[n][1]) / 2 for n, layer in layers.items()
        }
    scores = {name: torch.zeros(constrained_weight(layer).shape[output_axis(layer)]) for name, layer in layers.items()}
    count = -(-len(examples) // SMALL_BATCH)
    for gradients in batch_gradients(model, layers, examples.batches(SMALL_BATCH), loss):
        for name, gradient in gradients.items():
            change = _by_channel(layers[name], constrained_weight(layers[name]) * gradient)
            scores[name] += change.square() / count
    return scores


def _by_channel(layer: nn.Module, values: Tensor) -> Tensor:
    return values.movedim(output_axis(layer), 0).flatten(1).sum(1)


def _sizes_of_outputs(model: nn.Module, layers: dict[str, nn.Module], examples: Examples) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        sizes = channels_first(layer, output).abs().mean(1)
        # A transposed convolution holds its outputs within a group: all groups lose the same.
        sizes = sizes.view(-1, constrained_weight(layer).shape[output_axis(layer)]).sum(0)
        sums[name] = sums.get(name, 0) + sizes * len(output)

    observe(model, layers, note, examples.batches())
    return {name: total / total.mean().clamp_min(1e-12) for name, total in sums.items()}
