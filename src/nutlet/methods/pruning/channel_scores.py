"""How much whole output channels matter: by what they give, by what the loss says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import constrained_weight, output_axis
from nutlet.graph.coupling.group import as_shares
from nutlet.graph.statistics import batch_gradients, channels_first, observe, weight_gradients
from nutlet.methods.pruning.criteria import SMALL_BATCH
from nutlet.methods.pruning.own_scores import OwnCriterion, Scorer, own_scores
from nutlet.training.context import Context

__all__ = ["ChannelCriterion", "channel_scores", "relative_to_left"]

ChannelCriterion = Literal["magnitude", "activation", "taylor", "second-order"] | OwnCriterion


def channel_scores(
    model: nn.Module, names: Iterable[str], criterion: str | Scorer, context: Context
) -> dict[str, Tensor]:
    """Return one score, zero or more, for each output channel of each layer; without meaning for ``magnitude``.

    ``activation``
        The mean of ``|a|`` over examples and positions, a the output of the layer before any norm or non-linearity, as
        share of all channels together: layers that are added differ in scale (Hu et al. 2016, arXiv:1607.03250, count
        the zeros of it).
    ``taylor``
        The mean over small batches of ``(sum of w g)^2`` over the weights that make the channel: the square of the
        first-order change of the loss without it (Molchanov et al. 2019, arXiv:1906.10771, equations 8 and 9).
    ``second-order``
        Half the sum of ``w^2 E[g^2]``: the second-order change of the loss with the diagonal of the Fisher information
        for the Hessian (Optimal Brain Damage, LeCun et al. 1989; Theis et al. 2018, arXiv:1801.05787).

    Args:
        model: not changed.
        names: layers of ``model``.
        criterion: one of the above, or a function, see :data:`~nutlet.methods.pruning.own_scores.Scorer`.
        context: whose calibration examples activations and gradients are taken from, and whose loss.
    """
    layers = {name: model.get_submodule(name) for name in names}
    if criterion == "activation":
        return _sizes_of_outputs(model, layers, context)
    if criterion not in ("taylor", "second-order"):
        shapes = {n: (constrained_weight(layer).shape[output_axis(layer)],) for n, layer in layers.items()}
        return own_scores(criterion, model, layers, shapes, context)
    batches = context.calibration("gradients", SMALL_BATCH)
    if criterion == "second-order":
        squares = weight_gradients(model, layers, batches, context.loss)
        return {
            n: _by_channel(layer, constrained_weight(layer).square() * squares[n][1]) / 2 for n, layer in layers.items()
        }
    scores = {name: torch.zeros(constrained_weight(layer).shape[output_axis(layer)]) for name, layer in layers.items()}
    count = -(-len(context.data.calibration) // SMALL_BATCH)
    for gradients in batch_gradients(model, layers, batches, context.loss):
        for name, gradient in gradients.items():
            change = _by_channel(layers[name], constrained_weight(layers[name]) * gradient)
            scores[name] += change.square() / count
    return scores


def _by_channel(layer: nn.Module, values: Tensor) -> Tensor:
    return values.movedim(output_axis(layer), 0).flatten(1).sum(1)


def _sizes_of_outputs(model: nn.Module, layers: dict[str, nn.Module], context: Context) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        sizes = channels_first(layer, output).abs().mean(1)
        # A transposed convolution holds its outputs within a group: all groups lose the same.
        sizes = sizes.view(-1, constrained_weight(layer).shape[output_axis(layer)]).sum(0)
        sums[name] = sums.get(name, 0) + sizes * len(output)

    observe(model, layers, note, context.calibration("sizes of outputs"))
    return {name: as_shares(total) for name, total in sums.items()}


def relative_to_left(score: Tensor) -> Tensor:
    """Return scores relative to what is left once all weaker ones are gone, times their sum; their order stays.

    ``s_c sum_k s_k / sum of all s_k >= s_c`` (LAMP: Lee et al. 2021, arXiv:2010.07611, equation 4, there of weights):
    where channels of many groups are ranked together, the fewer a group has left, the more each of them counts.

    >>> relative_to_left(torch.tensor([1.0, 2.0, 1.0])).tolist()
    [1.0, 4.0, 1.3333333730697632]
    """
    weakest = score.argsort(stable=True)
    left = score[weakest].flip(0).cumsum(0).flip(0).clamp_min(1e-12)
    return torch.zeros_like(score).index_copy_(0, weakest, score[weakest] / left * score.sum())
