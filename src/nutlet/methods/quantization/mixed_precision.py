"""Bits for each layer by what they cost it in accuracy."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from nutlet.constraints.stack import constrained_weight
from nutlet.errors import ConfigError
from nutlet.graph.activation_quantizers import ActivationGrid
from nutlet.graph.scope import weighted_layers
from nutlet.methods.base import Plan, register
from nutlet.methods.budget import choose
from nutlet.methods.quantization.integers import (
    Bits,
    OnIntegers,
    attach_quantizer,
    grid_for,
    integer_plan,
    usual_grid,
)
from nutlet.methods.sensitivity import divergence_from, reconstrained, sensitivities
from nutlet.training.context import Context

__all__ = ["MixedPrecision"]


@register
@dataclass(frozen=True, kw_only=True)
class MixedPrecision(OnIntegers):
    """Give each layer the bits that cost least, under a budget for the whole model.

    Each layer is quantized alone to each width, and how far the outputs move on the calibration examples is measured
    (KL divergence from those of the model before). Then, from the widest on, the narrowing with the least added
    divergence for each bit it saves is taken until the budget holds, as if divergences added up, along the lower convex
    hull of each layer (Shoham & Gersho 1988, doi:10.1109/29.90373; Dong et al. 2019, arXiv:1905.03696, choose likewise,
    by curvature). That costs layers x widths passes over the calibration examples.

    Args:
        bits: most bits of a weight on average over all layers in scope.
        choices: widths to choose from, 2 to 8.
        activations: quantize activations to 8 bits as well.

    Raises:
        ConfigError: a width outside 2 to 8, fewer than two of them, or a budget below the smallest.

    >>> MixedPrecision(bits=5).to_dict()
    {'MixedPrecision': {'bits': 5}}
    """

    effect: ClassVar[str] = "grid"
    use_when: ClassVar[str] = "one width for all layers loses too much, and a saved file of fewer than 8 bits is wanted"

    bits: float = 4.0
    choices: tuple[Bits, ...] = (2, 4, 8)
    activations: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.choices)) < 2 or not min(self.choices) <= self.bits <= max(self.choices):
            raise ConfigError(
                f"MixedPrecision.bits is {self.bits} with choices {self.choices}; expected two widths or more, and a "
                "budget between the smallest and the largest"
            )

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return what is folded, the grid of each weight, and the ranges of the activations."""
        scope = weighted_layers(model, self)
        widths = sorted(set(self.choices), reverse=True)
        # Layers of fewer values than the narrowest width has keep them, and take nothing of the budget.
        narrow = usual_grid(widths[-1])
        layers = {name: layer for name, layer in scope.items() if grid_for(name, layer, narrow)[0] == narrow}
        trial = copy.deepcopy(model)
        changes = {
            (name, width): reconstrained(trial, name, partial(attach_quantizer, grid=usual_grid(width)))
            for name in layers
            for width in widths
        }
        lost = sensitivities(changes, divergence_from(model, context), context.progress, "quantizing one layer alone")
        sizes = {name: constrained_weight(layer).numel() for name, layer in layers.items()}
        options = {name: [(size * width, lost[name, width]) for width in widths] for name, size in sizes.items()}
        narrowed, _ = choose(options, sum(sizes.values()) * (widths[0] - self.bits))
        chosen = {name: widths[narrowed.get(name, 0)] for name in layers}
        grids = dict.fromkeys(scope, usual_grid(widths[0])) | {
            name: usual_grid(width) for name, width in chosen.items()
        }
        activations = ActivationGrid(kernels=context.kernels) if self.activations else None
        plan = integer_plan(self, model, context, grids, activations=activations)
        if chosen:
            mean = sum(sizes[name] * width for name, width in chosen.items()) / sum(sizes.values())
            plan["notes"].append(f"{mean:.2f} bits on average: " + ", ".join(f"{n} {w}" for n, w in chosen.items()))
        return plan
