"""SAMIA: self-attention over confidences and their sensitivity, against pruned and other compressed models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.attacks.base import AttackerKnowledge, AttackResult, register_attack
from nutlet.attacks.membership.classifier import learn
from nutlet.attacks.membership.shadow_attack import ShadowAttack
from nutlet.attacks.membership.shadow_models import Shadows, nearby
from nutlet.attacks.membership.signals import answers_to, as_shown, check_budget, of_pool
from nutlet.options import Count
from nutlet.oracle import Access, Disclosure, Oracle

__all__ = ["SAMIA"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class SAMIA(ShadowAttack):
    """Learn what answers about members look like from confidences, their sensitivity, and the label.

    Sensitivity is how much the probabilities change under small noise on the input. Each class is a token of three
    numbers (probability, sensitivity, whether it is the label), read by one layer of self-attention; pruning leaves
    marks in both that differ by class (Yuan and Zhang 2022, whose network has three layers). The shadow models are to
    be compressed as the victim was: ``after`` of :class:`~nutlet.attacks.membership.shadow_models.Shadows`. It asks
    about each candidate and about ``repeats`` noisy copies of it.

    Args:
        models: shadow models whose answers it learns from.
        steps: batches of 256 answers that the attack model is trained on, about.

    Raises:
        ConfigError: an odd number of models, fewer than two, or no steps.
    """

    use_when: ClassVar[str] = (
        "membership of a pruned or otherwise compressed model, by an attacker who knows how it was made"
    )
    access: ClassVar[Access] = "probabilities"
    source: ClassVar[str] = "Yuan, Zhang 2022 (USENIX Security), arXiv:2202.03335"
    usual: ClassVar[int] = 4
    costly: ClassVar[bool] = True

    steps: Count = 400

    def obstacle(self, oracle: Oracle, knowledge: AttackerKnowledge) -> str | None:
        """Return why the attack cannot run here, or None where it can."""
        if knowledge.shadows is not None and not isinstance(knowledge.shadows, Shadows):
            return "needs shadow models that tell their sensitivity (nutlet.attacks.membership.shadow_models.Shadows)"
        return super().obstacle(oracle, knowledge)

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield one loot, after ``(1 + repeats) N`` queries."""
        pool, shadows = of_pool(knowledge), knowledge.shadows
        assert isinstance(shadows, Shadows)
        check_budget((1 + shadows.repeats) * len(pool), budgets)
        victim = _shares(answers_to(oracle, pool), oracle.answers)
        change = torch.zeros_like(victim)
        for copy in range(shadows.repeats):
            moved = answers_to(oracle, nearby(pool, shadows.noise, knowledge.seed + copy))
            change += (_shares(moved, oracle.answers) - victim).abs()
        logits, members = shadows(self.count)
        shown = torch.stack([as_shown(of_one, oracle.answers) for of_one in logits])
        known = _tokens(_shares(shown, oracle.answers), shadows.sensitivity(self.count), pool.y)
        asked = _tokens(victim, change / shadows.repeats, pool.y)
        scores = learn(_Attention, known, members, asked, steps=self.steps, seed=knowledge.seed)
        yield AttackResult(queries=oracle.queries, scores=scores)


def _shares(answers: Tensor, shown: Disclosure) -> Tensor:
    return answers.softmax(-1) if shown.raw else answers


def _tokens(shares: Tensor, change: Tensor, labels: Tensor) -> Tensor:
    """Return one token of three numbers for each class, ``(..., N, classes, 3)``."""
    label = F.one_hot(labels, shares.shape[-1]).float().expand_as(shares)
    return torch.stack([shares, change, label], -1)


class _Attention(nn.Module):
    """Tokens ``(B, classes, 3)`` to two logits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.embed = nn.Linear(3, width)
        self.attend = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=2 * width, dropout=0.1, activation="gelu", batch_first=True
        )
        self.decide = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, 2)``."""
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        decided: Tensor = self.decide(self.attend(F.gelu(self.embed(x))).mean(1))
        return decided
