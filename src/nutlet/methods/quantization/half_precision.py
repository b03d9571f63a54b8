"""Weights of 16-bit floats."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import nn

from nutlet.constraints import HalfFloat
from nutlet.methods.base import Plan, register
from nutlet.methods.quantization.formats import Coding, layers_to_code, put_format
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["HalfPrecision"]


@register
@dataclass(frozen=True, kw_only=True)
class HalfPrecision(Coding):
    """Store weights in 16 bits; the runtime computes in 32, so answers hardly change and speed does not.

    Args:
        dtype: ``float16``, the more precise, or ``bfloat16``, which has the range of 32 bits.

    >>> HalfPrecision(dtype="bfloat16").to_dict()
    {'HalfPrecision': {'dtype': 'bfloat16'}}
    """

    separable: ClassVar[tuple[str, ...]] = ("halves",)
    effect: ClassVar[str] = "grid"
    use_when: ClassVar[str] = "half the size at no loss, where integers lose too much"

    dtype: Literal["float16", "bfloat16"] = "float16"

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the layers that are stored in 16 bits."""
        layers, notes = layers_to_code(self, model, context, 2**16, HalfFloat.order)
        return {"halves": dict.fromkeys(layers, self.dtype), "notes": notes}

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Put the format on each layer of the plan."""
        for name, dtype in plan["halves"].items():
            put_format(model.get_submodule(name), partial(HalfFloat.fit, dtype=dtype), 2**16, HalfFloat.order)
        return model
