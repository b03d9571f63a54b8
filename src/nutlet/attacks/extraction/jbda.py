"""Jacobian-based dataset augmentation: make inputs near the clone's borders out of a few, and ask about them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.attacks.extraction.queries import ask, required
from nutlet.data.examples import Examples
from nutlet.options import Count, Range
from nutlet.oracle import Access, Oracle

__all__ = ["JBDA", "moved", "value_range"]

SHORTER = 4
"""The clones between only show a direction: they are trained for so many times fewer steps."""


@register_attack
@dataclass(frozen=True, kw_only=True)
class JBDA(Attack):
    """Double what was asked about, round by round, with inputs moved along the clone's gradient (Papernot et al. 2017).

    ``x' = x + step * sign(d log p_y(x) / dx)``, where y is the victim's label of x and p the clone's probability. The
    sign of the step changes from round to round, first away from y (Papernot et al. 2016, arXiv:1605.07277, change it
    after several rounds). Steps towards another class, and several small ones, are those of Juuti et al. 2019 (PRADA,
    arXiv:1805.02628). The clones between are each trained from the one before, for a fraction of the steps; that of a
    budget is trained from the start, as long as a random thief's.

    Args:
        seeds_share: share of the queries of a budget that goes to random inputs of the transfer set.
        step: how far an input is moved at most, as a share of the range of values in the transfer set.
        steps: gradients taken on the way, each for an equal part of it.
        targeted: move towards a random class other than the victim's label.

    Raises:
        ConfigError: a value out of range.
    """

    seeds_share: Annotated[float, Range(0, 1, left_open=True, noun="a share")] = 0.1
    step: Annotated[float, Range(0, 1, left_open=True, noun="a share")] = 0.1
    steps: Count = 1
    targeted: bool = False

    use_when: ClassVar[str] = "few inputs at hand and many queries: more inputs are made along the clone's gradients"
    goal: ClassVar[Goal] = "clone"
    access: ClassVar[Access] = "labels"
    needs: ClassVar[tuple[str, ...]] = ("transfer", "surrogate")
    source: ClassVar[str] = "Papernot et al. 2017, arXiv:1602.02697"
    costly: ClassVar[bool] = True

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield a clone for each budget."""
        transfer, surrogate = required(knowledge)
        generator = torch.Generator().manual_seed(knowledge.seed)
        unused = torch.randperm(len(transfer), generator=generator)
        low, high = value_range(transfer)
        known = _Known(transfer.batch(unused[:0])[0], torch.empty(0, knowledge.classes))
        clone, away = None, True
        for budget in sorted(budgets):
            seeds = math.ceil(self.seeds_share * (budget - len(known.x)))
            known, unused = known.more(oracle, transfer.batch(unused[:seeds])[0]), unused[seeds:]
            while len(known.x) < budget:
                short = max(1, surrogate.steps(len(known.x)) // SHORTER)
                clone = surrogate.train(
                    known.examples, known.answers, seed=knowledge.seed + 1, steps=short, start=clone
                )
                chosen = torch.randperm(len(known.x), generator=generator)[: budget - len(known.x)]
                classes, step = known.answers[chosen].argmax(1), -self.step if away else self.step
                if self.targeted:
                    others = torch.randint(1, knowledge.classes, classes.shape, generator=generator)
                    classes, step = (classes + others) % knowledge.classes, self.step
                start = known.x[chosen]
                known = known.more(oracle, moved(clone, start, classes, low, high, step=step, steps=self.steps))
                away = not away
            clone = surrogate.train(known.examples, known.answers, seed=knowledge.seed, progress=knowledge.progress)
            yield AttackResult(queries=oracle.queries, clone=clone)


@dataclass(frozen=True, eq=False)
class _Known:
    """What was asked: normalised inputs, and the answers as targets."""

    x: Tensor
    answers: Tensor

    @property
    def examples(self) -> Examples:
        return Examples(self.x, torch.zeros(len(self.x), dtype=torch.long))

    def more(self, oracle: Oracle, x: Tensor) -> _Known:
        if len(x) == 0:
            return self
        return _Known(torch.cat([self.x, x]), torch.cat([self.answers, ask(oracle, x)]))


def value_range(examples: Examples) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest normalised value of each channel, in a shape that broadcasts to a batch.

    >>> low, high = value_range(Examples(torch.tensor([[0.0, 5.0], [1.0, 7.0]]), torch.tensor([0, 1])))
    >>> low, high
    (tensor([[0., 5.]]), tensor([[1., 7.]]))
    """
    over = [dim for dim in range(examples.x.ndim) if dim != 1]
    ends = [torch.stack([x.amin(over, keepdim=True), x.amax(over, keepdim=True)]) for x, _ in examples.batches()]
    return torch.stack([low for low, _ in ends]).amin(0), torch.stack([high for _, high in ends]).amax(0)


def moved(
    clone: nn.Module, x: Tensor, classes: Tensor, low: Tensor, high: Tensor, *, step: float, steps: int
) -> Tensor:
    """Return ``x`` moved along the signs of the gradients of ``log p_class(x)``, never out of the range.

    Args:
        clone: in evaluation mode; gives logits.
        x: ``(B, ...)``.
        classes: whose probability is to rise, ``(B,)``; it falls where ``step`` is negative.
        low: smallest values, broadcast to ``x``.
        high: largest values.
        step: the whole way, as a share of ``high - low``.
        steps: gradients taken on it.

    >>> x, classes = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
    >>> moved(nn.Identity(), x, classes, torch.zeros(1, 2), torch.tensor([[2.0, 1.0]]), step=-0.25, steps=1)
    tensor([[0.5000, 1.0000]])
    """
    place = next((weights.device for weights in clone.parameters()), x.device)
    parts = []
    for part, wanted in zip(torch.split(x, 256), torch.split(classes, 256), strict=True):
        for _ in range(steps):
            inputs = part.to(place).detach().requires_grad_()
            rows = clone(inputs).log_softmax(1).gather(1, wanted.to(place)[:, None])
            (gradient,) = torch.autograd.grad(rows.sum(), inputs)
            part = (part + step / steps * (high - low) * gradient.sign().to(part.device)).clamp(low, high)
        parts.append(part)
    return torch.cat(parts)
