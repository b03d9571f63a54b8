"""GPTQ: weights rounded column by column, each error made up for by the columns that are left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from nutlet.graph.scope import weighted_layers
from nutlet.methods.base import Plan, register
from nutlet.methods.pruning.elimination import eliminate, inverse_factor
from nutlet.methods.quantization.integers import Bits, OnIntegers, grouped, usual_grid
from nutlet.methods.quantization.rounding import Rounding, rounding_plan
from nutlet.options import OpenShare, Range
from nutlet.training.context import Context

__all__ = ["GPTQ"]


@register
@dataclass(frozen=True, kw_only=True)
class GPTQ(OnIntegers):
    """Round weights one input after the other, and let the inputs that are left make up for each error.

    Minimises ``tr((W - W') H (W - W')^T)`` with the second moments H of the layer's inputs on the calibration examples
    as optimal brain surgery does, for all outputs at once (Frantar et al. 2022, arXiv:2210.17323); inputs with large
    moments go first. Masked weights stay zero.

    It takes the place of a ``Quantize(activations=False)``: the same grids, with one scale per group of weights and
    batch norms folded. Integer kernels take no groups; with ``group_size=0`` a :class:`Quantize` after it keeps these
    weights and adds integer activations. Before it, only one of more bits makes sense: what weights were before
    rounding is not kept.

    Args:
        bits: bits of a weight, 2 to 8.
        group_size: weights of a channel that share a scale; 0, and where it does not divide a channel's weights: all
            of them.
        damping: this share of the mean second moment is added to each, against noise in few examples.

    Raises:
        ConfigError: bits outside 2 to 8, a negative group size, or a damping that is not positive.

    >>> GPTQ(bits=3, group_size=0).to_dict()
    {'GPTQ': {'bits': 3, 'group_size': 0}}
    """

    effect: ClassVar[str] = "grid"
    use_when: ClassVar[str] = "weights of 2 to 4 bits without training, in seconds; large dense layers"

    bits: Bits = 4
    group_size: Annotated[int, Range(0, noun="a number of weights", note="as 32")] = 32
    damping: OpenShare = 0.01

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the grids, and the rounded weights as values."""
        grids, notes = {}, []
        for name, layer in weighted_layers(model, self).items():
            grids[name] = usual_grid(self.bits)
            if self.group_size:
                grids[name], told = grouped(name, layer, grids[name], self.group_size)
                notes += told
        plan = rounding_plan(self, model, context, grids, self._eliminated)
        return {**plan, "notes": notes + plan["notes"]}

    def _eliminated(self, rounding: Rounding) -> Tensor:
        order = rounding.moments.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
        columns = order[:, None].expand_as(rounding.weight)
        weight, zero, step, alive = (
            t.gather(2, columns) for t in (rounding.weight, rounding.zero, rounding.step, rounding.alive)
        )
        square = order[:, :, None].expand_as(rounding.moments)
        moments = rounding.moments.gather(1, square).gather(2, square.transpose(1, 2))

        def nearest(k: int, present: Tensor, spread: Tensor) -> Tensor:
            codes = rounding.clamp(((present[..., 0] - zero[..., k]) / step[..., k]).round())
            return torch.where(alive[..., k], zero[..., k] + codes * step[..., k], torch.zeros_like(codes))

        changed = eliminate(weight, inverse_factor(moments, self.damping), nearest)
        codes = rounding.clamp(((changed - zero) / step).round()).to(rounding.weight)
        return torch.empty_like(codes).scatter_(2, columns, codes)
