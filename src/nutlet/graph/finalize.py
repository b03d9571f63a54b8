"""Baking: the constraints of a finished model become plain weights, or integers where they are quantized."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers torch.ops.quantized_decomposed
from torch.nn.utils import parametrize

from nutlet.constraints import Binarizer, Quantizer, WeightQuantizer, formats
from nutlet.constraints.quantizer import along
from nutlet.constraints.stack import constrained_layers, constrained_weight, raw_weight, remove_constraints
from nutlet.graph.activation_quantizers import ActivationQuantizer
from nutlet.graph.detaching import Detaching
from nutlet.graph.fold import fold, foldable, without_norms
from nutlet.graph.kernels import WEIGHTED
from nutlet.graph.placement import moves_values, runs_on_integers
from nutlet.graph.record import Record
from nutlet.graph.trace import InstrumentedModel, trace

__all__ = ["IntegerWeight", "finalize", "stored_numbers"]


class IntegerWeight(nn.Module):
    """Turns stored int8 codes back into the weight, ``w = s q``, in the operation runtimes fuse."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, axis: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        # Not part of what is stored: a file holds one such zero for all layers of a width.
        self.register_buffer("zero_point", torch.zeros(len(scale), dtype=torch.int8), persistent=False)
        self.axis = axis

    def forward(self, codes: Tensor) -> Tensor:
        """Return the float weight of ``codes``."""
        weight: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
            codes, self.scale, self.zero_point, self.axis, -128, 127, torch.int8
        )
        return weight


class FewValuesWeight(nn.Module):
    """Turns what is stored back into the weight where no runtime has an operation for it: by plain arithmetic."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, stored: Tensor) -> Tensor:
        """Return the float weight of ``stored``."""
        return self.quantizer.restored(stored)


def finalize(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose weights are stored as they are shipped; its outputs are the same.

    Where a bias would not fit into the int32 of a runtime, the scale of its channel is widened.

    Batch norms that were kept for training are folded into layers that run on integers: their scales take the factor,
    their codes stay. That rounds sums differently in the last digit, which can move an activation by one code.
    """
    with Detaching():  # an earlier forward may have left results on the model
        baked = copy.deepcopy(model).eval()
    if not isinstance(baked, InstrumentedModel):
        return _bake(baked, {})
    edits = {
        site: edit.frozen() if isinstance(edit, ActivationQuantizer) else edit for site, edit in baked.by_site.items()
    }
    body, record = baked.unwrap(), baked.record
    pairs = [p for p in foldable(body, record) if runs_on_integers(body.get_submodule(p[0]))]
    if pairs:
        norms = {norm for _, norm in pairs}
        fold(body, pairs)
        # What was quantized after a norm is now quantized after its layer.
        moved = without_norms(record, norms)
        edits = {moved.get(site, site): edit for site, edit in edits.items()}
        record = trace(body, record.blank)
    return InstrumentedModel(_bake(body, _input_steps(record, edits)), record, edits).eval()


def _input_steps(record: Record, edits: Mapping[str, nn.Module]) -> dict[str, float]:
    """Return for each layer that takes nothing but quantized inputs their smallest scale, by the layer's name."""
    steps: dict[str, list[float]] = {}
    for site in record.sites.values():
        if site.op in WEIGHTED and site.inputs:
            edit = edits.get(_edited(record, site.inputs[0], edits))
            steps.setdefault(site.module, []).append(edit.step if isinstance(edit, ActivationQuantizer) else math.nan)
    return {name: min(found) for name, found in steps.items() if not any(map(math.isnan, found))}


def _edited(record: Record, name: str, edits: Mapping[str, nn.Module]) -> str:
    """Return the site nearest to ``name`` that an edit changes and after which values only move; ``name`` if none."""
    site = record.sites[name]
    while site.name not in edits and moves_values(site) and site.inputs:
        site = record.sites[site.inputs[0]]
    return site.name


def _bake(baked: nn.Module, input_steps: Mapping[str, float]) -> nn.Module:
    shared: dict[nn.Parameter, Tensor] = {}
    for name, layer in list(constrained_layers(baked)):
        quantizers = formats(layer)
        raw, weight = raw_weight(layer), constrained_weight(layer).clone()
        remove_constraints(layer, bake=True)
        own, restore = (
            (raw_weight(layer), None)
            if not quantizers
            else _stored(weight, quantizers[-1].with_zero(weight), integers=name in input_steps)
        )
        if restore is not None and isinstance(quantizers[-1], Binarizer):
            own = own.masked_fill(weight == 0, 0)  # a sign has no zero; a mask makes some
        if restore is not None and not torch.equal(restore(own), weight):
            # A constraint of somebody else, or a mask over a full codebook without zero: it has other values now.
            own, restore = raw_weight(layer), None
        if isinstance(restore, IntegerWeight):
            own, restore = _with_room_for_bias(layer, own, restore, input_steps[name])
        # Layers that share a dense weight, and constrain it alike, share what is stored.
        first = shared.setdefault(raw, own)
        if first.dtype == own.dtype and torch.equal(first, own):
            own = first
        if restore is None:
            layer.weight = own
            continue
        delattr(layer, "weight")
        layer.register_buffer("weight", own)
        parametrize.register_parametrization(layer, "weight", restore, unsafe=True)
    for parameter in baked.parameters():
        parameter.requires_grad_(False)
    return baked


def _stored(weight: Tensor, quantizer: Quantizer, *, integers: bool) -> tuple[Tensor, nn.Module]:
    """Return what a file keeps for ``weight``, and what makes a weight of that.

    Without integer activations there is nothing to fuse; runtimes that find the operation they fuse all the same round
    activations on their own, and give other answers.
    """
    if not (integers and quantizer.integer):
        return quantizer.stored(weight), FewValuesWeight(quantizer)
    assert isinstance(quantizer, (WeightQuantizer, Binarizer))
    codes, scale = quantizer.codes(weight), quantizer.step.detach()
    # Biases are rounded to the scale of the weights times that of the input: with codes of few bits, times a power of
    # two that kernels cannot tell from 8 bits, that scale is as fine as ever. Up to 64, no pair of codes saturates.
    power = 2 ** max(0, (64 // max(abs(quantizer.levels.start), 1)).bit_length() - 1)
    if len(scale) == 1:
        scale = scale.expand(weight.shape[quantizer.axis])
    return (codes * power).to(torch.int8), IntegerWeight((scale / power).contiguous(), quantizer.axis)


_MOST_OF_A_BIAS = 2.0**30
"""Largest bias in steps of both scales: half of what int32 holds, the other half is for the sum of the products."""


def _with_room_for_bias(
    layer: nn.Module, codes: Tensor, restore: IntegerWeight, input_step: float
) -> tuple[Tensor, IntegerWeight]:
    """Widen the scales of channels whose bias would not fit: runtimes round it to int32 in steps of both scales.

    There it saturates: the bias of a channel of (nearly) nothing but zeros would be lost. What the wider scale costs
    the weights is less than what float32 costs the sum with such a bias.

    Args:
        layer: whose bias it is.
        codes: int8, the stored weight.
        restore: makes the weight of ``codes``.
        input_step: smallest scale of the activations that the layer takes.
    """
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, Tensor):
        return codes, restore
    needed = (bias.detach().abs() / (input_step * _MOST_OF_A_BIAS)).to(restore.scale)
    # In a grouped transposed convolution a channel of the weight makes one output in each group.
    scale = torch.maximum(restore.scale, needed.view(-1, len(restore.scale)).amax(0))
    if torch.equal(scale, restore.scale):
        return codes, restore
    spread = (restore.scale / scale).view(along(restore.axis, codes.ndim))
    return torch.round(codes * spread).to(torch.int8), IntegerWeight(scale, restore.axis)


def stored_numbers(model: nn.Module) -> int:
    """Return how many numbers a file of ``model`` holds; what is shared counts once, counters of batches do not."""
    tensors = finalize(model).state_dict().values()
    return sum({t.data_ptr(): t.numel() for t in tensors if t.ndim or t.dtype != torch.int64}.values())
