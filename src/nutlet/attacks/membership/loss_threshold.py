"""The loss alone: members have a small one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nutlet.attacks.base import EVERY_TASK, Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.attacks.membership.signals import confidence, of_pool, scored_once
from nutlet.oracle import Access, Disclosure, Oracle

__all__ = ["LossThreshold"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class LossThreshold(Attack):
    """Take the candidates of smallest loss for members (Yeom et al. 2018).

    On labels alone it is their gap attack: what is classified rightly is a member.
    """

    use_when: ClassVar[str] = "no model of one's own: what anyone finds out for nothing"
    goal: ClassVar[Goal] = "membership"
    access: ClassVar[Access] = "labels"
    needs: ClassVar[tuple[str, ...]] = ("pool",)
    tasks: ClassVar[tuple[str, ...]] = EVERY_TASK
    source: ClassVar[str] = "Yeom et al. 2018, arXiv:1709.01604"

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield one loot: the whole pool is asked about once."""
        yield scored_once(self.scores, oracle, knowledge, budgets)

    def scores(self, answers: Tensor, shown: Disclosure, knowledge: AttackerKnowledge) -> Tensor:
        """Return the confidence in each candidate's target from the victim's answers ``(N, ...)``."""
        # The order of the loss, but with more digits where it is nearly zero.
        return confidence(answers, of_pool(knowledge).y, shown, knowledge.task)
