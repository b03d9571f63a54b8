"""GeneratorInversion: learn to turn answers back into inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.attacks.extraction.queries import QueriedSet
from nutlet.data.examples import Examples
from nutlet.options import Count, OpenShare
from nutlet.oracle import Access, Oracle
from nutlet.training.loop import Training, train_on

__all__ = ["GeneratorInversion"]

_HIDDEN, _BATCH = 256, 64
_LEAST = 1e-3
"""Smaller probabilities are cut to this: rounding hides them, and their logarithms would drown the others."""


@register_attack
@dataclass(frozen=True, kw_only=True)
class GeneratorInversion(Attack):
    """Train a network from the victim's answers to the inputs asked about, and give it sure answers (Yang et al. 2019).

    The inputs are a random part of the transfer set, which need not be of the victim's training data. What the network
    makes of the answer ``confidence`` for one class, and the rest spread over the others, is what that class looks
    like. It is a perceptron of two hidden layers that sees centred log probabilities and is trained on squared error.

    Args:
        steps: about how many batches of 64 the network is trained on.
        confidence: probability of the class in the answers that are turned back.

    Raises:
        ConfigError: a value out of range.
    """

    steps: Count = 3000
    confidence: OpenShare = 0.95

    use_when: ClassVar[str] = "answers only, and inputs of the same kind at hand: what each class looks like"
    goal: ClassVar[Goal] = "inversion"
    of_images: ClassVar[bool] = True
    access: ClassVar[Access] = "probabilities"
    needs: ClassVar[tuple[str, ...]] = ("transfer",)
    measure: ClassVar[str] = "reconstructed classes that are recognised"
    source: ClassVar[str] = "Yang et al. 2019, arXiv:1902.08552"
    costly: ClassVar[bool] = True

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield an input for each class, for each budget."""
        transfer = knowledge.transfer
        assert transfer is not None
        order = torch.randperm(len(transfer), generator=torch.Generator().manual_seed(knowledge.seed))
        asked = QueriedSet.nothing(transfer)
        for budget in sorted(budgets):
            asked = asked.more(oracle, order[len(asked) : budget])
            network = self._learn(asked, knowledge)
            others = (1 - self.confidence) / max(knowledge.classes - 1, 1)
            sure = torch.full((knowledge.classes, knowledge.classes), others).fill_diagonal_(self.confidence)
            with torch.no_grad():
                images: Tensor = network(features(sure))
            yield AttackResult(queries=oracle.queries, images=images)

    def _learn(self, asked: QueriedSet, knowledge: AttackerKnowledge) -> nn.Module:
        """Return the network that turns answers back, trained on those there are."""
        inputs = asked.examples
        numbered = Examples(features(asked.answers), torch.arange(len(asked)))
        size = min(_BATCH, len(asked))
        settings = Training(
            epochs=max(1, round(self.steps * size / len(asked))), lr=3e-3, batch_size=size, optimizer="adamw",
            weight_decay=0.01, precision="fp32",
        )  # fmt: skip

        def loss(x: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(outputs, inputs.batch(y.cpu())[0].to(outputs.device))

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(knowledge.seed)
            network = nn.Sequential(
                nn.Linear(knowledge.classes, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(),
                nn.Linear(_HIDDEN, math.prod(knowledge.shape)), nn.Unflatten(1, knowledge.shape),
            )  # fmt: skip
            train_on(
                network, numbered, settings, loss,
                seed=knowledge.seed, progress=knowledge.progress, title="training an inversion",
            )  # fmt: skip
        return network


def features(answers: Tensor) -> Tensor:
    """Return log probabilities ``(N, classes)``, each row less its mean: logits, up to what was cut off.

    >>> features(torch.tensor([[0.5, 0.5]]))
    tensor([[0., 0.]])
    """
    logs = answers.clamp_min(_LEAST).log()
    return logs - logs.mean(1, keepdim=True)
