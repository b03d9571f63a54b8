"""Baking: the constraints of a finished model become plain weights, or integers where they are quantized."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers torch.ops.quantized_decomposed
from torch.nn.utils import parametrize

from nutlet.errors import ExportError
from nutlet.graph.constraints import (
    WeightQuantizer,
    constrained_layers,
    constrained_weight,
    constraints,
    raw_weight,
    take_off,
)
from nutlet.graph.sites import Edited

__all__ = ["IntegerWeight", "finalize"]


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


def finalize(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose weights are stored as they are shipped; its outputs are the same.

    Raises:
        ExportError: a constraint after the quantizer took the weight of a layer off its grid.
    """
    baked = copy.deepcopy(model).eval()
    if isinstance(baked, Edited):
        return baked.rewrap(_bake(baked.take_off())).eval()
    return _bake(baked)


def _bake(baked: nn.Module) -> nn.Module:
    stored: dict[nn.Parameter, Tensor] = {}
    for name, layer in list(constrained_layers(baked)):
        quantizers = [c for c in constraints(layer) if isinstance(c, WeightQuantizer)]
        raw, weight = raw_weight(layer), constrained_weight(layer).clone()
        take_off(layer, bake=True)
        own = _codes(name, weight, quantizers[-1]) if quantizers else raw_weight(layer)
        # Layers that share a dense weight, and constrain it alike, share what is stored.
        shared = stored.setdefault(raw, own)
        if shared.dtype == own.dtype and torch.equal(shared, own):
            own = shared
        if quantizers:
            delattr(layer, "weight")
            layer.register_buffer("weight", own)
            restore = IntegerWeight(quantizers[-1].scale.clone(), quantizers[-1].axis)
            parametrize.register_parametrization(layer, "weight", restore, unsafe=True)
        else:
            layer.weight = own
    for parameter in baked.parameters():
        parameter.requires_grad_(False)
    return baked


def _codes(name: str, weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    codes = quantizer.codes(weight)
    if not torch.equal(IntegerWeight(quantizer.scale, quantizer.axis)(codes), weight):
        raise ExportError(
            f"the weights of {name} do not lie on the grid of their quantizer; expected every constraint after it to "
            "keep them there. Put Quantize last in the recipe"
        )
    return codes
