"""Knockoff Nets: ask about a random part of the transfer set, train on the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from nutlet.attacks.base import EVERY_TASK, Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.attacks.extraction.queries import QueriedSet, required
from nutlet.oracle import Access, Oracle

__all__ = ["Knockoff"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class Knockoff(Attack):
    """Train a clone on the answers to a random part of the transfer set (Orekondy et al. 2019, Knockoff Nets).

    The transfer sets of all budgets are nested: a larger one begins with the answers of the smaller ones. On labels
    alone this is Copycat CNN (Correia-Silva et al. 2018).
    """

    use_when: ClassVar[str] = "the plain attack: inputs at hand, answers trained on"
    goal: ClassVar[Goal] = "clone"
    access: ClassVar[Access] = "labels"
    needs: ClassVar[tuple[str, ...]] = ("transfer", "surrogate")
    tasks: ClassVar[tuple[str, ...]] = EVERY_TASK
    source: ClassVar[str] = "Orekondy et al. 2019, arXiv:1812.02766"

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield a clone for each budget."""
        transfer, surrogate = required(knowledge)
        order = torch.randperm(len(transfer), generator=torch.Generator().manual_seed(knowledge.seed))
        asked = QueriedSet.nothing(transfer)
        for budget in sorted(budgets):
            asked = asked.more(oracle, order[len(asked) : budget])
            clone = surrogate.train(asked.examples, asked.answers, seed=knowledge.seed, progress=knowledge.progress)
            yield AttackResult(queries=oracle.queries, clone=clone)
