"""What integers are too coarse for: the layers and activations that move the outputs most, left in floating point."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.graph.activations import ActivationGrid, attach
from nutlet.graph.constraints import constrained_weight, raw_weight
from nutlet.graph.fold import fold
from nutlet.graph.placement import place
from nutlet.graph.sites import Edited, walk
from nutlet.method import Context, Plan
from nutlet.methods.quantization.integers import calibrated, with_integers
from nutlet.predict import evaluating

__all__ = ["hold"]

_INPUTS, _FEW = 16, 4
"""Inputs on which the outputs are compared, and on which the effects of single quantizers are."""


def hold(model: nn.Module, plan: Plan, context: Context, most: float, activations: ActivationGrid | None) -> Plan:
    """Return ``plan`` without the noisiest layers and activations, as few as hold the outputs, with a note on them.

    Whether there are any shows at the outputs, on inputs that set the ranges: what other inputs lose beyond them is for
    more calibration examples to mend. Then all are ordered by how far each alone moves the outputs, and the shortest
    sufficient beginning of that order is found by doubling and bisection: a forward for each layer and site, and a few
    for the logarithm of their number.

    Args:
        model: before the step, without quantizers of activations.
        plan: with ``fold``, ``weights`` and perhaps ``activations``.
        context: of the method.
        most: ``|ours - original| / |original|`` of the outputs that is allowed.
        activations: how activations are quantized.
    """
    x, _ = context.data.calibration.batch(slice(0, _INPUTS))
    original = _outputs(model, x)

    def moved(left: Collection[str]) -> float:
        trial = _executed(model, _without(model, plan, left, context.example), context.example)
        return _relative(_outputs(trial, x), original)

    error = moved(())
    if error <= most:
        return plan
    order = _by_effect(model, plan, x[:_FEW], context.example)
    few, enough = 0, 1
    while enough < len(order) and moved(order[:enough]) > most:
        few, enough = enough, 2 * enough
    enough = min(enough, len(order))
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if moved(order[:middle]) <= most else (middle, enough)
    left = order[:enough]
    held = _without(model, plan, left, context.example)
    if activations is not None and "activations" in held:
        # Ranges were measured behind weights some of which are no longer on their grids.
        ranges, _ = calibrated(model, held, context, activations)
        held["activations"] = _tied({name: ranges[name] for name in held["activations"] if name in ranges})
    note = (
        f"{', '.join(left[:3])}{f' and {len(left) - 3} more' if len(left) > 3 else ''}: left in floating point, "
        f"integers are too coarse there (the outputs would move by {error:.1%}; `tolerance` is {most:.1%})"
    )
    return {**held, "notes": [*plan["notes"], note]}


def _executed(model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
    trial = with_integers(copy.deepcopy(model), plan)
    return attach(trial, plan["activations"], example) if "activations" in plan else trial


def _without(model: nn.Module, plan: Plan, left: Collection[str], example: Tensor) -> Plan:
    """Return the plan without the layers and sites ``left``, and without activations that nothing reads then."""
    if not left:
        return plan
    changed = {**plan, "weights": {name: grid for name, grid in plan["weights"].items() if name not in left}}
    kept = {name: values for name, values in changed.pop("activations", {}).items() if name not in left}
    if kept and any(name in plan["weights"] for name in left):
        trial = with_integers(copy.deepcopy(model), changed)
        placed = place(trial, walk(trial, example))
        kept = {name: values for name, values in kept.items() if name in placed}
    kept = _tied(kept)
    return {**changed, "activations": kept} if kept else changed


def _tied(activations: dict[str, Any]) -> dict[str, Any]:
    """Return the ranges without those that are the same as one that is not there."""
    return {name: values for name, values in activations.items() if values.get("same_as", name) in activations}


def _by_effect(model: nn.Module, plan: Plan, x: Tensor, example: Tensor) -> list[str]:
    """Return all layers and all sites with a scale of their own, first what moves the outputs most when it is alone."""
    trial = _executed(model, plan, example)
    quantizers = trial.by_site if isinstance(trial, Edited) else {}
    body = trial.take_off() if isinstance(trial, Edited) else trial
    plain = copy.deepcopy(model)
    fold(plain, plan["fold"])
    record, original = walk(plain, example), _outputs(plain, x)
    effects = {}
    for name in plan["weights"]:
        raw = raw_weight(plain.get_submodule(name)).data
        before = raw.clone()
        raw.copy_(constrained_weight(body.get_submodule(name)))
        effects[name] = _relative(_outputs(plain, x), original)
        raw.copy_(before)
    for name, quantizer in quantizers.items():
        if "same_as" not in plan["activations"][name]:
            alone = Edited(plain, record, {name: quantizer})
            effects[name] = _relative(_outputs(alone, x), original)
            alone.take_off()
    return sorted(effects, key=lambda name: -effects[name])


def _relative(ours: Tensor, original: Tensor) -> float:
    difference = float((ours - original).norm())
    return difference / max(float(original.norm()), 1e-30) if difference else 0.0


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        outputs: Tensor = model(x)
    return outputs
