"""What 8 bits are too coarse for: the noisiest layers and activations of a plan, left in floating point."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from nutlet.graph.activations import attach
from nutlet.graph.constraints import constrained_weight, raw_weight
from nutlet.graph.fold import fold
from nutlet.graph.placement import place
from nutlet.graph.quantizers import Grid
from nutlet.graph.sites import Edited, walk
from nutlet.memory import release
from nutlet.method import Context, Plan
from nutlet.predict import evaluating

__all__ = ["hold_to_floor"]

MOST_OF_ALL, MOST_OF_WEIGHTS = 0.1, 0.017
"""How far outputs may move, ``|ours - original| / |original|`` on inputs: 20 and 35 dB."""
_INPUTS, _FEW = 16, 2
"""Inputs of each split that the outputs are compared on, and on which the effects of single quantizers are."""

PutWeights = Callable[[nn.Module, Plan], nn.Module]


def hold_to_floor(model: nn.Module, plan: Plan, context: Context, put_weights: PutWeights) -> Plan:
    """Return ``plan`` without the noisiest layers and activations, as few as hold the outputs, with notes on them.

    Whether there are any shows at the outputs, on a few inputs that set the ranges and a few that did not. Then all
    are ordered by how far each alone moves the outputs, and the shortest sufficient beginning of that order is found by
    doubling and bisection.

    Args:
        model: before the step, without quantizers of activations.
        plan: with ``fold``, ``weights`` and perhaps ``activations``; grids of fewer bits than 8, or that training will
            move, are as coarse as they were asked to be.
        context: of the method.
        put_weights: folds, and puts weights on their grids, as a plan says.
    """
    grids = [Grid(**changes) for changes in plan["weights"].values()]
    activations = plan.get("activations", {})
    asked = any(g.bits < 8 or g.learn or g.power_of_two for g in grids)
    asked |= any({"bits", "learn", "power_of_two"} & values.keys() - {"scale"} for values in activations.values())
    if asked or not grids:
        return plan
    splits = (context.data.calibration, context.data.validation)
    inputs = [split.batch(slice(0, _INPUTS))[0] for split in splits]
    most = MOST_OF_ALL if activations else MOST_OF_WEIGHTS
    originals = [_outputs(model, x) for x in inputs]

    def moved(left: Collection[str]) -> float:
        trial = _executed(model, without(left), put_weights, context.example)
        return max(_relative(_outputs(trial, x), original) for x, original in zip(inputs, originals, strict=True))

    def without(left: Collection[str]) -> Plan:
        return _without(model, plan, left, put_weights, context.example)

    error = moved(())
    release(model)
    if error <= most:
        return plan
    order = _by_effect(model, plan, put_weights, torch.cat([part[:_FEW] for part in inputs]), context.example)
    few, enough = 0, 1
    while enough < len(order) and moved(order[:enough]) > most:
        few, enough = enough, 2 * enough
    enough = min(enough, len(order))
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if moved(order[:middle]) <= most else (middle, enough)
    left = order[:enough]
    note = (
        f"{', '.join(left[:3])}{f' and {len(left) - 3} more' if len(left) > 3 else ''}: left in floating point, 8 bits "
        f"are too coarse there (the outputs would move by {error:.1%}, the most is {most:.1%})"
    )
    return {**without(left), "notes": [*plan["notes"], note]}


def _executed(model: nn.Module, plan: Plan, put_weights: PutWeights, example: Tensor) -> nn.Module:
    trial = put_weights(copy.deepcopy(model), plan)
    return attach(trial, plan["activations"], example) if "activations" in plan else trial


def _without(model: nn.Module, plan: Plan, left: Collection[str], put_weights: PutWeights, example: Tensor) -> Plan:
    """Return the plan without the layers and sites ``left``, and without activations that nothing reads then."""
    if not left:
        return plan
    left = set(left)
    weights = {name: grid for name, grid in plan["weights"].items() if name not in left}
    changed = {**plan, "weights": weights}
    if "activations" not in plan:
        return changed
    changed.pop("activations")
    kept = {name: values for name, values in plan["activations"].items() if name not in left}
    if any(name in plan["weights"] for name in left):
        trial = put_weights(copy.deepcopy(model), changed)
        placed = place(trial, walk(trial, example))
        kept = {name: values for name, values in kept.items() if name in placed}
    kept = {name: values for name, values in kept.items() if values.get("same_as", name) in kept}
    return {**changed, "activations": kept} if kept else changed


def _by_effect(model: nn.Module, plan: Plan, put_weights: PutWeights, x: Tensor, example: Tensor) -> list[str]:
    """Return all layers and all sites with a scale of their own, first what moves the outputs most when it is alone."""
    trial = _executed(model, plan, put_weights, example)
    quantizers = trial.by_site if isinstance(trial, Edited) else {}
    body = trial.take_off() if isinstance(trial, Edited) else trial
    plain = copy.deepcopy(model)
    fold(plain, plan["fold"])
    record, original = walk(plain, example), _outputs(plain, x)
    effects = {}
    for name in plan["weights"]:
        raw = raw_weight(plain.get_submodule(name)).data
        kept = raw.clone()
        raw.copy_(constrained_weight(body.get_submodule(name)))
        effects[name] = _relative(_outputs(plain, x), original)
        raw.copy_(kept)
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
