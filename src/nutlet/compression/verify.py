"""A step carried out and compared with what it came from; what turns out wrong is left out and said, or raised."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from nutlet.constraints import WeightQuantizer, formats
from nutlet.constraints.stack import Mask, constrained_layers, constrained_weight, constraints
from nutlet.errors import ComparisonError, NutletError, first_line
from nutlet.formats.packed.pack import sync_dense
from nutlet.graph.activation_quantizers import (
    ActivationGrid,
    ActivationQuantizer,
    Activations,
    calibrate,
    grid_of,
    with_scales,
)
from nutlet.graph.comparison import Answers, answers, difference, plain, run
from nutlet.graph.macs import macs
from nutlet.graph.quantization_error import activation_problems, carried_problem, weight_problem
from nutlet.graph.trace import InstrumentedModel, body_of, trace
from nutlet.graph.unfolding import norm_factor, scaled
from nutlet.memory import release
from nutlet.methods.base import Method, Plan, apply_plan
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["plan_and_apply", "probe", "trained"]

MOST = 16
"""How many calibration examples a comparison runs, at most."""
LEAST = 2
WORK = 2e9
"""Multiply-accumulates that a comparison may take, which is what fewer examples are for."""
MEND = "leave this step out, or its layers (`exclude`), and please report the model and the recipe"


def probe(model: nn.Module, context: Context) -> Inputs:
    """Return real calibration inputs ``(B, ...)`` for a comparison: fewer where the model has more to do."""
    work = max(macs(trace(model, context.example)), 1)
    x: Inputs = context.data.calibration.batch(slice(0, max(LEAST, min(MOST, int(WORK / work)))))[0]
    return x


def plan_and_apply(method: Method, model: nn.Module, context: Context) -> tuple[nn.Module, Plan, list[str]]:
    """Return the model after all that ``method`` does but training, the plan that leads there, and notes on it.

    The result is compared with :meth:`Method.reference`, its quantizers with what their grids promise, and what was
    carried over with what was there before. Parts of the plan that fail are left out, with a note on each.

    Args:
        method: the step.
        model: may be changed in place.
        context: of the step.

    Raises:
        ComparisonError: something is wrong that leaving out parts of the plan does not mend.
    """
    plan = method.plan(model.unwrap() if isinstance(model, InstrumentedModel) else model, context)
    release(model)
    notes = plan.pop("notes", [])
    step = _Step(method, copy.deepcopy(model), context)
    after = step.applied(plan, model)
    gone: dict[str, str] = {}
    while problems := step.problems(plan, after):
        step.check_new(problems, gone)
        gone |= problems
        plan = step.without(plan, problems)
        after = step.applied(plan)
    notes += step.notes
    notes += [f"{part}: left as it was, for compared with the model before, {gone[part]}" for part in gone]
    plan.pop("values", None)
    return after, plan, notes


def trained(method: Method, before: Mapping[str, tuple[int, ...]], model: nn.Module, x: Inputs) -> None:
    """Check a model that was just trained, and make its dense weights equal to the constrained ones.

    Args:
        method: the step.
        before: shapes of the state dict before the training.
        model: changed in place: settled, and in evaluation mode.
        x: the inputs of the comparison.

    Raises:
        ComparisonError: training changed the structure, or a constraint no longer holds: what it masks is not zero, a
            weight under it is not finite, or settling moves the answers. A run that diverged shows in its accuracy.
    """
    name = type(method).__name__
    if {key: tuple(value.shape) for key, value in model.state_dict().items()} != dict(before):
        raise ComparisonError(f"{name} changed tensors of the model while it trained; expected other values alone")
    for layer_name, layer in constrained_layers(model.eval()):
        weight = constrained_weight(layer)
        removed = any(bool(weight[~c.mask].any()) for c in constraints(layer) if isinstance(c, Mask))
        if removed or not bool(torch.isfinite(weight).all()):
            what = "weights that a mask removes are not zero" if removed else "weights are not finite"
            raise ComparisonError(f"{name}: after training {what} in {layer_name}; {MEND}")
    answered = run(model, x)
    sync_dense(model)
    if (apart := difference(run(model, x), answered)) > 1e-6:
        raise ComparisonError(
            f"{name}: the trained values moved the answers by {apart:.2g} when they were put under their constraints; "
            f"expected the same answers; {MEND}"
        )


@dataclass(eq=False)
class _Step:
    """One step, that can be carried out more than once.

    Args:
        method: the step.
        before: the model it begins with.
        context: of the step.
    """

    method: Method
    before: nn.Module
    context: Context
    CARRIES: ClassVar[frozenset[str]] = frozenset({"depth", "width"})
    """Effects after which quantizers that were there have to fit the weights that stay, exactly."""

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        self.calibrated = False  # whether the ranges in the plan are not the method's own
        self.x = probe(self.before, self.context)
        # Weights that layers share under different constraints are not on the values of each.
        self.settled = {name for name, layer in constrained_layers(self.before) if not carried_problem(layer)}

    @cached_property
    def finite(self) -> bool:
        """Whether the model before gave finite answers."""
        return bool(torch.isfinite(run(plain(self.before, quantized=True), self.x)).all())

    def applied(self, plan: Plan, model: nn.Module | None = None) -> nn.Module:
        """Return the model after ``plan``; without ``model``, made of a copy of the one before."""
        model = copy.deepcopy(self.before) if model is None else model
        return apply_plan(type(self.method), model, plan, self.context.example, ranges=self._ranges)

    def _ranges(self, earlier: InstrumentedModel, model: nn.Module) -> Activations | None:
        now = trace(model, self.context.example)
        if isinstance(model, InstrumentedModel) or (
            now.sites == earlier.record.sites and self.method.effect != "values"
        ):
            return None
        self.calibrated = True
        self.notes = ["the ranges of quantized activations were measured anew, for layers have changed"]
        return calibrate(model, now, self.context.calibration("ranges of activations"), grid_of(earlier))

    def check_new(self, problems: Collection[str], gone: Collection[str]) -> None:
        """Raise ComparisonError where what was left out is still found wrong."""
        if again := [part for part in problems if part in gone]:
            raise ComparisonError(f"{type(self.method).__name__}: {again[0]} is wrong although it was left out; {MEND}")

    def without(self, plan: Plan, gone: Collection[str]) -> Plan:
        """Return ``plan`` without the parts or sites ``gone``, with ranges measured anew where they no longer hold."""
        left = self.method.without(plan, gone)
        own = plan.get("activations", {})
        if self.calibrated and not any(part in own for part in gone):
            left.pop("activations", None)
        elif "activations" in left:
            left["activations"] = with_scales({site: entry for site, entry in own.items() if site not in gone})
            if not left["activations"]:
                del left["activations"]
        elif own:
            body = body_of(self.applied(left))
            if ranges := calibrate(
                body,
                trace(body, self.context.example),
                self.context.calibration("ranges of activations"),
                _grid_in(own),
            ):
                left["activations"] = ranges
        return left

    def problems(self, plan: Plan, after: nn.Module) -> dict[str, str]:
        """Return what is wrong, by part of the plan or by site, the first offender first.

        Raises:
            ComparisonError: it belongs to no part that could be left out.
        """
        faults = self._attributed(plan, self.method.faults(body_of(self.before), plan))
        return faults or self._answers(plan, after) or self._weights(plan, after) or self._activations(plan, after)

    def _answers(self, plan: Plan, after: nn.Module) -> dict[str, str]:
        """What answers otherwise than the reference, found by carrying out each part alone."""
        problem = self._answers_problem(plan, after)
        if not problem:
            return {}
        parts = self.method.parts(plan)
        found = {}
        for part in parts if len(parts) > 1 else ():
            alone = self.method.without(plan, set(parts) - {part})
            alone.pop("activations", None)
            if told := self._answers_problem(alone, self.applied(alone)):
                found[part] = told
        if not found and len(parts) != 1:
            raise ComparisonError(f"{type(self.method).__name__}: {problem}, which no part of it does alone; {MEND}")
        return found or {parts[0]: problem}

    def _answers_problem(self, plan: Plan, after: nn.Module) -> str:
        quantized = not self.method.fitted(plan)
        expected = self._expected(plan, quantized=quantized)
        if expected is None:
            if self.finite and not bool(torch.isfinite(run(plain(after, quantized=True), self.x)).all()):
                return "answers are no longer finite"
            return ""
        release(after)
        try:
            found = answers(plain(after, quantized=quantized), self.x)
        except NutletError:
            raise
        except Exception as error:  # a model that lost the wrong things may fail in any way at all
            return f"the model no longer runs ({type(error).__name__}: {first_line(error)})"
        release(after)
        single = found.double is None or expected.double is None
        apart = difference(found.single, expected.single) if single else difference(found.best, expected.best)
        tolerance = Answers(expected.single, None).tolerance if single else expected.tolerance
        return (
            f"answers are {apart:.2g} of the largest apart, {tolerance:.0e} being rounding" if apart > tolerance else ""
        )

    def _expected(self, plan: Plan, *, quantized: bool) -> Answers | None:
        reference = self.method.reference(body_of(self.before), plan, self.context.example)
        return None if reference is None else answers(plain(reference, quantized=quantized), self.x)

    def _weights(self, plan: Plan, after: nn.Module) -> dict[str, str]:
        """Quantizers of weights: those the step fitted, and those that were carried."""
        body = body_of(after)
        found = {}
        for name in self.method.fitted(plan):
            for inner in body.get_submodule(name).modules():
                if formats(inner) and (problem := weight_problem(inner, self._chosen_for(plan, name))):
                    found[name] = problem
        if self.method.effect in self.CARRIES:
            for name, layer in constrained_layers(body):
                if name in self.settled and not _by_groups(layer) and (problem := carried_problem(layer)):
                    found[name] = problem
        return self._attributed(plan, found)

    def _chosen_for(self, plan: Plan, name: str) -> Tensor | None:
        """Return the weight of a layer before the step, norm included, where the plan chooses its codes."""
        layer = body_of(self.before).get_submodule(name)
        if name not in plan.get("rounded", ()):
            return None
        norms = dict(plan["fold"])
        weight = constrained_weight(layer)
        if name not in norms:
            return weight
        return scaled(layer, weight, norm_factor(body_of(self.before).get_submodule(norms[name])))

    def _activations(self, plan: Plan, after: nn.Module) -> dict[str, str]:
        """Quantizers of activations: on the values they get, where their ranges are new, or against those carried."""
        if not isinstance(after, InstrumentedModel):
            return {}
        if "activations" in plan:
            trial = copy.deepcopy(after)
            return activation_problems(trial.unwrap(), trial.record, after.by_site, self.x)
        if isinstance(self.before, InstrumentedModel):
            earlier = self.before.by_site
            for site, quantizer in after.by_site.items():
                if _numbers(quantizer) != _numbers(earlier.get(site)):
                    raise ComparisonError(
                        f"{type(self.method).__name__}: the activation quantizer at {site} was carried over and is "
                        f"another one now; {MEND}"
                    )
        return {}

    def _attributed(self, plan: Plan, found: dict[str, str]) -> dict[str, str]:
        parts = self.method.parts(plan)
        for name, problem in found.items():
            if name not in parts:
                raise ComparisonError(f"{type(self.method).__name__}: {name}: {problem}; {MEND}")
        return found


def _by_groups(layer: nn.Module) -> bool:
    return any(isinstance(few, WeightQuantizer) and few.grid.granularity == "group" for few in formats(layer))


def _numbers(quantizer: nn.Module | None) -> tuple[float, int, int] | None:
    if not isinstance(quantizer, ActivationQuantizer):
        return None
    return quantizer.step, quantizer.zero_point, quantizer.grid.bits


def _grid_in(activations: Activations) -> ActivationGrid:
    """Return the grid that ranges were measured for: that of the fewest bits, the input having 8 always."""
    grids = [ActivationGrid.of(entry) for entry in activations.values() if "same_as" not in entry]
    return min(grids, key=lambda grid: grid.bits)
