"""AdaptiveKnockoff: learn while asking which classes of the transfer set are worth asking about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.attacks.extraction.queries import QueriedSet, required
from nutlet.options import Range
from nutlet.oracle import Access, Oracle
from nutlet.tasks.predict import predict

__all__ = ["AdaptiveKnockoff", "rewards"]

_LEAST = 8
"""Inputs in a round, at least."""


@register_attack
@dataclass(frozen=True, kw_only=True)
class AdaptiveKnockoff(Attack):
    """Draw inputs by a policy over their own labels, rewarded by the answers (Orekondy et al. 2019, section 4.2).

    A gradient bandit: class ``z`` has a preference ``H_z`` and the policy is ``pi = softmax(H)``. Each answer to an
    input of class ``z`` brings a reward ``r``, and with ``N_z`` inputs of the class asked about so far::

        H <- H + r / N_z (e_z - pi)

    The reward is the mean of certainty, diversity and loss (:func:`rewards`), each less its mean and divided by its
    deviation so far. The paper updates after each answer; here inputs come in rounds, and the clone is trained a little
    after each. The clone of a budget is trained from the start, as long as Knockoff's.

    Args:
        rounds: updates from one budget to the next; fewer where a round would have less than 8 inputs.

    Raises:
        ConfigError: fewer than two rounds.
    """

    rounds: Annotated[int, Range(2)] = 20

    use_when: ClassVar[str] = "inputs of many kinds at hand, some of which have little to do with the victim's task"
    goal: ClassVar[Goal] = "clone"
    access: ClassVar[Access] = "labels"
    needs: ClassVar[tuple[str, ...]] = ("transfer", "surrogate")
    source: ClassVar[str] = "Orekondy et al. 2019, arXiv:1812.02766, section 4.2"
    costly: ClassVar[bool] = True

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield a clone for each budget."""
        transfer, surrogate = required(knowledge)
        random = torch.Generator().manual_seed(knowledge.seed)
        asked = QueriedSet.nothing(transfer)
        preferences, earned = torch.zeros(transfer.classes), torch.empty(0, 3)
        clone: nn.Module = surrogate.model(knowledge.seed)
        for budget in sorted(budgets):
            end = min(budget, len(transfer))
            size = max(_LEAST, (end - len(asked)) // self.rounds)
            while len(asked) < end:
                policy = preferences.softmax(0)
                asked = asked.more(oracle, draw(asked, policy, min(size, end - len(asked)), random))
                latest = slice(len(earned), len(asked))
                outputs = predict(clone, transfer.subset(asked.indices[latest]))
                earned = torch.cat([earned, rewards(asked.answers[latest], asked.answers.mean(0), outputs)])
                spread = earned.std(0, correction=0).clamp_min(1e-6)
                reward = ((earned[latest] - earned.mean(0)) / spread).mean(1)
                preferences = updated(preferences, transfer.y[asked.indices], reward)
                if len(asked) < end:
                    steps = max(1, surrogate.steps(len(asked)) // self.rounds)
                    seed = knowledge.seed + len(asked)
                    clone = surrogate.train(asked.examples, asked.answers, seed=seed, steps=steps, start=clone)
            clone = surrogate.train(asked.examples, asked.answers, seed=knowledge.seed, progress=knowledge.progress)
            yield AttackResult(queries=oracle.queries, clone=clone)


def draw(asked: QueriedSet, policy: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Return the indices of ``count`` inputs not asked about yet: a class by the policy, then any of its inputs.

    Args:
        asked: so far.
        policy: probability of each class, ``(classes,)``.
        count: at most as many as are left.
        random: draws.
    """
    left = asked.left
    labels = asked.transfer.y[left]
    share = policy.double()[labels] / labels.bincount(minlength=len(policy))[labels]
    # No class is given up for good: when all others are used up, its inputs are those that are left.
    return left[torch.multinomial(share.clamp_min(1e-9), count, generator=random)]


def rewards(answers: Tensor, mean: Tensor, outputs: Tensor) -> Tensor:
    """Return certainty, diversity and loss of each answer, ``(B, 3)``.

    Certainty is the margin between the two largest probabilities, diversity ``sum_c max(0, y_c - mean_c)``, loss the
    cross-entropy of the clone, ``-sum_c y_c log p_c`` (Orekondy et al. 2019, equations 3 to 5).

    Args:
        answers: ``y``, the victim's probabilities, ``(B, classes)``.
        mean: of all answers so far, ``(classes,)``.
        outputs: the clone's logits for the same inputs, ``(B, classes)``.

    >>> rewards(torch.tensor([[0.75, 0.25]]), torch.tensor([0.5, 0.5]), torch.zeros(1, 2))
    tensor([[0.5000, 0.2500, 0.6931]])
    """
    first, second = answers.topk(2, 1).values.unbind(1)
    diversity = (answers - mean).clamp_min(0).sum(1)
    return torch.stack([first - second, diversity, -(answers * outputs.log_softmax(1)).sum(1)], 1)


def updated(preferences: Tensor, labels: Tensor, reward: Tensor) -> Tensor:
    """Return the preferences after the latest rewards.

    Args:
        preferences: before, ``(classes,)``.
        labels: of all inputs asked about, in the order of asking, ``(N,)``.
        reward: of the last B of them, ``(B,)``.
    """
    latest = labels[len(labels) - len(reward) :]
    step = reward / labels.bincount(minlength=len(preferences))[latest]
    return preferences.index_add(0, latest, step) - step.sum() * preferences.softmax(0)
