"""Weights that share a few values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from nutlet.constraints import Codebook
from nutlet.constraints.stack import constrained_weight
from nutlet.errors import ConfigError
from nutlet.methods.base import Plan, register
from nutlet.methods.quantization.formats import Coding, layers_to_code, put_format
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["Cluster"]


@register
@dataclass(frozen=True, kw_only=True)
class Cluster(Coding):
    """Let the weights of a layer share a few values, found by k-means (Han et al. 2016, arXiv:1510.00149).

    A weight is stored as an index into a codebook, and training goes on learning the values. What was pruned stays
    zero (sparsity-preserving clustering); on a quantized layer the values are integers.

    Args:
        values: how many a layer has, 2 to 256; a power of two wastes no bits.
        keep_zeros: one of the values is zero and stays so.
        edges: the first and the last layer as well.

    Raises:
        ConfigError: ``values`` outside 2 to 256.

    >>> Cluster(values=32).to_dict()
    {'Cluster': {'values': 32}}
    """

    separable: ClassVar[tuple[str, ...]] = ("codebooks",)
    effect: ClassVar[str] = "shared values"
    use_when: ClassVar[str] = "3 to 5 bits for a weight on disk at less loss than a uniform grid of so many bits"
    recoverable: ClassVar[bool] = True

    values: int = 16
    keep_zeros: bool = True
    edges: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.values <= 256:
            raise ConfigError(f"Cluster.values is {self.values}; expected 2 to 256, so that an index fits a byte")

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return how many values each layer gets."""
        layers, notes = layers_to_code(self, model, context, self.values, Codebook.order, edges=self.edges)
        plan: Plan = {"codebooks": {}, "keep_zeros": self.keep_zeros, "notes": notes}
        for name, layer in layers.items():
            distinct = len(torch.unique(constrained_weight(layer)))
            plan["codebooks"][name] = max(2, min(self.values, distinct))
        return plan

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Put a codebook on each layer of the plan."""
        for name, count in plan["codebooks"].items():
            fit = partial(Codebook.fit, count=count, keep_zero=plan["keep_zeros"])
            put_format(model.get_submodule(name), fit, count, Codebook.order)
        return model
