"""Post-training quantization of weights and activations to 8-bit integers."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from nutlet.errors import ConfigError
from nutlet.graph.activations import attach, calibrate
from nutlet.graph.constraints import WeightQuantizer, constrain, constrained_weight, output_axis, take_off
from nutlet.graph.fold import fold, foldable
from nutlet.graph.scope import weighted_layers
from nutlet.graph.sites import walk
from nutlet.method import Context, Method, Plan, register

__all__ = ["Quantize"]


@register
@dataclass(frozen=True, kw_only=True)
class Quantize(Method):
    """Store weights as signed 8-bit integers per channel, and compute with unsigned 8-bit activations.

    Batch norms are folded first (Jacob et al. 2018, arXiv:1712.05877). Activation ranges are the smallest and
    largest values seen on the calibration examples. Fine-tuning afterwards is quantization-aware training.

    Args:
        bits: bits of a weight; this version ships 8.
        activations: quantize activations as well; without, the file is as small but computes in floating point.
        portable: choose scales with which 16-bit intermediate sums cannot saturate, so that the file gives the same
            answers on x86 processors without VNNI; costs a little precision.

    Raises:
        ConfigError: another number of bits.

    >>> Quantize(activations=False).to_dict()
    {'Quantize': {'activations': False}}
    """

    effect: ClassVar[str] = "grid"
    when: ClassVar[str] = (
        "try it first: far smaller at once, no training; often faster (small layers only where the CPU has VNNI)"
    )

    bits: int = 8
    activations: bool = True
    portable: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits != 8:
            raise ConfigError(f"Quantize.bits is {self.bits}; expected 8, the width this version exports as integers")

    def decide(self, model: nn.Module, context: Context) -> Plan:
        """Return what is folded, which weights become integers, and the ranges of the activations."""
        weights = list(weighted_layers(model, self))
        pairs = [pair for pair in foldable(model, walk(model, context.example)) if pair[0] in weights]
        plan: Plan = {
            "fold": [list(pair) for pair in pairs],
            "weights": weights,
            "portable": self.portable,
            "notes": [],
        }
        if self.activations:
            trial = Quantize._with_integer_weights(copy.deepcopy(model), plan)
            inputs = (x for x, _ in context.data.calibration.batches())
            plan["activations"] = calibrate(trial, walk(trial, context.example), inputs)
        untouched = [n for n, m in model.named_modules() if isinstance(m, (nn.RNNBase, nn.MultiheadAttention))]
        plan["notes"] += [f"{name}: its inner weights stay in floating point" for name in untouched]
        return plan

    def gentler(self) -> Quantize | None:
        """Return it with activations in floating point."""
        return replace(self, activations=False) if self.activations else None

    @staticmethod
    def execute(model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
        """Fold, put quantizers on the weights, and on the activations at their sites."""
        model = Quantize._with_integer_weights(model, plan)
        return attach(model, plan["activations"], example) if "activations" in plan else model

    @staticmethod
    def _with_integer_weights(model: nn.Module, plan: Plan) -> nn.Module:
        fold(model, plan["fold"])
        for name in plan["weights"]:
            layer = model.get_submodule(name)
            constrain(layer, [c for c in take_off(layer) if not isinstance(c, WeightQuantizer)])
            weight, axis = constrained_weight(layer), output_axis(layer)
            constrain(layer, [WeightQuantizer.fit(weight, axis, portable=plan["portable"])])
        return model
