"""The first membership attack: a classifier trained on the answers of shadow models."""

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
from nutlet.attacks.membership.signals import as_shown, confidence, of_pool, scored_once
from nutlet.options import Count
from nutlet.oracle import Access, Disclosure, Oracle

__all__ = ["ShadowClassifier"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class ShadowClassifier(ShadowAttack):
    """Learn what answers about members look like: sorted probabilities, confidence in the label, and the label.

    One network sees the label instead of one network for each label (Shokri et al. 2017). On labels alone it learns how
    often members of each class are classified rightly.

    Args:
        models: shadow models whose answers it learns from.
        steps: batches of 256 answers that the attack model is trained on, about.

    Raises:
        ConfigError: an odd number of models, fewer than two, or no steps.
    """

    use_when: ClassVar[str] = "membership without a value for each candidate: what holds of all members alike"
    access: ClassVar[Access] = "labels"
    source: ClassVar[str] = "Shokri et al. 2017, arXiv:1610.05820"
    usual: ClassVar[int] = 4

    steps: Count = 1000

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield one loot: the whole pool is asked about once."""
        yield scored_once(self.scores, oracle, knowledge, budgets)

    def scores(self, answers: Tensor, shown: Disclosure, knowledge: AttackerKnowledge) -> Tensor:
        """Return the log odds of each candidate from the victim's answers ``(N, classes)``."""
        assert knowledge.shadows is not None
        labels = of_pool(knowledge).y
        logits, members = knowledge.shadows(self.count)
        known = _features(torch.stack([as_shown(of_one, shown) for of_one in logits]), labels, shown)
        asked = _features(answers, labels, shown)
        mean, deviation = known.mean((0, 1)), known.std((0, 1)).clamp_min(1e-3)

        def network() -> nn.Module:
            return nn.Sequential(nn.Linear(known.shape[-1], 64), nn.ReLU(), nn.Linear(64, 2))

        return learn(
            network,
            (known - mean) / deviation,
            members,
            (asked - mean) / deviation,
            steps=self.steps,
            seed=knowledge.seed,
        )


def _features(answers: Tensor, labels: Tensor, shown: Disclosure) -> Tensor:
    """Return features ``(..., N, F)`` of answers ``(..., N, classes)``."""
    classes = answers.shape[-1]
    shares = answers.softmax(-1) if shown.raw else answers
    top = shares.topk(min(classes, 10), -1).values
    sure = confidence(answers, labels, shown).float()[..., None]
    label = F.one_hot(labels, classes).float().expand(*answers.shape[:-1], classes)
    return torch.cat([top, sure, label], -1)
