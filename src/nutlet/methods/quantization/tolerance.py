"""Which layers and activations integers are too coarse for: those stay in floating point."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import constrained_weight
from nutlet.graph.activation_quantizers import ActivationGrid, attach, with_scales
from nutlet.graph.comparison import plain, run
from nutlet.graph.fold import fold
from nutlet.graph.placement import place
from nutlet.graph.trace import InstrumentedModel, Record, trace
from nutlet.methods.base import Plan
from nutlet.methods.quantization.integers import calibrated, with_integers
from nutlet.methods.sensitivity import sensitivities
from nutlet.tasks.inputs import Inputs, NamedInputs, as_tensors
from nutlet.training.context import Context

__all__ = ["keep_sensitive_in_float"]

_INPUTS, _FEW = 16, 4
"""Inputs on which the outputs are compared, and on which the effects of single quantizers are."""
_UNSEEN = 2
"""What calibration has not seen may move by so many times the tolerance: some of their values are clipped."""


def keep_sensitive_in_float(
    model: nn.Module, plan: Plan, context: Context, tolerance: float, activations: ActivationGrid | None
) -> Plan:
    """Return ``plan`` without the layers and activations that move the outputs most, and a note on them.

    Where the outputs move by more than ``tolerance`` on calibration inputs, or by twice as much on validation
    inputs (values that calibration has not seen are clipped), all quantizers are ordered by how far each alone moves
    the outputs, and bisection finds how many of the first have to go for both to stay within ``tolerance``. It takes a
    forward for each quantizer, and a few more for the logarithm of their number.

    Args:
        model: before the step, without quantizers of activations.
        plan: with ``fold``, ``weights`` and perhaps ``activations``.
        context: of the method.
        tolerance: the largest relative L2 error of the outputs, against the model before the step.
        activations: how activations are quantized.
    """
    inputs = [part.batch(slice(0, _INPUTS))[0] for part in (context.data.calibration, context.data.validation)]
    expected = [run(model, x) for x in inputs]

    def moved(in_float: Collection[str]) -> list[float]:
        trial = _executed(model, _without(model, plan, in_float, context.example), context.example)
        return [_relative(run(trial, x), before) for x, before in zip(inputs, expected, strict=True)]

    def too_far(in_float: Collection[str]) -> bool:
        return max(moved(in_float)) > tolerance

    seen, unseen = moved(())
    if seen <= tolerance and unseen <= _UNSEEN * tolerance:
        return plan
    order = _by_effect(model, plan, _joined([x[:_FEW] for x in inputs]), context)
    few, enough = 0, 1
    while enough < len(order) and too_far(order[:enough]):
        few, enough = enough, 2 * enough
    between = range(few + 1, min(enough, len(order)))
    enough = few + 1 + bisect_left(between, True, key=lambda count: not too_far(order[:count]))
    in_float = order[:enough]
    held = _without(model, plan, in_float, context.example)
    if activations is not None and "activations" in held:
        # Ranges were measured behind weights some of which are no longer on their grids.
        ranges, _, _ = calibrated(model, held, context, activations)
        held["activations"] = with_scales({name: ranges[name] for name in held["activations"] if name in ranges})
    note = (
        f"{', '.join(in_float[:3])}{f' and {enough - 3} more' if enough > 3 else ''}: left in floating point, integers "
        f"are too coarse there (the outputs would move by {max(seen, unseen):.1%}; `tolerance` is {tolerance:.1%})"
    )
    return {**held, "notes": [*plan["notes"], note]}


def _executed(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
    trial = with_integers(copy.deepcopy(model), plan)
    return attach(trial, plan["activations"], example) if "activations" in plan else trial


def _without(model: nn.Module, plan: Plan, in_float: Collection[str], example: Inputs) -> Plan:
    """Return the plan without some layers and sites, and without activations that nothing reads then."""
    if not in_float:
        return plan
    changed = {**plan, "weights": {name: grid for name, grid in plan["weights"].items() if name not in in_float}}
    kept = with_scales({n: values for n, values in changed.pop("activations", {}).items() if n not in in_float})
    if kept and any(name in plan["weights"] for name in in_float):
        trial = with_integers(copy.deepcopy(model), changed)
        kernels = next(ActivationGrid.of(values).kernels for values in kept.values() if "same_as" not in values)
        placed = place(trial, trace(trial, example), kernels)
        kept = {name: values for name, values in kept.items() if name in placed}
    kept = with_scales(kept)
    return {**changed, "activations": kept} if kept else changed


def _by_effect(model: nn.Module, plan: Plan, x: Inputs, context: Context) -> list[str]:
    """Return all layers and all sites with a scale of their own, first what moves the outputs most when it is alone."""
    trial = _executed(model, plan, context.example)
    quantizers = trial.by_site if isinstance(trial, InstrumentedModel) else {}
    body = trial.unwrap() if isinstance(trial, InstrumentedModel) else trial
    bare = plain(model, quantized=True)
    fold(bare, plan["fold"])
    record, expected = trace(bare, context.example), run(bare, x)
    changes = {name: _with_weight(bare, name, constrained_weight(body.get_submodule(name))) for name in plan["weights"]}
    for name, quantizer in quantizers.items():
        if "same_as" not in plan["activations"][name]:
            changes[name] = _instrumented(bare, record, {name: quantizer})

    def moved(alone: nn.Module) -> float:
        return _relative(run(alone, x), expected)

    effects = sensitivities(changes, moved, context.progress, "quantizing one tensor alone")
    return sorted(effects, key=lambda name: -effects[name])


@contextmanager
def _with_weight(model: nn.Module, name: str, weight: Tensor) -> Iterator[nn.Module]:
    own = model.get_submodule(name).get_parameter("weight").data
    before = own.clone()
    own.copy_(weight)
    try:
        yield model
    finally:
        own.copy_(before)


@contextmanager
def _instrumented(model: nn.Module, record: Record, edits: dict[str, nn.Module]) -> Iterator[nn.Module]:
    edited = InstrumentedModel(model, record, edits)
    try:
        yield edited
    finally:
        edited.unwrap()


def _joined(parts: list[Inputs]) -> Inputs:
    """Return the rows of all batches in one."""
    named = [as_tensors(part) for part in parts]
    rows = {name: torch.cat([part[name] for part in named]) for name in named[0]}
    return NamedInputs(rows) if isinstance(parts[0], NamedInputs) else rows["x"]


def _relative(found: Tensor, expected: Tensor) -> float:
    error = float((found - expected).norm())
    return error / max(float(expected.norm()), 1e-30) if error else 0.0
