"""Rounding weights so that the outputs of a layer stay, which is not to the nearest: what AdaRound and GPTQ share."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nutlet.constraints import QuantScheme, WeightQuantizer, formats
from nutlet.constraints.stack import constrained_weight, dense_weight, keep_mask, raw_weight
from nutlet.graph.fold import foldable
from nutlet.graph.modules import shared_parameters
from nutlet.graph.scope import weighted_layers
from nutlet.graph.statistics import WITH_ROWS, input_moments
from nutlet.graph.trace import trace
from nutlet.methods.base import Method, Plan
from nutlet.methods.quantization.integers import with_integers
from nutlet.training.context import Context

__all__ = ["Rounding", "rounding_plan"]


@dataclass(frozen=True)
class Rounding:
    """The weight of one layer, and the codes it may take: code c stands for ``zero + c * step``.

    Args:
        weight: ``(groups, m, n)`` before rounding, with zeros where it is masked.
        moments: ``(groups, n, n)`` mean of ``x x^T`` over the inputs of the layer, float32.
        zero: value of code 0, of the shape of the weight.
        step: distance of two codes, of the shape of the weight.
        levels: all codes.
        alive: of the shape of the weight; false where it is masked and stays zero.
    """

    weight: Tensor
    moments: Tensor
    zero: Tensor
    step: Tensor
    levels: range
    alive: Tensor

    def clamp(self, codes: Tensor) -> Tensor:
        """Return codes within the levels."""
        return codes.clamp(self.levels.start, self.levels.stop - 1)

    def values(self, codes: Tensor) -> Tensor:
        """Return the weights of codes, which need not be whole."""
        return (self.zero + codes * self.step).masked_fill(~self.alive, 0.0)

    def error(self, weight: Tensor) -> Tensor:
        """Return the mean squared error of each output, ``(groups, m)``: the diagonal of ``D H D^T``."""
        difference = self.weight - weight
        return ((difference @ self.moments) * difference).sum(-1)


Choose = Callable[[Rounding], Tensor]
"""Returns the codes of the weights, whole numbers."""


def rounding_plan(
    method: Method, model: nn.Module, context: Context, grids: dict[str, QuantScheme], choose: Choose
) -> Plan:
    """Return the plan that puts layers on grids, with weights that are rounded by ``choose``.

    No row of weights becomes worse than rounded to the nearest code, as far as the moments tell.

    Args:
        method: whose scope it is.
        model: not changed; layers that have as few values already keep them.
        context: of the method.
        grids: for each layer in scope.
        choose: rounds one layer.
    """
    scope = weighted_layers(model, method)
    kept = {}
    for name, layer in scope.items():
        # What its weights were before they came onto so few values is gone: there is nothing to round.
        if fewer := [c for c in formats(layer) if len(c.levels) <= len(grids[name].levels)]:
            kept[name] = f"{name}: has {len(fewer[-1].levels)} values already and keeps them"
    pairs = foldable(model, trace(model, context.example))
    plan: Plan = {
        "fold": [list(pair) for pair in pairs if pair[0] in scope and pair[0] not in kept],
        "weights": {name: grids[name].changes() for name in scope if name not in kept},
        "rounded": [],
        "values": {},
        "notes": list(kept.values()),
    }
    trial = with_integers(copy.deepcopy(model), plan)
    layers = {name: trial.get_submodule(name) for name in plan["weights"]}
    plan["notes"] += _unfit(trial, layers)
    ratios = []
    moments = input_moments(trial, layers, context.calibration("moments of inputs"))
    with context.progress.task(type(method).__name__, total=len(layers)) as task:
        for name, layer in layers.items():
            if name not in moments:
                plan["notes"].append(f"{name}: nobody calls it, rounded to the nearest")
                continue
            quantizer = formats(layer)[-1]
            assert isinstance(quantizer, WeightQuantizer)
            rounding = _rounding(layer, quantizer, moments.pop(name).float())
            nearest = constrained_weight(layer).view_as(rounding.weight)
            weight = rounding.values(choose(rounding))
            errors = rounding.error(nearest)
            weight = torch.where((rounding.error(weight) < errors)[..., None], weight, nearest)
            weight = _representable(quantizer, weight.view_as(layer.weight), nearest.view_as(layer.weight))  # type: ignore[arg-type]
            ratios.append(float(rounding.error(weight.view_as(nearest)).sum() / errors.sum().clamp_min(1e-30)))
            plan["rounded"].append(name)
            plan["values"][f"{name}.parametrizations.weight.original"] = weight
            task.advance()
    if ratios:
        mean = math.exp(sum(math.log(max(ratio, 1e-9)) for ratio in ratios) / len(ratios))
        plan["notes"].append(
            f"squared errors of layers' outputs on the calibration examples: {mean:.0%} of those of rounding to nearest"
        )
    else:
        plan["notes"].append("nothing rounded: no layer in scope has weights that could be")
    return plan


def _unfit(model: nn.Module, layers: dict[str, nn.Module]) -> list[str]:
    """Take the layers that cannot be rounded otherwise out of ``layers``; return a note on each."""
    shared, notes = shared_parameters(model), []
    for name, layer in list(layers.items()):
        reason = None
        if not isinstance(layer, WITH_ROWS):
            reason = f"a {type(layer).__name__.removeprefix('Parametrized')}"
        elif raw_weight(layer) in shared:
            reason = "another layer has the same weight"
        if reason:
            del layers[name]
            notes.append(f"{name}: {reason}, rounded to the nearest")
    return notes


def _rounding(layer: nn.Module, quantizer: WeightQuantizer, moments: Tensor) -> Rounding:
    weight = dense_weight(layer)
    codes = torch.zeros_like(weight, dtype=torch.int16)
    zero = quantizer.values(codes).detach()
    step = quantizer.values(codes + 1).detach() - zero
    shaped = (t.reshape(len(moments), -1, moments.shape[-1]) for t in (weight, zero, step, keep_mask(layer)))
    weight, zero, step, left = shaped
    return Rounding(weight, moments, zero, step, quantizer.levels, left)


def _representable(quantizer: WeightQuantizer, weight: Tensor, nearest: Tensor) -> Tensor:
    """Return ``weight`` exactly on the grid, channels whose neighbours could saturate rounded to the nearest."""
    with torch.no_grad():
        if quantizer.reduce_range:
            wider = copy.deepcopy(quantizer)
            wider.expand_range(weight)
            over = (wider.step > quantizer.step * (1 + 1e-6)).expand(len(weight))
            weight = torch.where(over.view(-1, *[1] * (weight.ndim - 1)), nearest, weight)
        kept = quantizer.values(quantizer.codes(weight)).detach()
    return kept.masked_fill(weight == 0, 0.0)
