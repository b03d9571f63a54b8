"""What membership attacks share: asking about the pool once, and how confident an answer is in a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nutlet.attacks.base import AttackerKnowledge, AttackResult, ShadowModels
from nutlet.data.examples import Examples
from nutlet.errors import BudgetError
from nutlet.oracle import Disclosure, Oracle, as_probabilities, probabilities_of
from nutlet.tasks import CLASSIFICATION, Task, is_classifier

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
    """Return the answers ``(N, ...)`` to all inputs, one query each.

    A classifier that ends in a softmax shows probabilities as its logits; their logarithms are logits.
    """
    answers = torch.cat([oracle.query(x) for x, _ in inputs.batches(256)])
    if not is_classifier(oracle.task) or not oracle.answers.raw:
        return answers
    if as_probabilities(answers, oracle.outputs) is answers:
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


def as_shown(outputs: Tensor, shown: Disclosure, task: Task = CLASSIFICATION) -> Tensor:
    """Return outputs ``(N, ...)`` of one of the attacker's own models as the victim would show them.

    A shadow model that shows more than the victim would have other values for members and others than it has.
    """
    return outputs if shown.raw else shown.show(probabilities_of(outputs, task), task)


def confidence(answers: Tensor, targets: Tensor, shown: Disclosure, task: Task = CLASSIFICATION) -> Tensor:
    r"""Return how confident answers are in the targets, on the scale of logits (Carlini et al. 2022, arXiv:2112.03570).

    .. math:: \varphi = \log p_y - \log \sum_{c \ne y} p_c

    It is nearly normal over models, unlike the probability. The sum keeps the digits that ``1 - p_y`` would lose. Where
    classes do not exclude each other, :math:`\varphi = \log p - \log(1 - p)` with :math:`p = e^{-loss}`, which of a
    classifier is the same; of squared errors it is a likelihood of normal errors.
    What an oracle hides is spread evenly: of the top ``k`` the rest over the other classes, of rounded probabilities
    half of the last digit; a label alone counts as a probability of three quarters.

    Args:
        answers: as the oracle shows them: of classifiers ``(..., N, classes)``, of other tasks ``(N, ...)``.
        targets: ``(N, ...)``.
        shown: what the oracle shows.
        task: what answers and targets mean.

    Returns:
        ``(..., N)`` float64.

    >>> confidence(torch.tensor([[0.0, 2.0]]), torch.tensor([1]), Disclosure("logits"))
    tensor([2.], dtype=torch.float64)
    """
    if not is_classifier(task):
        return _likelihood(answers, targets, shown, task)
    answers = answers.double()
    at_label = targets.expand(answers.shape[:-1])[..., None]
    if shown.raw:
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


def _likelihood(answers: Tensor, targets: Tensor, shown: Disclosure, task: Task) -> Tensor:
    """Return the log-odds ``(N,)`` of ``exp(-loss)`` for answers ``(N, ...)``, by the loss of each example alone."""
    outputs = shown.restore(answers.double(), task)
    pairs = zip(torch.split(outputs, 1), torch.split(targets, 1), strict=True)
    loss = torch.stack([task.loss(*pair) for pair in pairs]).clamp_min(_SMALLEST)
    return -loss - (-torch.expm1(-loss)).log()


def shadow_confidence(
    shadows: ShadowModels, models: int, targets: Tensor, shown: Disclosure, task: Task = CLASSIFICATION
) -> tuple[Tensor, Tensor]:
    """Return :func:`confidence` of shadow models ``(models, N)`` and what each was trained on, ``(models, N)`` bool."""
    outputs, members = shadows(models)
    answers = (as_shown(of_one, shown, task) for of_one in outputs)
    return torch.stack([confidence(of_one, targets, shown, task) for of_one in answers]), members
