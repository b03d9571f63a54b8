"""Binary weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import nn

from nutlet.constraints import Binarizer
from nutlet.methods.base import Plan, register
from nutlet.methods.quantization.formats import Coding, layers_to_code, put_format
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["Binarize"]


@register
@dataclass(frozen=True, kw_only=True)
class Binarize(Coding):
    """Keep the sign of each weight, in one bit, and a scale (Rastegari et al. 2016, arXiv:1603.05279).

    Accuracy is lost until the model has been trained again, for long. ``Quantize`` after it makes the activations
    integers as well.

    Args:
        granularity: what has one scale, the mean magnitude at first, learned later: an output ``channel``, the whole
            ``tensor``, or ``none``: weights of one and minus one (Courbariaux et al. 2015, arXiv:1511.00363), which
            only a network with norms after its layers bears.
        edges: the first and the last layer as well.

    >>> Binarize(edges=True).to_dict()
    {'Binarize': {'edges': True}}
    """

    separable: ClassVar[tuple[str, ...]] = ("signs",)
    effect: ClassVar[str] = "grid"
    use_when: ClassVar[str] = "one bit for a weight on disk; only with long training after it, and wide layers"
    recoverable: ClassVar[bool] = True

    granularity: Literal["channel", "tensor", "none"] = "channel"
    edges: bool = False

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the layers that become binary."""
        layers, notes = layers_to_code(self, model, context, 2, Binarizer.order, edges=self.edges)
        return {"signs": dict.fromkeys(layers, self.granularity), "notes": notes}

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Put a binarizer on each layer of the plan."""
        for name, granularity in plan["signs"].items():
            fit = partial(Binarizer.fit, granularity=granularity)
            put_format(model.get_submodule(name), fit, 2, Binarizer.order)
        return model
