"""BaVarIA: LiRA with a Bayesian variance, for few shadow models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from nutlet.attacks.base import EVERY_TASK, AttackerKnowledge, AttackResult, register_attack
from nutlet.attacks.membership.evidence import Neighbours, log_ratio
from nutlet.attacks.membership.shadow_attack import ShadowAttack, pairs
from nutlet.attacks.membership.signals import (
    confidence,
    of_pool,
    scored_once,
    shadow_confidence,
)
from nutlet.options import Positive
from nutlet.oracle import Access, Disclosure, Oracle

__all__ = ["BaVarIA"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class BaVarIA(ShadowAttack):
    r"""Compare two Student t distributions of the confidence, whose variances are shrunk to that of like candidates.

    Under a normal-inverse-gamma prior the confidence of one more model is :math:`t_{s+n+2}` distributed around the
    posterior mean (Brännvall 2026); the score is the log ratio of its densities among models that saw the candidate and
    those that did not. Our prior is of candidates of about the same difficulty:
    :mod:`nutlet.attacks.membership.evidence` has the formulas.

    Args:
        mode: ``online``, or ``offline``: no model that saw a candidate says anything about that candidate.
        models: shadow models; four are enough.
        strength: models that the prior variance is worth.
        neighbours: candidates of about the same difficulty that make one prior.

    Raises:
        ConfigError: fewer than four models, or a value out of range.
    """

    use_when: ClassVar[str] = "membership with four to sixty-four shadow models: as good as LiRA with fewer"
    access: ClassVar[Access] = "labels"
    tasks: ClassVar[tuple[str, ...]] = EVERY_TASK
    source: ClassVar[str] = "Brännvall 2026, arXiv:2603.11799"
    usual: ClassVar[int] = 8

    mode: Literal["online", "offline"] = "online"
    models: Annotated[int, pairs(4, "two on each side are the fewest that show a variance; RMIA takes two")] | None = (
        None
    )
    strength: Positive = 32.0
    neighbours: Neighbours = 100

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield one loot: the whole pool is asked about once."""
        yield scored_once(self.scores, oracle, knowledge, budgets)

    def scores(self, answers: Tensor, shown: Disclosure, knowledge: AttackerKnowledge) -> Tensor:
        """Return the evidence for each candidate, in nats, from the victim's answers ``(N, ...)``."""
        assert knowledge.shadows is not None
        targets, task = of_pool(knowledge).y, knowledge.task
        values, members = shadow_confidence(knowledge.shadows, self.count, targets, shown, task)
        return log_ratio(
            confidence(answers, targets, shown, task)[:, None],
            values[:, :, None],
            members,
            online=self.mode == "online",
            strength=self.strength,
            neighbours=self.neighbours,
        )
