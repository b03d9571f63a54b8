"""MIFace: climb the victim's confidence in a class, from a blank input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.options import Count, LearningRate, Weight
from nutlet.oracle import Access, Oracle, as_probabilities
from nutlet.tasks.predict import evaluating

__all__ = ["MIFace"]

_REACH = 3.0
"""Inputs are normalised: what lies further from zero is no plausible pixel or feature."""
_MOMENTUM = 0.9


@register_attack
@dataclass(frozen=True, kw_only=True)
class MIFace(Attack):
    """Find for each class the input of which the file is surest, by gradient descent (Fredrikson et al. 2015).

    From zero, the mean of normalised inputs, it descends ``-log p_class(x) + prior * R(x)`` with momentum, within
    [-3, 3]. The paper's cost, ``1 - p_class``, has the same minimum, but no slope to speak of where ``p_class`` is near
    zero. ``R`` is the total variation of an image (Rudin et al. 1992), and half the squared norm of anything else.

    Args:
        steps: of gradient descent.
        lr: step size.
        prior: weight of ``R``.

    Raises:
        ConfigError: a value out of range.
    """

    steps: Count = 300
    lr: LearningRate = 0.1
    prior: Weight = 0.01

    use_when: ClassVar[str] = "the file in his hands, and classes that are people or things worth seeing"
    goal: ClassVar[Goal] = "inversion"
    of_images: ClassVar[bool] = True
    access: ClassVar[Access] = "file"
    needs: ClassVar[tuple[str, ...]] = ("white_box",)
    measure: ClassVar[str] = "reconstructed classes that are recognised"
    source: ClassVar[str] = "Fredrikson et al. 2015, Model inversion attacks that exploit confidence information, CCS"

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield once, without a query: an input for each class."""
        victim = knowledge.white_box
        assert victim is not None
        x = torch.zeros(knowledge.classes, *knowledge.shape)
        speed = torch.zeros_like(x)
        with evaluating(victim), knowledge.progress.task("inverting the file", total=self.steps) as task:
            for _ in range(self.steps):
                x.requires_grad_(True)
                (slope,) = torch.autograd.grad(surprise(victim, x) + self.prior * roughness(x), x)
                speed = _MOMENTUM * speed + slope
                x = (x.detach() - self.lr * speed).clamp(-_REACH, _REACH)
                task.advance()
        yield AttackResult(queries=oracle.queries, images=x)


def surprise(victim: nn.Module, x: Tensor) -> Tensor:
    """Return ``-sum_c log p_c(x_c)`` of one input for each class, in nats, for outputs of either kind."""
    scores = victim(x).float()
    if as_probabilities(scores) is scores:
        scores = scores.clamp_min(torch.finfo(torch.float32).tiny).log()
    return F.cross_entropy(scores, torch.arange(len(x)), reduction="sum")


def roughness(x: Tensor) -> Tensor:
    """Return the summed total variation of images ``(B, C, H, W)``; half the squared norm of anything else."""
    if x.ndim != 4:
        return x.square().sum() / 2
    return x.diff(dim=2).abs().sum() + x.diff(dim=3).abs().sum()
