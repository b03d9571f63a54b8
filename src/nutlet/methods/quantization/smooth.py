"""SmoothQuant: what is hard to quantize in activations moved into the weights that read them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import Mask, constraints, refit
from nutlet.errors import ConfigError
from nutlet.graph.equivalent_scaling import Link, links
from nutlet.graph.scope import weighted_layers
from nutlet.graph.statistics import channels_first, observe
from nutlet.methods.base import Method, Plan, register
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["Smooth"]


@register
@dataclass(frozen=True, kw_only=True)
class Smooth(Method):
    """Divide channels of activations by what makes some of them huge, and multiply the weights that read them by it.

    ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` per channel (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438,
    equation 4), with the activations ``X`` of the calibration examples. Dividing costs nothing at run time: it goes
    into the affine of the layer norm or RMS norm before dense layers, and elsewhere into the layer before (or its
    batch norm), where nothing but ReLU, pooling and the like stands between. Channels that anything else reads as
    well are left alone; so the model computes the same. It is for outliers in activations, as transformers have them.

    Masks are carried; grids that are there already are fitted anew.

    Args:
        alpha: how much of the difficulty the weights take, 0 to 1; 0.5 shares it evenly.

    Raises:
        ConfigError: ``alpha`` is outside [0, 1].

    >>> Smooth(alpha=0.75).to_dict()
    {'Smooth': {'alpha': 0.75}}
    """

    effect: ClassVar[str] = "values"
    use_when: ClassVar[str] = "before a Quantize of a transformer, whose activations have a few channels of huge values"

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"Smooth.alpha is {self.alpha}; expected a share from 0 to 1, as 0.5")

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return ``[layer or None, norm or None, readers]`` of the scaled channels, and what they become as values."""
        plan: Plan = {"links": [], "notes": []}
        layers = weighted_layers(model, self)
        calibration = context.data.calibration
        found = links(model, context.example, calibration.subset(slice(0, 16)), layers, plan["notes"])
        plan["links"] = [[link.layer, link.norm, list(link.readers)] for link in found]
        trial = copy.deepcopy(model)
        touched: dict[str, None] = {}
        for link, largest in zip(found, _largest_inputs(model, found, context), strict=True):
            read = link.read(trial)
            alive = (largest > 0) & (read > 0)
            smaller = torch.where(alive, largest**self.alpha / read ** (1 - self.alpha), torch.ones_like(read))
            link.scale(trial, 1 / smaller)
            touched |= dict.fromkeys((str(link.norm or link.layer), *link.readers))
        for name in touched:
            refit(trial.get_submodule(name))
            if any(not isinstance(c, Mask) for c in constraints(trial.get_submodule(name))):
                plan["notes"].append(f"{name}: its quantizer was fitted to the scaled weights")
        owners = tuple(f"{name}." for name in touched)
        plan["values"] = {key: value for key, value in trial.state_dict().items() if key.startswith(owners)}
        if not found:
            plan["notes"].append("nothing smoothed: no norm or layer that only layers in scope read")
        return plan

    def fitted(self, plan: Plan) -> list[str]:
        """Return the layers whose quantizers, if any, are fitted to the scaled weights."""
        return [str(name) for layer, norm, readers in plan["links"] for name in (norm or layer, *readers)]

    def reference(self, model: nn.Module, plan: Plan, example: Inputs) -> nn.Module | None:
        """Return the model as it is."""
        return copy.deepcopy(model)


def _largest_inputs(model: nn.Module, found: list[Link], context: Context) -> list[Tensor]:
    """Return the largest magnitude of each channel of each link on the calibration examples."""
    largest: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        channels = channels_first(layer, x).abs().amax(1)
        largest[name] = torch.maximum(largest[name], channels) if name in largest else channels

    observe(model, [link.readers[0] for link in found], note, context.calibration("largest inputs"))
    return [largest[link.readers[0]].view(link.channels(model), -1).amax(1) for link in found]
