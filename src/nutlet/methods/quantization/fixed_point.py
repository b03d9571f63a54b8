"""Fixed-point numbers: integers whose scales are powers of two."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import nn

from nutlet.graph.activation_quantizers import ActivationGrid
from nutlet.graph.scope import weighted_layers
from nutlet.methods.base import Plan, register
from nutlet.methods.quantization.integers import Bits, OnIntegers, integer_plan, usual_grid
from nutlet.training.context import Context

__all__ = ["FixedPoint"]


@register
@dataclass(frozen=True, kw_only=True)
class FixedPoint(OnIntegers):
    """Store weights, and compute activations, with scales that are powers of two (Lin et al. 2016, arXiv:1511.06393).

    A product with such a scale is a shift, for hardware without a multiplier to spare. Runtimes on CPUs gain nothing by
    it, and about a bit of precision is lost against :class:`Quantize`.

    Args:
        bits: bits of a weight, 2 to 8.
        granularity: what has one scale: the whole ``tensor`` or an output ``channel``.
        activations: quantize activations as well, to 8 bits.

    Raises:
        ConfigError: bits outside 2 to 8.

    >>> FixedPoint(bits=6).to_dict()
    {'FixedPoint': {'bits': 6}}
    """

    effect: ClassVar[str] = "grid"
    use_when: ClassVar[str] = "hardware that shifts instead of multiplying; elsewhere Quantize loses less"

    bits: Bits = 8
    granularity: Literal["tensor", "channel"] = "tensor"
    activations: bool = True

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return what is folded, the grid of each weight, and the ranges of the activations."""
        grid = replace(usual_grid(self.bits), granularity=self.granularity, power_of_two=True)
        activations = ActivationGrid(power_of_two=True, kernels=context.kernels) if self.activations else None
        return integer_plan(
            self, model, context, dict.fromkeys(weighted_layers(model, self), grid), activations=activations
        )
