"""Shifts of mean outputs, measured against the original model and taken back by biases."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nutlet.graph.fold import foldable
from nutlet.graph.scope import Layer, weighted_layers
from nutlet.graph.statistics import Batches, channels_first, observe
from nutlet.graph.trace import trace
from nutlet.methods.base import Method, Plan, register
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["CorrectBias"]


@register
@dataclass(frozen=True, kw_only=True)
class CorrectBias(Method):
    """Put into biases what earlier steps took from, or added to, the mean output of each layer.

    Rounded, pruned or factorized weights shift the mean of what a layer gives. The shift from the original model is
    measured per output channel on the calibration examples, layer after layer in the order of execution, each with
    those before it corrected already (Nagel et al. 2019, arXiv:1906.04721, section 4.2 and appendix D). Where a batch
    norm follows, means are compared behind it, and its bias takes the correction; a layer without a bias gets one.

    It helps where the shifts are small beside what layers give, and does harm where they are not: on ResNet-20 it won
    accuracy at 4 bits and lost much of it at 3 (``bench/families.py bias4 bias3``). Compare the two steps of the
    history.

    Layers are matched by name with those of the original. One with other channels than there is left alone. Activation
    quantizers are not in force while this measures; their ranges are taken anew afterwards.

    >>> CorrectBias().to_dict()
    {'CorrectBias': {}}
    """

    effect: ClassVar[str] = "values"
    use_when: ClassVar[str] = (
        "after Quantize with 4 bits or so, not after harsher steps, where nothing is trained; a pass per layer"
    )

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the modules whose biases change, those that get one, and the biases as values."""
        plan: Plan = {"corrected": [], "made": [], "values": {}, "notes": []}
        calibration = context.calibration("mean outputs")
        places = _places(model, weighted_layers(model, self), context)
        wanted = _means(context.teacher, places.values(), calibration)
        trial = copy.deepcopy(model).eval()
        order = [place for place in _means(trial, places, calibration) if places[place] in wanted]
        plan["notes"] += [f"{place}: nobody calls it, left as it is" for place in places if place not in order]
        with context.progress.task("correcting biases", total=len(order)) as task:
            for place in order:
                module, mean = trial.get_submodule(place), wanted[places[place]]
                if _outputs(module) != len(mean):
                    plan["notes"].append(f"{place}: its channels are not those of the original, left as it is")
                elif isinstance(module, _BatchNorm) and not module.affine:
                    plan["notes"].append(f"{place}: a norm without a bias, left as it is")
                elif (shift := mean - _means(trial, [place], calibration)[place]).any():
                    plan["corrected"].append(place)
                    if not isinstance(module.bias, Tensor):
                        plan["made"].append(place)
                        _make_bias(module)
                    module.get_parameter("bias").data += shift
                    plan["values"][f"{place}.bias"] = module.get_parameter("bias").detach()
                task.advance()
        if not plan["corrected"]:
            plan["notes"].append("nothing to correct: no layer in scope gives another mean than in the original")
        return plan

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Make the biases that were absent."""
        for name in plan["made"]:
            _make_bias(model.get_submodule(name))
        return model


def _places(model: nn.Module, scope: Iterable[str], context: Context) -> dict[str, str]:
    """Return the modules whose outputs can be compared and shifted, each with that of the original to compare with."""
    norms = dict(foldable(context.teacher, trace(context.teacher, context.example)))
    modules, scope, places = dict(model.named_modules()), set(scope), {}
    for name, layer in context.teacher.named_modules():
        if not isinstance(layer, Layer):
            continue
        end = norms.get(name, name)
        while isinstance(container := modules.get(name), nn.Sequential):  # of the factors of this layer
            name = f"{name}.{len(container) - 1}"
        if name in scope:
            places[end if isinstance(modules.get(end), _BatchNorm) else name] = end
    return places


def _means(model: nn.Module, names: Iterable[str], batches: Batches) -> dict[str, Tensor]:
    """Return the mean output per channel of each module, in the order in which they first run."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        channels = channels_first(module, output)
        sums[name] = sums.get(name, 0) + channels.double().sum(1)
        counts[name] = counts.get(name, 0) + channels.shape[1]

    observe(model, names, note, batches)
    return {name: (total / counts[name]).float() for name, total in sums.items()}


def _outputs(module: nn.Module) -> int:
    kinds = {"out_features": nn.Linear, "num_features": _BatchNorm}
    width: int = getattr(module, next((key for key, kind in kinds.items() if isinstance(module, kind)), "out_channels"))
    return width


def _make_bias(layer: nn.Module) -> None:
    layer.bias = nn.Parameter(torch.zeros(_outputs(layer)))
