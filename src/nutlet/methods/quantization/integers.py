"""Planning integer grids, and carrying such plans out: what all methods that quantize to integers share."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from nutlet.constraints import QuantScheme, WeightQuantizer, formats
from nutlet.constraints.stack import constrained_weight, raw_weight, remove_constraints
from nutlet.errors import ConfigError
from nutlet.graph.activation_quantizers import ActivationGrid, attach, calibrate
from nutlet.graph.fold import fold, foldable
from nutlet.graph.placement import read_exactly, runs_on_integers
from nutlet.graph.scope import weighted_layers
from nutlet.graph.trace import Record, trace
from nutlet.graph.unfolding import norm_factor, scaled
from nutlet.methods.base import Method, Plan
from nutlet.methods.quantization.formats import put_format
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = [
    "OnIntegers",
    "attach_quantizer",
    "calibrated",
    "check_bits",
    "grid_for",
    "grouped",
    "integer_plan",
    "usual_grid",
    "with_integers",
]


@dataclass(frozen=True, kw_only=True)
class OnIntegers(Method):
    """Base of the methods whose plan puts layers on integer grids."""

    separable: ClassVar[tuple[str, ...]] = ("fold", "weights", "rounded")

    @property
    def folds_norms(self) -> bool:
        """Whether batch norms go into the layers before them, unless a method says otherwise."""
        return True

    def fitted(self, plan: Plan) -> list[str]:
        """Return the layers that get a grid."""
        return list(plan["weights"])

    def reference(self, model: nn.Module, plan: Plan, example: Inputs) -> nn.Module | None:
        """Return the model as it is, norms and all, with the weights whose codes were chosen."""
        expected, norms = copy.deepcopy(model), dict(plan["fold"])
        for name in plan.get("rounded", ()):
            layer = expected.get_submodule(name)
            weight = plan["values"][f"{name}.parametrizations.weight.original"].double()
            if name in norms:  # it was chosen for after the folding
                factor = norm_factor(expected.get_submodule(norms[name]))
                weight = scaled(layer, weight, torch.where(factor == 0, factor, 1 / factor))
            remove_constraints(layer, bake=True)
            with torch.no_grad():
                raw_weight(layer).copy_(weight)
        return expected

    def without(self, plan: Plan, gone: Collection[str]) -> Plan:
        """Return the plan with other folds and grids; activations have to be placed anew then."""
        rounded = plan.get("rounded", ())
        whole = {*gone, *(layer for layer, norm in plan["fold"] if norm in gone and layer in rounded)}
        left = super().without(plan, whole)
        if (left["fold"], left["weights"]) != (plan["fold"], plan["weights"]):
            left.pop("activations", None)
        return left

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Fold, put the weights on their grids, and quantizers on the activations at their sites."""
        model = with_integers(model, plan)
        return attach(model, plan["activations"], example) if "activations" in plan else model


def usual_grid(bits: int) -> QuantScheme:
    """Return the grid for so many bits, with one scale per channel: at 8 bits it covers every weight."""
    return QuantScheme(bits=bits, ranges="minmax" if bits == 8 else "mse")


def grouped(name: str, layer: nn.Module, grid: QuantScheme, size: int) -> tuple[QuantScheme, list[str]]:
    """Return ``grid`` by groups of ``size`` weights, or by channel where they do not divide one, and a note on that."""
    width = constrained_weight(layer).shape[1:].numel()
    if width % size == 0:
        return replace(grid, granularity="group", group_size=size), []
    note = f"{name}: groups of {size} do not divide {width}, one scale per channel"
    return replace(grid, granularity="channel"), [note]


def check_bits(owner: str, option: str, bits: int) -> None:
    """Raise ConfigError unless integers of ``bits`` bits are offered."""
    if not 2 <= bits <= 8:
        raise ConfigError(
            f"{owner}.{option} is {bits}; expected 2 to 8. Runtimes compute with 8-bit integers; fewer bits make the "
            "files smaller all the same. For one bit see Binarize, for 16 see HalfPrecision"
        )


def integer_plan(
    method: Method,
    model: nn.Module,
    context: Context,
    grids: dict[str, QuantScheme],
    *,
    activations: ActivationGrid | None = None,
) -> Plan:
    """Return the plan that puts the weights of layers on ``grids``, folds norms and calibrates activations.

    Args:
        method: whose scope it is; it says whether batch norms go into the layers before them.
        model: not changed.
        context: of the method.
        grids: for each layer in scope; those that have fewer values already keep them.
        activations: how they are quantized; None leaves them in floating point.
    """
    scope = weighted_layers(model, method)
    pairs = foldable(model, trace(model, context.example)) if method.folds_norms else []
    plan: Plan = {"fold": [list(pair) for pair in pairs if pair[0] in scope], "weights": {}, "notes": []}
    for name, layer in scope.items():
        grid, notes = grid_for(name, layer, grids[name])
        plan["notes"] += notes
        if grid is not None:
            plan["weights"][name] = grid.changes()
    packed = sorted({QuantScheme(**changes).bits for changes in plan["weights"].values()} - {8})
    if packed:
        widths = " and ".join(map(str, packed))
        plan["notes"].append(
            f"runtimes compute with 8-bit integers: a weight of {widths} bits takes its bits in a file, a byte when run"
        )
    if activations is not None:
        ranges, record, trial = calibrated(model, plan, context, activations)
        if ranges:
            plan["activations"] = ranges
        if exact := sorted(read_exactly(record)):
            plan["notes"].append(
                f"{', '.join(exact[:3])}{' and others' if len(exact) > 3 else ''}: the forward decides by these values "
                "(indices, conditions), they are not rounded"
            )
        plan["notes"] += [
            f"{name}: no integer kernel takes such weights, it computes in floating point"
            for name, layer in trial.named_modules()
            if name in scope and not runs_on_integers(layer)
        ]
    untouched = [n for n, m in model.named_modules() if isinstance(m, (nn.RNNBase, nn.MultiheadAttention))]
    plan["notes"] += [f"{name}: its inner weights stay in floating point" for name in untouched]
    return plan


def calibrated(
    model: nn.Module, plan: Plan, context: Context, activations: ActivationGrid
) -> tuple[dict[str, Any], Record, nn.Module]:
    """Return the ranges of activations behind the weights of a plan, by site, the walk that names them, and the copy.

    Args:
        model: not changed.
        plan: with ``fold`` and ``weights``.
        context: with the calibration examples, all of which are read once.
        activations: how they are quantized.
    """
    trial = with_integers(copy.deepcopy(model), plan)
    record = trace(trial, context.example)
    ranges = calibrate(trial, record, context.calibration("ranges of activations"), activations)
    return ranges, record, trial


def with_integers(model: nn.Module, plan: Plan) -> nn.Module:
    """Fold, and put the weights on their grids."""
    fold(model, plan["fold"])
    for name, changes in plan["weights"].items():
        attach_quantizer(model.get_submodule(name), QuantScheme(**changes))
    return model


def attach_quantizer(layer: nn.Module, grid: QuantScheme) -> None:
    """Put the weight of ``layer`` on a grid."""
    put_format(layer, partial(WeightQuantizer.fit, grid=grid), len(grid.levels), WeightQuantizer.order)


def grid_for(name: str, layer: nn.Module, grid: QuantScheme) -> tuple[QuantScheme | None, list[str]]:
    """Return the grid that a layer gets, if any, and why it is another one than was asked for."""
    kinds = formats(layer)
    levels = len(grid.levels)
    fewer = [c for c in kinds if len(c.levels) < levels]
    kept = [c for c in kinds if len(c.levels) <= levels - grid.learn and c.order >= WeightQuantizer.order]
    if kept:  # rounding to as many values once more would move weights that were rounded with care
        return None, [f"{name}: has {len(kept[-1].levels)} values already and keeps them"]
    if fewer:
        return grid.for_free_values(), [f"{name}: its {len(fewer[-1].levels)} values are put on 8 bits with one scale"]
    return grid, []
