"""LabelOnly: read the probabilities that a victim hides off the labels of noisy copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.attacks.extraction.queries import QueriedSet, ask, required
from nutlet.options import Count, Range
from nutlet.oracle import Access, Oracle

__all__ = ["LabelOnly"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class LabelOnly(Attack):
    """Train on the share of each label among noisy copies of an input (the estimate of Cohen et al. 2019).

    The share estimates ``P(victim(x + e) = c)`` with ``e ~ N(0, sigma^2)``, the smoothed classifier: near a boundary
    it is soft where the label is hard. Half of the budget, and no more than there are inputs, goes to inputs as they
    are; the rest to copies of the first of them. An input without copies keeps its label.

    Args:
        copies: of an input, beside itself; each is a query.
        noise: ``sigma``, in standard deviations of the inputs.

    Raises:
        ConfigError: a value out of range.
    """

    copies: Count = 4
    noise: Annotated[float, Range(0, 10, left_open=True, right_open=True, noun="standard deviations")] = 0.25

    use_when: ClassVar[str] = "labels alone, more queries than inputs; with inputs to spare Knockoff is often as good"
    goal: ClassVar[Goal] = "clone"
    access: ClassVar[Access] = "labels"
    needs: ClassVar[tuple[str, ...]] = ("transfer", "surrogate")
    source: ClassVar[str] = "Cohen et al. 2019, arXiv:1902.02918 (the estimate)"
    costly: ClassVar[bool] = True

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield a clone for each budget."""
        transfer, surrogate = required(knowledge)
        random = torch.Generator().manual_seed(knowledge.seed)
        order = torch.randperm(len(transfer), generator=random)
        sigma = self.noise * float(transfer.batch(order[:1000])[0].std())
        asked, shares = QueriedSet.nothing(transfer), torch.empty(0, knowledge.classes)
        for budget in sorted(budgets):
            inputs = min(-(-budget // 2), len(transfer))
            asked = asked.more(oracle, order[len(asked) : inputs])
            copied = order[len(shares) : min(inputs, (budget - inputs) // self.copies)]
            if len(copied):
                shown = self.ask_copies(oracle, transfer.batch(copied)[0], sigma, random)
                own = asked.answers[len(shares) : len(shares) + len(copied)]
                shares = torch.cat([shares, (own + shown.sum(1)) / (1 + self.copies)])
            answers = torch.cat([shares, asked.answers[len(shares) :]])
            clone = surrogate.train(asked.examples, answers, seed=knowledge.seed, progress=knowledge.progress)
            yield AttackResult(queries=oracle.queries, clone=clone)

    def ask_copies(self, oracle: Oracle, x: Tensor, sigma: float, random: torch.Generator) -> Tensor:
        """Return the answers ``(B, copies, classes)`` to noisy copies of ``x`` ``(B, ...)``."""
        copies = x.repeat_interleave(self.copies, 0)
        copies += sigma * torch.randn(copies.shape, generator=random)
        return ask(oracle, copies).view(len(x), self.copies, -1)
