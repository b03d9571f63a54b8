"""DataFree: a clone made without any inputs of one's own; a generator invents them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.attacks.extraction.queries import ask
from nutlet.attacks.extraction.selection import entropy
from nutlet.attacks.extraction.surrogate import Surrogate, fresh, soft_cross_entropy
from nutlet.data.examples import Examples
from nutlet.options import Count, Range
from nutlet.oracle import Access, Oracle
from nutlet.tasks.predict import evaluating

__all__ = ["DataFree", "generator_for"]

_NOISE = 64
"""Numbers that the generator starts from."""
_REPLAY = 3
"""Batches of old answers that the clone learns beside each batch of new ones."""
_LEAST = 1e-3
"""Probabilities below it count as it in a logarithm: rounded answers hold zeros."""


@register_attack
@dataclass(frozen=True, kw_only=True)
class DataFree(Attack):
    """Invent the inputs on which clone and victim differ (Truong et al. 2021, DFME; Kariyappa et al. 2021, MAZE).

    A generator and a clone take turns. The clone learns the answers to generated inputs. The generator then raises the
    disagreement ``L(x) = sum_c |log victim_c(x) - log clone_c(x)|``. The victim has no gradient to give, so that of
    ``L`` is estimated by forward differences along random unit vectors ``u``, up to a factor that Adam divides out::

        sum_u (L(x + step u) - L(x)) u

    Each of these inputs is a query. A label says too little for a difference: where no more is shown, the generator
    raises the clone's entropy and that of its mean output, by the clone's own gradient and without a query (a variant
    in the spirit of Sanyal et al. 2022, DFMS-HL, without their images). Every answer is kept, and the clone of a
    budget is trained on all of them from the start.

    Args:
        clone_steps: batches of new inputs that the clone learns in each turn.
        directions: vectors ``u`` for each input.
        step: length of a difference, for inputs whose features have a deviation of 1.

    Raises:
        ConfigError: a value out of range.
    """

    clone_steps: Count = 5
    directions: Count = 1
    step: Annotated[float, Range(0, 10, left_open=True, right_open=True)] = 0.1

    use_when: ClassVar[str] = "no inputs at hand at all; takes many more queries than any attack that has some"
    goal: ClassVar[Goal] = "clone"
    access: ClassVar[Access] = "labels"
    needs: ClassVar[tuple[str, ...]] = ("surrogate",)
    source: ClassVar[str] = (
        "Truong et al. 2021, arXiv:2011.14779; Kariyappa et al. 2021, arXiv:2005.03161; "
        "Sanyal et al. 2022, arXiv:2204.11022"
    )
    costly: ClassVar[bool] = True

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield a clone for each budget."""
        surrogate = knowledge.surrogate
        assert surrogate is not None
        duel = _Duel(oracle, knowledge, surrogate, max(budgets))
        for budget in sorted(budgets):
            with knowledge.progress.task("inventing inputs", total=budget - duel.count) as task:
                while duel.count < budget:
                    before = duel.count
                    duel.turn(self, budget)
                    task.advance(duel.count - before)
            examples = Examples(duel.x[: duel.count], torch.zeros(duel.count, dtype=torch.long))
            clone = surrogate.train(
                examples, duel.answers[: duel.count], seed=knowledge.seed, progress=knowledge.progress
            )
            yield AttackResult(queries=oracle.queries, clone=clone)


def generator_for(shape: tuple[int, ...], seed: int) -> nn.Module:
    """Return a generator ``(B, 64) -> (B, *shape)`` whose features have mean 0 and deviation 1 over a batch.

    Images come from a convnet that starts at a quarter of their side, anything else from one hidden layer.

    >>> [tuple(generator_for(shape, 0)(torch.randn(8, 64)).shape) for shape in ((10,), (3, 30, 32))]
    [(8, 10), (8, 3, 30, 32)]
    """
    if len(shape) != 3:
        features = math.prod(shape)
        return fresh(
            nn.Sequential(
                nn.Linear(_NOISE, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, features),
                nn.BatchNorm1d(features, affine=False), nn.Unflatten(1, shape),
            ), seed
        )  # fmt: skip
    channels, height, width = shape
    sides = [(-(-height // part), -(-width // part)) for part in (4, 2, 1)]
    layers: list[nn.Module] = [nn.Linear(_NOISE, 64 * math.prod(sides[0])), nn.Unflatten(1, (64, *sides[0]))]
    for side, inner, outer in zip(sides[1:], (64, 64), (64, 32), strict=True):
        layers += [nn.BatchNorm2d(inner), nn.ReLU(), nn.Upsample(side), nn.Conv2d(inner, outer, 3, 1, 1)]
    layers += [nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, channels, 3, 1, 1), nn.BatchNorm2d(channels, affine=False)]
    return fresh(nn.Sequential(*layers), seed)


@dataclass(eq=False)
class _Duel:
    """Generator and clone as they stand, and all answers so far: the first ``count`` rows of ``x`` and ``answers``."""

    oracle: Oracle
    knowledge: AttackerKnowledge
    surrogate: Surrogate
    most: int
    count: int = 0
    turns: int = 0
    x: Tensor = field(init=False)
    answers: Tensor = field(init=False)

    def __post_init__(self) -> None:
        seed, shape = self.knowledge.seed, self.knowledge.shape
        self.x, self.answers = torch.empty(self.most, *shape), torch.empty(self.most, self.knowledge.classes)
        self.random = torch.Generator().manual_seed(seed)
        self.generator, self.clone = generator_for(shape, seed), self.surrogate.model(seed).train()
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), lr=1e-3)
        self.clone_optimizer = torch.optim.AdamW(self.clone.parameters(), lr=self.surrogate.lr)

    def turn(self, attack: DataFree, budget: int) -> None:
        """Let the clone learn, then the generator; both stop at ``budget`` queries."""
        self.turns += 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.knowledge.seed * 100_003 + self.turns)  # for dropout
            for _ in range(attack.clone_steps):
                left = budget - self.count
                if left == 0:
                    return
                with torch.no_grad():
                    x = self.invent()[:left]
                self.learn(x, self.ask(x))
                for _ in range(_REPLAY):
                    old = torch.randint(self.count, (self.surrogate.batch_size,), generator=self.random)
                    self.learn(self.x[old], self.answers[old])
            self.challenge(attack, budget)

    def invent(self) -> Tensor:
        """Return one batch of inputs."""
        x: Tensor = self.generator(torch.randn(self.surrogate.batch_size, _NOISE, generator=self.random))
        return x

    def ask(self, x: Tensor) -> Tensor:
        """Return the victim's answers and keep them."""
        answers, rows = ask(self.oracle, x), slice(self.count, self.count + len(x))
        self.x[rows], self.answers[rows] = x, answers
        self.count += len(x)
        return answers

    def learn(self, x: Tensor, answers: Tensor) -> None:
        """Take one step of the clone."""
        if len(x) < 2:
            return  # too few for batch norm
        self.clone_optimizer.zero_grad()
        torch.autograd.backward(soft_cross_entropy(self.clone(x), answers))
        self.clone_optimizer.step()

    def challenge(self, attack: DataFree, budget: int) -> None:
        """Take one step of the generator; none where its queries are more than are left."""
        labels = self.oracle.answers.access == "labels"
        if not labels and self.surrogate.batch_size * (1 + attack.directions) > budget - self.count:
            return
        x = self.invent()
        self.generator_optimizer.zero_grad()
        with evaluating(self.clone):
            if labels:
                p = self.clone(x).softmax(1)
                torch.autograd.backward(-entropy(p).mean() - entropy(p.mean(0, keepdim=True)).sum())
            else:
                torch.autograd.backward(x, -self.slope(x.detach(), attack))
        self.generator_optimizer.step()

    def slope(self, x: Tensor, attack: DataFree) -> Tensor:
        """Return the estimated gradient of the disagreement at each of ``x``, up to a common factor."""
        here, slope = self.disagreement(x), torch.zeros_like(x)
        for _ in range(attack.directions):
            u = F.normalize(torch.randn(x.shape, generator=self.random).flatten(1)).view_as(x)
            there = self.disagreement(x + attack.step * u)
            slope += (there - here).view(-1, *[1] * (x.ndim - 1)) * u
        return slope

    def disagreement(self, x: Tensor) -> Tensor:
        """Return the L1 distance of the log-probabilities of clone and victim, ``(B,)``; asks the victim."""
        answers = self.ask(x)
        with torch.no_grad():
            own = self.clone(x).softmax(1)
        apart: Tensor = answers.clamp_min(_LEAST).log() - own.clamp_min(_LEAST).log()
        return apart.abs().sum(1)
