"""Iterative magnitude pruning in which the weights are set back after each round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import Mask, raw_weight
from nutlet.errors import ConfigError
from nutlet.graph.scope import training_only
from nutlet.methods.base import register
from nutlet.methods.pruning.moving import Memory, MovingMasks, remembering, sparsity_of
from nutlet.options import Count, Range
from nutlet.training.context import Context
from nutlet.training.loop import fit
from nutlet.training.losses import softened

__all__ = ["LotteryTicket"]


@register
@dataclass(frozen=True, kw_only=True)
class LotteryTicket(MovingMasks):
    """Train, remove the smallest weights, set the others back to what they were, and again; train once more at the end.

    Each round removes the same share of what is left, and trains for ``epochs``; so does the training at the end
    (Frankle & Carbin 2019, arXiv:1803.03635; with ``rewind`` above 0, Frankle et al. 2020, arXiv:1912.05671, with a
    learning rate that begins anew each time).

    What it means for a trained model: the hypothesis is about networks at their random start, and a model that comes
    here has that behind it. Set back is therefore to the *trained* values at the beginning of this step, or to those
    ``rewind`` epochs later; what is found is a subnetwork of the trained model, as Chen et al. 2020, arXiv:2007.12223,
    find in BERT, and says nothing about how few weights could have been trained from scratch. To look for a ticket in
    the sense of the papers, hand in the model with its initial weights. As a way to accuracy at a given sparsity it is
    dear, ``rounds + 1`` trainings; ``PruneGradually`` needs one.

    Args:
        rounds: how often weights are removed.
        rewind: set back to the values after so many epochs of the first round; 0 to those the model came with.

    Raises:
        ConfigError: a value out of range.

    >>> LotteryTicket(sparsity=0.9, rounds=5).to_dict()
    {'LotteryTicket': {'sparsity': 0.9, 'rounds': 5}}
    """

    effect: ClassVar[str] = "mask"
    use_when: ClassVar[str] = "to study which weights a model needs, or at extreme sparsity with much time to train"

    rounds: Count = 3
    rewind: Annotated[int, Range(0, noun="a number of epochs")] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rewind >= self.epochs:
            raise ConfigError(
                f"LotteryTicket.rewind is {self.rewind}; expected fewer epochs than `epochs`, {self.epochs}"
            )

    def train(self, model: nn.Module, context: Context) -> list[str]:
        """Run all rounds, and the training at the end."""
        layers = self.layers(model)
        start = sparsity_of(layers)
        rounds = 0 if self.reached(layers) else self.rounds
        loss = softened(context, self.temperature, self.kd_weight)
        notes: list[str] = []
        came_with = {name: value.clone() for name, value in _values(model).items()}
        with training_only(model, self), remembering(model, came_with) as early:

            def keep_early(step: int, steps: int) -> None:
                if step * self.epochs == self.rewind * steps:
                    _copy(_values(model), early.tensors)

            for k in range(rounds + 1):
                notes += fit(
                    model,
                    context,
                    self,
                    loss,
                    title=f"round {k + 1} of {rounds + 1}",
                    before_step=keep_early if k == 0 and self.rewind else None,
                    checkpoint=f"training-{k + 1}.pt",
                )
                if k < rounds:
                    scores = {name: raw_weight(layer).detach().abs() for name, layer in layers.items()}
                    self.prune(model, scores, _level(start, self.goal, k + 1, rounds), context)
                    _copy(early.tensors, _values(model))
        if not rounds:
            notes.append(f"{start:.1%} of the weights were zero already: only trained, once")
        return [*notes, f"{sparsity_of(layers):.1%} of the weights in scope are zero"]


def _level(start: float, end: float, k: int, rounds: int) -> float:
    """Return the sparsity after ``k`` rounds, each of which removes the same share of what is left.

    >>> [round(_level(0.0, 0.875, k, 3), 4) for k in (1, 2, 3)]
    [0.5, 0.75, 0.875]
    """
    if start >= end:  # N of M, where more is gone already
        return start
    left: float = ((1 - end) / (1 - start)) ** (k / rounds)
    return 1 - (1 - start) * left


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Return all values but the masks and what is remembered; not copies: writing to one changes the model."""
    others = {name for name, module in model.named_modules() if isinstance(module, (Mask, Memory))}
    return {name: value for name, value in model.state_dict().items() if name.rpartition(".")[0] not in others}


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in source.items():
            target[name].copy_(value)
