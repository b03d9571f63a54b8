"""Cross-layer equalisation: weight ranges of neighbouring layers made equal, the function unchanged."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from nutlet.constraints.stack import Mask, constraints, refit
from nutlet.graph.equivalent_scaling import Link, links
from nutlet.graph.scope import weighted_layers
from nutlet.methods.base import Method, Plan, register
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["Equalize"]

SWEEPS = 100


@register
@dataclass(frozen=True, kw_only=True)
class Equalize(Method):
    """Give each channel between two layers the same range of weights on both sides of it.

    Where nothing but ReLU, pooling and the like stands between one layer and all that read it, a channel may be made
    ``1/s`` as large by the first and ``s`` times as important to the others: the model computes the same.
    ``s_i = sqrt(r1_i r2_i) / r2_i`` makes the ranges ``r`` of the weights equal on both sides (Nagel et al. 2019,
    arXiv:1906.04721, section 4.1). Where a batch norm follows the first layer, its gain is scaled instead of the
    weight, and the ranges are those after folding. A chain of such pairs is swept until nothing changes.

    It helps most where one scale serves many channels: grids with one scale per tensor, and activations. Masks are
    carried; grids that are there already are fitted anew, and only then does the model answer a little otherwise.

    >>> Equalize(exclude=("head",)).to_dict()
    {'Equalize': {'exclude': ['head']}}
    """

    effect: ClassVar[str] = "values"
    use_when: ClassVar[str] = (
        "before a Quantize that costs accuracy, where the channels of a layer differ much in range"
    )

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return ``[layer, its batch norm or None, readers]`` for each group of channels that can be scaled."""
        plan: Plan = {"links": [], "notes": []}
        layers = weighted_layers(model, self)
        few = context.data.calibration.subset(slice(0, 16))
        found = [link for link in links(model, context.example, few, layers, plan["notes"]) if link.layer]
        plan["links"] = [[link.layer, link.norm, list(link.readers)] for link in found]
        for name in _touched(found):
            if any(not isinstance(c, Mask) for c in constraints(layers[name])):
                plan["notes"].append(f"{name}: its quantizer was fitted to the scaled weights")
        if not found:
            plan["notes"].append("nothing equalized: no two layers in scope with only ReLU or pooling between them")
        return plan

    def fitted(self, plan: Plan) -> list[str]:
        """Return the layers whose quantizers, if any, are fitted to the scaled weights."""
        return _touched([Link(layer, norm, tuple(readers)) for layer, norm, readers in plan["links"]])

    def reference(self, model: nn.Module, plan: Plan, example: Inputs) -> nn.Module | None:
        """Return the model as it is."""
        return copy.deepcopy(model)

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Scale both sides of every link."""
        found = [Link(layer, norm, tuple(readers)) for layer, norm, readers in plan["links"]]
        for _ in range(SWEEPS):
            change = 0.0
            for link in found:
                made, read = link.made(model), link.read(model)
                # Of a channel that one side makes or reads next to nothing of, the bias would become huge.
                alive = torch.minimum(made, read) > 1e-6 * torch.maximum(made, read)
                factor = torch.where(alive, (read / made).sqrt(), torch.ones_like(made))
                link.scale(model, factor)
                change = max(change, float((factor - 1).abs().max()))
            if change < 1e-4:
                break
        for name in _touched(found):
            refit(model.get_submodule(name))
        return model


def _touched(found: list[Link]) -> list[str]:
    """Return the layers whose weights are scaled."""
    return list(dict.fromkeys(n for link in found for n in (None if link.norm else link.layer, *link.readers) if n))
