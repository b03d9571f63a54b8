"""ActiveThief: ask in rounds about what the clone so far knows least of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import nn

from nutlet.attacks.base import EVERY_TASK, Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.attacks.extraction.queries import QueriedSet, required
from nutlet.attacks.extraction.selection import Strategy, select
from nutlet.options import Range
from nutlet.oracle import Access, Oracle, probabilities_of
from nutlet.tasks.predict import predict

__all__ = ["ActiveThief", "ask_actively"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class ActiveThief(Attack):
    """Choose the next inputs by the answers of the clone so far (Pal et al. 2020, ActiveThief).

    The first round is random. The clones of the rounds between are trained for a share of the steps, each from the one
    before; that of a budget is trained from the start, as long as a random thief's.

    Args:
        strategy: ``uncertainty`` (largest entropy), ``k-center`` (cover the outputs of all) or ``mix`` (k-center among
            the most uncertain).
        rounds: choices from one budget to the next.

    Raises:
        ConfigError: an unknown strategy, or fewer than two rounds.
    """

    strategy: Strategy = "k-center"
    rounds: Annotated[int, Range(2)] = 4

    use_when: ClassVar[str] = "far more inputs at hand than queries: choose those worth asking about"
    goal: ClassVar[Goal] = "clone"
    access: ClassVar[Access] = "labels"
    needs: ClassVar[tuple[str, ...]] = ("transfer", "surrogate")
    tasks: ClassVar[tuple[str, ...]] = EVERY_TASK
    source: ClassVar[str] = "Pal et al. 2020, ActiveThief, AAAI"
    costly: ClassVar[bool] = True

    def obstacle(self, oracle: Oracle, knowledge: AttackerKnowledge) -> str | None:
        """Return why the attack cannot run here, or None where it can."""
        if self.strategy != "k-center" and "probabilities" not in knowledge.task.disclosures:
            return f"{self.strategy} needs a task with probabilities; the victim does {knowledge.task.name}"
        return super().obstacle(oracle, knowledge)

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield a clone for each budget."""
        transfer, surrogate = required(knowledge)
        asked, clone = QueriedSet.nothing(transfer), None
        for budget in sorted(budgets):
            asked = ask_actively(asked, clone, oracle, knowledge, budget, strategy=self.strategy, rounds=self.rounds)
            clone = surrogate.train(asked.examples, asked.answers, seed=knowledge.seed, progress=knowledge.progress)
            yield AttackResult(queries=oracle.queries, clone=clone)


def ask_actively(
    asked: QueriedSet,
    clone: nn.Module | None,
    oracle: Oracle,
    knowledge: AttackerKnowledge,
    budget: int,
    *,
    strategy: Strategy,
    rounds: int,
) -> QueriedSet:
    """Return what has been asked after going on to ``budget`` queries in ``rounds`` rounds of equal size.

    Args:
        asked: so far.
        clone: trained on it; None where nothing was asked.
        oracle: the victim.
        knowledge: the attacker's.
        budget: inputs asked about in all; fewer where the transfer set ends before.
        strategy: see :func:`nutlet.attacks.extraction.selection.select`.
        rounds: trainings in between are that much shorter.
    """
    surrogate, transfer = knowledge.surrogate, asked.transfer
    assert surrogate is not None
    start = len(asked)
    for k in range(1, rounds + 1):
        wanted = min(start + (budget - start) * k // rounds, len(transfer)) - len(asked)
        if wanted <= 0:
            continue
        left = asked.left
        if len(asked) == 0:
            generator = torch.Generator().manual_seed(knowledge.seed)
            asked = asked.more(oracle, left[torch.randperm(len(left), generator=generator)[:wanted]])
            continue
        if clone is None or k > 1:
            steps = max(1, surrogate.steps(len(asked)) // rounds)
            clone = surrogate.train(asked.examples, asked.answers, seed=knowledge.seed + k, steps=steps, start=clone)
        outputs = probabilities_of(predict(clone, transfer), knowledge.task)
        chosen = select(strategy, outputs[left], outputs[asked.indices], wanted, knowledge.task)
        asked = asked.more(oracle, left[chosen])
    return asked
