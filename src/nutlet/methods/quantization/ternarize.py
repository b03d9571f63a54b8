"""Ternary weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from nutlet.constraints import QuantScheme, TrainedTernarizer, WeightQuantizer
from nutlet.errors import ConfigError
from nutlet.methods.base import Plan, register
from nutlet.methods.quantization.formats import Coding, layers_to_code, put_format
from nutlet.methods.quantization.integers import attach_quantizer
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["Ternarize"]


@register
@dataclass(frozen=True, kw_only=True)
class Ternarize(Coding):
    """Keep zero and one value of either sign, in less than two bits a weight; training learns the values.

    Accuracy is lost until the model has been trained again. ``Quantize`` after it makes the activations integers as
    well.

    Args:
        scales: 1, the same of both signs (TWN, Li et al. 2016, arXiv:1605.04711: what has the smallest squared error
            at first), or 2, one for the positive and one for the negative weights of a layer (TTQ, Zhu et al. 2017,
            arXiv:1612.01064).
        granularity: with one scale, whether each output ``channel`` (the default) or the whole ``tensor`` has it.
        edges: the first and the last layer as well.

    Raises:
        ConfigError: a granularity with two scales.

    >>> Ternarize(scales=2).to_dict()
    {'Ternarize': {'scales': 2}}
    """

    separable: ClassVar[tuple[str, ...]] = ("ternary",)
    effect: ClassVar[str] = "grid"
    use_when: ClassVar[str] = "less than two bits for a weight on disk, with training after it"
    recoverable: ClassVar[bool] = True

    scales: Literal[1, 2] = 1
    granularity: Literal["channel", "tensor"] | None = None
    edges: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scales == 2 and self.granularity is not None:
            raise ConfigError(
                f"Ternarize.granularity is {self.granularity!r}, for one scale; with scales=2 a layer has both of them"
            )

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the layers that become ternary."""
        order = (WeightQuantizer if self.scales == 1 else TrainedTernarizer).order
        layers, notes = layers_to_code(self, model, context, 3, order, edges=self.edges)
        return {
            "ternary": dict.fromkeys(layers, "signs" if self.scales == 2 else self.granularity or "channel"),
            "notes": notes,
        }

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Put a ternary constraint on each layer of the plan."""
        for name, scale in plan["ternary"].items():
            layer = model.get_submodule(name)
            if scale == "signs":
                put_format(layer, TrainedTernarizer.fit, 3, TrainedTernarizer.order)
            else:
                attach_quantizer(layer, QuantScheme(bits=2, granularity=scale, ranges="mse", learn=True))
        return model
