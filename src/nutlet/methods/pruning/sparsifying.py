"""What methods that make single weights zero have in common: how many, in what pattern, how shared out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nutlet.constraints import formats
from nutlet.constraints.stack import Mask, constrain, constrained_weight, raw_weight, remove_constraints
from nutlet.errors import ConfigError, ModelError
from nutlet.graph.scope import weighted_layers
from nutlet.methods.base import Method, Plan
from nutlet.methods.pruning.allocation import LEVELS, Distribution, by_rank, by_sensitivity, erk_densities
from nutlet.methods.pruning.masks import put_masks
from nutlet.methods.pruning.patterns import Pattern, as_matrix, parse_pattern
from nutlet.methods.sensitivity import divergence_from, reconstrained, sensitivities
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["Sparsifying"]


@dataclass(frozen=True, kw_only=True)
class Sparsifying(Method):
    """Options of all methods that make single weights zero.

    Args:
        sparsity: share of the weights that become zero, 0 up to but not including 1; follows from a pattern as ``2:4``.
        pattern: ``weight`` for any weights; ``N:M``, as ``2:4``, for N kept of every M input channels side by side, at
            one output and position; ``block`` for whole blocks of the matrix of outputs and inputs.
        block: rows and columns of a block, as ``(1, 4)`` or ``(4, 4)``.
        distribution: how the share is spread. ``global`` ranks everything in scope together, ``uniform`` each layer by
            itself, ``erk`` takes more from large layers (Erdős-Rényi kernel), ``sensitivity`` prunes each layer alone
            at six levels, measures how far the outputs on the calibration examples move, and spends where that costs
            least: six passes over them for each layer.
    """

    sample: ClassVar[Mapping[str, Any]] = {"sparsity": 0.5}
    separable: ClassVar[tuple[str, ...]] = ("masked",)

    sparsity: float | None = None
    pattern: str = "weight"
    block: tuple[int, ...] = ()
    distribution: Distribution = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        pattern = self.positions
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ConfigError(
                f"{owner}.sparsity is {self.sparsity}; expected a share from 0 up to but not including 1 "
                f"({self.sparsity} percent would be {self.sparsity / 100:g})"
            )
        if pattern.of:
            share = 1 - pattern.kept / pattern.of
            if self.sparsity is not None and abs(self.sparsity - share) > 1e-3:
                raise ConfigError(
                    f"{owner}.sparsity is {self.sparsity}, but the pattern {self.pattern} makes it {share:g}; "
                    "leave `sparsity` out"
                )
            if self.distribution != type(self).distribution:
                raise ConfigError(
                    f"{owner}.distribution is {self.distribution!r}, but the pattern {self.pattern} takes the same "
                    "from every layer; leave `distribution` out"
                )
        elif self.sparsity is None:
            raise ConfigError(f"{owner} needs the option 'sparsity'; expected a share, see `nutlet methods {owner}`")

    @property
    def positions(self) -> Pattern:
        """Where zeros may lie."""
        return parse_pattern(type(self).__name__, self.pattern, self.block)

    def milder(self) -> Sparsifying | None:
        """Return it with twice as many weights kept; None for a pattern, and where that would keep all."""
        sparsity = 0.0 if self.sparsity is None or self.positions.of else round(1 - 2 * (1 - self.sparsity), 4)
        return dataclasses.replace(self, sparsity=sparsity) if sparsity > 0 else None

    def fitting(self, layers: Mapping[str, nn.Module]) -> tuple[dict[str, nn.Module], list[str]]:
        """Return the layers that can take the pattern, and sentences about the others.

        Raises:
            ConfigError: none can.
        """
        misfits = {name: reason for name, layer in layers.items() if (reason := self.positions.misfit(layer))}
        if len(misfits) == len(layers) > 0:
            name, reason = next(iter(misfits.items()))
            raise ConfigError(
                f"{type(self).__name__}.pattern is {self.pattern!r}, which no layer in scope can take "
                f"({name}: {reason}); expected a pattern that divides the channels of one at least"
            )
        chosen = {name: layer for name, layer in layers.items() if name not in misfits}
        return chosen, [f"{name}: {reason}, left alone" for name, reason in misfits.items()]

    def skip_reasons(self, model: nn.Module, example: Inputs) -> dict[str, str]:
        """Return why layers are left alone, those that cannot take the pattern among them."""
        found = super().skip_reasons(model, example)
        layers = {name: layer for name, layer in weighted_layers(model, self).items() if not found.get(name)}
        self.fitting(layers)  # or it says that none can
        return found | {name: self.positions.misfit(layer) for name, layer in layers.items()}

    def kept(
        self, model: nn.Module, saliency: Mapping[str, Tensor], context: Context
    ) -> tuple[dict[str, int], list[str]]:
        """Return how many units each layer keeps, and sentences about those that cannot keep what they should.

        Args:
            model: not changed.
            saliency: how much each weight matters, by layer.
            context: whose calibration examples the sensitivity is measured on.

        Raises:
            ModelError: there is no layer to take from.
        """
        if not saliency:
            raise ModelError(f"{type(self).__name__} found no layer it can rank; expected one that runs on the data")
        pattern = self.positions
        layers = {name: model.get_submodule(name) for name in saliency}
        units = {name: pattern.units(as_matrix(layers[name], scores)).flatten() for name, scores in saliency.items()}
        if pattern.of:
            return {name: len(row) * pattern.kept // pattern.of for name, row in units.items()}, []
        assert self.sparsity is not None
        notes = []
        if self.distribution == "uniform":
            kept = {name: round(len(row) * (1 - self.sparsity)) for name, row in units.items()}
        elif self.distribution == "global":
            kept = by_rank(units, self.sparsity)
        elif self.distribution == "erk":
            densities = erk_densities({name: scores.shape for name, scores in saliency.items()}, self.sparsity)
            kept = {name: round(len(row) * densities[name]) for name, row in units.items()}
        else:
            kept = self._measured(model, saliency, context)
            notes.append(f"sensitivity: measured with {len(layers) * len(LEVELS)} passes over the calibration examples")
        notes += [f"{name} would have lost all its weights and keeps one unit" for name in kept if kept[name] < 1]
        for name, row in units.items():
            alive = int((row > 0).sum())
            if kept[name] > alive:
                notes.append(
                    f"{name} had only {alive} {'weights' if pattern.block == (1, 1) else 'blocks'} left already"
                )
        return {name: max(1, count) for name, count in kept.items()}, notes

    def _measured(self, model: nn.Module, saliency: Mapping[str, Tensor], context: Context) -> dict[str, int]:
        assert self.sparsity is not None
        trial, pattern = copy.deepcopy(model), self.positions
        sizes = {name: scores.numel() // prod(pattern.block) for name, scores in saliency.items()}

        def masked(layer: nn.Module, scores: Tensor, keep: int) -> None:
            mask = pattern.mask(layer, scores, keep) & (scores > 0)
            earlier = remove_constraints(layer)
            constrain(layer, [*(c for c in earlier if not isinstance(c, Mask)), Mask(mask)])

        changes = {
            (name, level): reconstrained(
                trial, name, partial(masked, scores=saliency[name], keep=max(1, round(size * (1 - level))))
            )
            for name, size in sizes.items()
            for level in LEVELS
        }
        losses = sensitivities(changes, divergence_from(model, context), context.progress, "pruning one layer alone")
        return by_sensitivity(sizes, self.sparsity, {name: [losses[name, level] for level in LEVELS] for name in sizes})

    def reference(self, model: nn.Module, plan: Plan, example: Inputs) -> nn.Module | None:
        """Return the model with weights set to zero by hand; None where changed weights lie on a grid as well."""
        expected, values = copy.deepcopy(model), plan.get("values", {})
        for name in plan["masked"]:
            layer = expected.get_submodule(name)
            changed = values.get(f"{name}.parametrizations.weight.original")
            if changed is not None and formats(layer):
                return None
            weight = constrained_weight(layer) if changed is None else changed
            masks = [v for k, v in values.items() if k.startswith(f"{name}.parametrizations.") and k.endswith(".mask")]
            for mask in masks:
                weight = weight * self.remaining(layer, mask)
            remove_constraints(layer, bake=True)
            with torch.no_grad():
                raw_weight(layer).copy_(weight)
        return expected

    def remaining(self, layer: nn.Module, mask: Tensor) -> Tensor:
        """Return where weights stay: what ``mask`` says, or, of a method that can tell without it, what has to."""
        return mask

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Put a mask on each layer of the plan, in the place of an earlier one."""
        put_masks(model, plan["masked"])
        return model
