"""What membership attacks share: asking about the pool once, and how confident an answer is in a label."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nutlet.attacks.base import AttackerKnowledge, AttackResult, ShadowModels
from nutlet.data.examples import Examples
from nutlet.errors import BudgetError
from nutlet.oracle import Disclosure, Oracle, as_probabilities

__all__ = [
    "answers_to",
    "as_shown",
    "check_budget",
    "confidence",
    "of_pool",
    "scored_once",
    "shadow_confidence",
]

_SMALLEST = 1e-30
"""The least that a probability of float32 is taken for, where it is 0."""
_LARGEST = 1e4
"""The largest confidence that logits are taken for."""


def of_pool(knowledge: AttackerKnowledge) -> Examples:
    """Return the candidates, which every membership attack needs."""
    assert knowledge.pool is not None
    return knowledge.pool


def check_budget(queries: int, budgets: Sequence[int]) -> None:
    """Raise BudgetError, before anything is sent, unless one of ``budgets`` allows so many queries."""
    if max(budgets) < queries:
        raise BudgetError(
            f"the largest budget is {max(budgets):,} queries; expected at least {queries:,}, one for each input that "
            "this attack asks about: raise the budget, or give fewer candidates"
        )


def answers_to(oracle: Oracle, inputs: Examples) -> Tensor:
    """Return the answers ``(N, classes)`` to all inputs, one query each.

    A victim that ends in a softmax shows probabilities as its logits; their logarithms are logits.
    """
    answers = torch.cat([oracle.query(x) for x, _ in inputs.batches(256)])
    if oracle.answers.kind == "logits" and as_probabilities(answers, oracle.outputs) is answers:
        return answers.clamp_min(_SMALLEST).log()
    return answers


def scored_once(
    scores: Callable[[Tensor, Disclosure, AttackerKnowledge], Tensor],
    oracle: Oracle,
    knowledge: AttackerKnowledge,
    budgets: Sequence[int],
) -> AttackResult:
    """Ask about the whole pool once, and return the loot that ``scores`` makes of the answers."""
    pool = of_pool(knowledge)
    check_budget(len(pool), budgets)
    answers = answers_to(oracle, pool)
    return AttackResult(queries=oracle.queries, scores=scores(answers, oracle.answers, knowledge))


def as_shown(logits: Tensor, shown: Disclosure) -> Tensor:
    """Return logits ``(..., classes)`` of the attacker's own models as the victim would show them.

    A shadow model that shows more than the victim would have other values for members and others than it has.
    """
    if shown.kind == "logits":
        return logits
    rows = logits.reshape(-1, logits.shape[-1])
    return shown.show(rows.softmax(1)).reshape(logits.shape)


def confidence(answers: Tensor, labels: Tensor, shown: Disclosure) -> Tensor:
    r"""Return how confident answers are in the labels, on the scale of logits (Carlini et al. 2022, arXiv:2112.03570).

    .. math:: \varphi = \log p_y - \log \sum_{c \ne y} p_c

    It is nearly normal over models, unlike the probability. The sum keeps the digits that ``1 - p_y`` would lose.
    What an oracle hides is spread evenly: of the top ``k`` the rest over the other classes, of rounded probabilities
    half of the last digit; a label alone counts as a probability of three quarters.

    Args:
        answers: as the oracle shows them, ``(..., N, classes)``.
        labels: ``(N,)``.
        shown: what the oracle shows.

    Returns:
        ``(..., N)`` float64.

    >>> confidence(torch.tensor([[0.0, 2.0]]), torch.tensor([1]), Disclosure("logits"))
    tensor([2.], dtype=torch.float64)
    """
    answers = answers.double()
    at_label = labels.expand(answers.shape[:-1])[..., None]
    if shown.kind == "logits":
        own = answers.gather(-1, at_label)[..., 0]
        # A logit may be minus infinity, and evidence of infinity is none.
        return (own - answers.scatter(-1, at_label, -torch.inf).logsumexp(-1)).clamp(-_LARGEST, _LARGEST)
    if shown.kind == "top-k":
        hidden = answers == 0
        rest = (1 - answers.sum(-1, keepdim=True)).clamp_min(0) / hidden.sum(-1, keepdim=True).clamp_min(1)
        answers = torch.where(hidden, rest, answers)
    least = {"labels": 0.25, "rounded": 0.5 * 10.0**-shown.digits}.get(shown.kind, _SMALLEST)
    own = answers.gather(-1, at_label)[..., 0]
    others = answers.scatter(-1, at_label, 0.0).sum(-1)
    return own.clamp(least, 1 - least).log() - others.clamp(least, 1 - least).log()


def shadow_confidence(shadows: ShadowModels, models: int, labels: Tensor, shown: Disclosure) -> tuple[Tensor, Tensor]:
    """Return :func:`confidence` of shadow models ``(models, N)`` and what each was trained on, ``(models, N)`` bool."""
    logits, members = shadows(models)
    return confidence(as_shown(logits, shown), labels, shown), members
