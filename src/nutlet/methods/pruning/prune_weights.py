"""Magnitude pruning of single weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.errors import ConfigError
from nutlet.graph.constraints import Mask, constrain, constrained_weight
from nutlet.graph.scope import weighted_layers
from nutlet.method import Context, Method, Plan, register

__all__ = ["PruneWeights"]


@register
@dataclass(frozen=True, kw_only=True)
class PruneWeights(Method):
    """Make the weights of smallest magnitude zero, and hold them there (Han et al. 2015, arXiv:1506.02626).

    Args:
        sparsity: share of the weights that become zero, 0 up to but not including 1.
        distribution: ``global`` ranks all weights in scope together, ``uniform`` each layer by itself.

    Raises:
        ConfigError: ``sparsity`` is outside [0, 1).

    >>> PruneWeights(sparsity=0.9).to_dict()
    {'PruneWeights': {'sparsity': 0.9}}
    """

    effect: ClassVar[str] = "mask"
    when: ClassVar[str] = "the file is compressed for download (zstd); no runtime gets faster by it"
    recoverable: ClassVar[bool] = True

    sparsity: float
    distribution: Literal["global", "uniform"] = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparsity < 1:
            raise ConfigError(
                f"PruneWeights.sparsity is {self.sparsity}; expected a share from 0 up to but not including 1 "
                f"({self.sparsity} percent would be {self.sparsity / 100:g})"
            )

    def decide(self, model: nn.Module, context: Context) -> Plan:
        """Return how many weights each layer keeps."""
        layers = weighted_layers(model, self)
        magnitudes = {name: constrained_weight(layer).abs().flatten() for name, layer in layers.items()}
        kept = self._kept(magnitudes)
        plan: Plan = {"keep": {}, "notes": ["a mask over dense zeros: the raw file is no smaller, the zstd one is"]}
        for name, magnitude in magnitudes.items():
            alive = int((magnitude > 0).sum())
            if kept[name] > alive:
                plan["notes"].append(f"{name} had only {alive} weights left already")
            plan["keep"][name] = max(1, min(kept[name], alive))
            if kept[name] < 1:
                plan["notes"].append(f"{name} would have lost all its weights and keeps one")
        return plan

    def _kept(self, magnitudes: dict[str, Tensor]) -> dict[str, int]:
        if self.distribution == "uniform":
            return {name: round(len(m) * (1 - self.sparsity)) for name, m in magnitudes.items()}
        everything = torch.cat(list(magnitudes.values()))
        kept = torch.zeros_like(everything, dtype=torch.bool)
        # Ranked rather than compared with a threshold: quantized weights share their magnitudes with many others.
        kept[everything.argsort(descending=True, stable=True)[: len(kept) - round(len(kept) * self.sparsity)]] = True
        parts = torch.split(kept, [len(m) for m in magnitudes.values()])
        return {name: int(part.sum()) for name, part in zip(magnitudes, parts, strict=True)}

    def gentler(self) -> PruneWeights:
        """Return it with twice as many weights kept."""
        return replace(self, sparsity=round(max(0.0, 1 - 2 * (1 - self.sparsity)), 4))

    @staticmethod
    def execute(model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
        """Put a mask on each layer of the plan, in the place of an earlier one."""
        for name, keep in plan["keep"].items():
            layer = model.get_submodule(name)
            weight = constrained_weight(layer).abs()
            mask = torch.zeros_like(weight, dtype=torch.bool)
            mask.view(-1)[weight.flatten().topk(keep).indices] = True
            constrain(layer, [Mask(mask)])
        return model
