"""Pruning of single weights while the model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import raw_weight
from nutlet.graph.scope import training_only
from nutlet.methods.base import register
from nutlet.methods.pruning.moving import MovingMasks, remembering, sparsities, sparsity_of
from nutlet.options import BelowOne
from nutlet.training.context import Context
from nutlet.training.loop import fit
from nutlet.training.losses import softened

__all__ = ["PruneGradually"]


@register
@dataclass(frozen=True, kw_only=True)
class PruneGradually(MovingMasks):
    """Remove weights little by little while the rest is trained, then train on with the masks that were reached.

    The sparsity goes from what it is to ``sparsity`` along the cubic of Zhu & Gupta 2017, arXiv:1710.01878. Weights
    that are gone, by this step or an earlier one, do not come back. It trains for itself: no recovery has to follow.

    Args:
        ramp: ``cubic`` (a hundred small steps, the first ones largest) or ``iterative`` (five equal ones).
        criterion: ``magnitude`` keeps the largest weights. ``movement`` keeps those that training moves away from
            zero: the largest sums of ``-w g`` over the steps, g the gradient (Sanh et al. 2020, arXiv:2005.07683; there
            the scores of removed weights go on, here they end). Made for models that are fine-tuned to another task.
        fixed: last share of the training in which the masks stay as they are, 0 up to but not including 1.

    Raises:
        ConfigError: a share out of range.

    >>> PruneGradually(sparsity=0.9, epochs=3).to_dict()
    {'PruneGradually': {'sparsity': 0.9, 'epochs': 3}}
    """

    effect: ClassVar[str] = "mask"
    use_when: ClassVar[str] = "the download must be small and you have time to train: keeps more accuracy than one blow"

    ramp: Literal["cubic", "iterative"] = "cubic"
    criterion: Literal["magnitude", "movement"] = "magnitude"
    fixed: BelowOne = 0.3

    def train(self, model: nn.Module, context: Context) -> list[str]:
        """Train and prune at once."""
        layers = self.layers(model)
        start, already = sparsity_of(layers), self.reached(layers)
        path = sparsities(self.ramp, start, max(start, self.goal))
        moves = self.criterion == "movement"
        sums = {name: torch.zeros_like(raw_weight(layer)).detach() for name, layer in layers.items()} if moves else {}
        loss = softened(context, self.temperature, self.kd_weight)
        with training_only(model, self), remembering(model, sums) as memory:

            def before_step(step: int, steps: int) -> None:
                if moves:
                    _follow(layers, memory.tensors)
                reached = _level(path, step, steps, self.fixed)
                if reached is not None:
                    sizes = {name: raw_weight(layer).detach().abs() for name, layer in layers.items()}
                    self.prune(model, memory.tensors if moves else sizes, reached, context)

            notes = fit(model, context, self, loss, title="pruning gradually", before_step=before_step)
        if already:
            notes.append(f"{start:.1%} of the weights were zero already: only trained")
        return [*notes, f"{sparsity_of(layers):.1%} of the weights in scope are zero"]


def _level(path: list[float], step: int, steps: int, fixed: float) -> float | None:
    """Return the sparsity to go to before ``step``, or None where the masks stay; of the number of the step alone.

    >>> [_level([0.4, 0.6, 0.7], step, 8, 0.25) for step in range(8)]
    [None, None, 0.4, None, 0.6, None, 0.7, None]
    """
    last = min(steps - 1, round(steps * (1 - fixed)))
    due = [k for k in range(len(path)) if round(last * (k + 1) / len(path)) == step]
    return path[due[-1]] if due else None


def _follow(layers: Mapping[str, nn.Module], sums: Mapping[str, Tensor]) -> None:
    """Add what this step's gradient says of each weight: with ``-w g`` above zero, the step moves it away from zero."""
    for name, layer in layers.items():
        weight = raw_weight(layer)
        if weight.grad is not None:
            sums[name].sub_(weight.detach() * weight.grad)
