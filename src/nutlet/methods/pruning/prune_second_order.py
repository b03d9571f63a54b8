"""Pruning of single weights where those that stay make up for those that go."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import (
    Constraint,
    Mask,
    constrained_weight,
    constraints,
    expand_range,
    keep_mask,
    raw_weight,
)
from nutlet.graph.modules import shared_parameters
from nutlet.graph.scope import weighted_layers
from nutlet.graph.statistics import WITH_ROWS, input_moments, without_rows
from nutlet.methods.base import Plan, register
from nutlet.methods.pruning.allocation import Distribution
from nutlet.methods.pruning.elimination import BLOCK, damped, eliminate, inverse_factor, least_error
from nutlet.methods.pruning.masks import DENSE, put_masks
from nutlet.methods.pruning.patterns import Pattern, as_matrix, as_weight
from nutlet.methods.pruning.sparsifying import Sparsifying
from nutlet.options import OpenShare
from nutlet.training.context import Context

__all__ = ["PruneSecondOrder"]

MOST_WORK = 1e12
"""Multiply-accumulates that solving for the weights of one layer may take: a minute or so on a few cores."""


@register
@dataclass(frozen=True, kw_only=True)
class PruneSecondOrder(Sparsifying):
    """Remove the weights whose loss the others can make up for, and change those so that they do.

    SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774): layer by layer, column by column, what goes and what the rest
    becomes follows from the second moments of the inputs on the calibration examples (optimal brain surgery, Hassibi &
    Stork 1993), without any training. Given what goes, the rest is then solved for exactly. The calibration examples
    should outnumber the inputs of the largest layer, positions of a convolution counting as examples.

    Weights on a grid of an earlier step stay on it: what is lost to rounding is made up for alike, by columns alone.
    Each is rounded as part of the whole weight there, so that the time grows with the square of a layer's inputs.

    Args:
        damping: share of the mean of the diagonal that is added to the second moments; more trusts them less.

    Raises:
        ConfigError: ``sparsity`` is outside [0, 1) or contradicts the pattern, no layer can take the pattern, or
            ``damping`` is not positive.

    >>> PruneSecondOrder(pattern="2:4").to_dict()
    {'PruneSecondOrder': {'pattern': '2:4'}}
    """

    effect: ClassVar[str] = "mask"
    use_when: ClassVar[str] = "weights are to become zero and there is no time for training, only some examples"
    recoverable: ClassVar[bool] = True

    distribution: Distribution = "uniform"
    damping: OpenShare = 0.01

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the layers that are masked; masks and changed weights are values."""
        layers, notes = self.fitting(weighted_layers(model, self))
        shared = shared_parameters(model)
        for name in [name for name, layer in layers.items() if raw_weight(layer) in shared]:
            notes.append(f"{name}: another layer has the same weight, left alone")
            del layers[name]
        supported = [name for name, layer in layers.items() if isinstance(layer, WITH_ROWS)]
        moments = input_moments(model, supported, context.calibration("moments of inputs"))
        notes += [f"{name}: {without_rows(layers[name])}, left alone" for name in layers if name not in moments]
        moments = {name: _in_order(layers[name], h) for name, h in moments.items()}
        factors = {name: inverse_factor(h, self.damping) for name, h in moments.items()}
        saliency = {name: as_weight(layers[name], _cost(layers[name], factor)) for name, factor in factors.items()}
        kept, short = self.kept(model, saliency, context)
        trial = copy.deepcopy(model)
        with context.progress.task("pruning layers", total=len(factors)) as task:
            for name, factor in factors.items():
                mask = _prune(trial, name, factor, self.positions, kept[name])
                if _grids(layers[name]):
                    notes.append(f"{name}: its weights keep to the values that quantization allows")
                elif _work(mask) > MOST_WORK:
                    notes.append(f"{name}: too large to solve for the weights that stay, made up for by columns alone")
                else:
                    _solve(layers[name], trial.get_submodule(name), damped(moments[name], self.damping), mask)
                task.advance()
        expand_range(trial)
        values = {
            f"{name}.{key}": tensor
            for name in factors
            for key, tensor in trial.get_submodule(name).state_dict().items()
        }
        return {"masked": list(factors), "values": values, "notes": [DENSE, *notes, *short]}


def _in_order(layer: nn.Module, moments: Tensor) -> Tensor:
    """Return moments in the order of the columns of :func:`as_matrix`: channels last, where a weight has them first."""
    shape = constrained_weight(layer).shape[1:]
    order = torch.arange(moments.shape[-1], device=moments.device).view(shape).movedim(0, -1).flatten()
    return moments[:, order][:, :, order]


def _cost(layer: nn.Module, factor: Tensor) -> Tensor:
    """Return what giving up each weight costs, ``(outputs, inputs)``."""
    matrix = as_matrix(layer, constrained_weight(layer))
    spread = factor.diagonal(dim1=1, dim2=2).repeat_interleave(len(matrix) // len(factor), 0)
    return (matrix / spread).square().to(matrix.dtype)


def _prune(model: nn.Module, name: str, factor: Tensor, pattern: Pattern, keep: int) -> Tensor:
    """Mask a layer and change its weights, in place; return the mask of its matrix."""
    layer = model.get_submodule(name)
    weight = as_matrix(layer, constrained_weight(layer))
    choice = _Choice(
        pattern, as_matrix(layer, keep_mask(layer)), pattern.choose(_cost(layer, factor), keep), _onto_grid(layer)
    )
    groups = weight.reshape(len(factor), -1, weight.shape[1])
    changed = eliminate(groups, factor, choice, choice.block).view_as(weight)
    put_masks(model, [name])
    with torch.no_grad():
        raw_weight(layer).copy_(as_weight(layer, changed))
        (mask,) = (c for c in constraints(layer) if isinstance(c, Mask))
        mask.mask.copy_(as_weight(layer, choice.mask))
    return choice.mask


def _solve(original: nn.Module, layer: nn.Module, moments: Tensor, mask: Tensor) -> None:
    """Give the weights that stay the values of least error, in place."""
    weight = as_matrix(original, constrained_weight(original))
    shape = (len(moments), -1, weight.shape[1])
    best = least_error(weight.view(shape), moments, mask.view(shape)).view_as(weight)
    with torch.no_grad():
        raw_weight(layer).copy_(as_weight(layer, best))


def _work(mask: Tensor) -> float:
    """Return the multiply-accumulates of one system of equations for each row."""
    return float(mask.sum(1).double().pow(3).sum() / 3)


def _grids(layer: nn.Module) -> list[Constraint]:
    """Return the constraints that say which values weights may take."""
    return [c for c in constraints(layer) if c.order < Mask.order]


class _Choice:
    """Decides as late as it can which weights go, when they have made up for those before them; rounds the others.

    Args:
        pattern: what goes together.
        alive: weights that an earlier mask leaves.
        first: which weights would stay if all were decided at once; how many of each block of columns do.
        rounded: returns a column on the grid that the layer has.
    """

    def __init__(
        self, pattern: Pattern, alive: Tensor, first: Tensor, rounded: Callable[[int, Tensor], Tensor]
    ) -> None:
        self.pattern, self.alive, self.first, self.rounded = pattern, alive, first, rounded
        self.mask = alive.clone()
        self.block = pattern.step * max(1, BLOCK // pattern.step)
        self.ahead = pattern.step if pattern.of else self.block

    def __call__(self, k: int, columns: Tensor, spread: Tensor) -> Tensor:
        if k % self.ahead == 0:
            cost = (columns / spread[:, None]).square()[..., : self.ahead].flatten(0, 1)
            place = slice(k, k + cost.shape[1])
            keep = int(self.pattern.units(self.first[:, place].int()).count_nonzero())
            alive = self.alive[:, place]
            self.mask[:, place] = self.pattern.choose(cost * alive, keep) & alive
        column = columns[..., 0].flatten() * self.mask[:, k]
        return (self.rounded(k, column) * self.mask[:, k]).view(columns.shape[:2])


def _onto_grid(layer: nn.Module) -> Callable[[int, Tensor], Tensor]:
    """Return a function of the number and the values of a column that puts them on the grid of ``layer``, if any."""
    grids = _grids(layer)
    if not grids:
        return lambda k, column: column
    present = as_matrix(layer, constrained_weight(layer)).clone()

    def rounded(k: int, column: Tensor) -> Tensor:
        # As part of the whole weight, which is what a constraint is a function of.
        present[:, k] = column.to(present.dtype)
        weight = as_weight(layer, present)
        with torch.no_grad():
            for grid in grids:
                weight = grid(weight)
        return as_matrix(layer, weight)[:, k].to(column.dtype)

    return rounded
