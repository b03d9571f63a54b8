"""The judge: what a clone is worth, and whether two victims differ, over seeds and evaluation examples.

Everything is a mean of one number per example, which the task gives: how alike two answers are, or how good one is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from nutlet.measurement import Estimate
from nutlet.tasks import CLASSIFICATION, Task, is_classifier, metric_of

__all__ = [
    "CloneHits",
    "Hits",
    "chance_agreement",
    "clone_hits",
    "metric_difference",
    "metric_summary",
    "over_seeds",
    "paired_difference",
    "queries_to",
    "summary",
    "unit_of",
]

Hits = npt.NDArray[np.float64]
"""One number for each seed and evaluation example, ``(seeds, E)``."""

_GUESSES = 16
"""Answers of the victim that are tried as a guess, where answers are no single class."""


@dataclass(frozen=True, eq=False)
class CloneHits:
    """How a clone did on the evaluation examples, ``(seeds, E)`` each; of a classifier ones and zeros.

    Args:
        file: how far it answers as the shipped file does, 0 to 1.
        original: how far as the original does; None where there is none.
        where_wrong: how far as the shipped file, on the examples where that is wrong, ``(seeds, W)``: copying mistakes
            is what shows copying. Without examples where the task does not tell right from wrong.
        score: how good its answers are, higher is better.
    """

    file: Hits
    original: Hits | None
    where_wrong: Hits
    score: Hits


def clone_hits(
    clones: Tensor, file: Tensor, targets: Tensor, original: Tensor | None, task: Task = CLASSIFICATION
) -> CloneHits:
    """Compare clones with the victim, the original and the truth.

    Args:
        clones: outputs ``(seeds, E, ...)``.
        file: outputs of the shipped file ``(E, ...)``.
        targets: ``(E, ...)``.
        original: outputs of the original ``(E, ...)``.
        task: what they mean.
    """
    same = np.stack([task.agree(clone, file) for clone in clones])
    wrong = task.score(file, targets) < 1 if task.zero_one else np.zeros(len(file), bool)
    return CloneHits(
        file=same,
        original=None if original is None else np.stack([task.agree(clone, original) for clone in clones]),
        where_wrong=same[:, wrong],
        score=np.stack([task.score(clone, targets) for clone in clones]),
    )


def chance_agreement(outputs: Tensor, task: Task) -> float:
    """Return how far the victim's outputs ``(E, ...)`` agree with one answer that is given to every input.

    Of a classifier it is the most frequent class, else the best of some of the victim's own answers.
    """
    if is_classifier(task):
        return float(outputs.argmax(1).bincount().max() / len(outputs))
    guesses = outputs[torch.linspace(0, len(outputs) - 1, min(_GUESSES, len(outputs))).long()]
    return max(float(task.agree(guess.expand_as(outputs), outputs).mean()) for guess in guesses)


def over_seeds(hits: Hits) -> Estimate:
    """Return the mean of ``hits`` ``(seeds, E)`` with a 95 % interval over seeds and evaluation examples.

    Another seed gives another clone, and another draw of examples another share: both variances are added, and the
    quantile is Student's for the seeds, or the normal one where there is one seed.

    >>> e = over_seeds(np.array([[True, False, True, True]] * 2))
    >>> e.value, e.low < 0.75 < e.high
    (0.75, True)
    """
    value, half = _interval(hits.astype(np.float64))
    seeds = tuple(float(share) for share in hits.mean(1))
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0), hits.shape[1], values=seeds)


def paired_difference(before: Hits, after: Hits) -> Estimate:
    """Return how much larger the share of ``after`` is than that of ``before``, seed by seed and example by example.

    Args:
        before: ``(seeds, E)``, the same seeds and examples as ``after``.
        after: ``(seeds, E)``.

    >>> same = np.array([[True, False], [False, True]])
    >>> paired_difference(same, same).to_dict()
    {'value': 0.0, 'low': 0.0, 'high': 0.0}
    """
    gaps = after.astype(np.float64) - before.astype(np.float64)
    gaps = gaps[:, ~np.isnan(gaps).any(0)]
    value, half = _interval(gaps)
    return Estimate(value, value - half, value + half, gaps.shape[1])


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean of ``(seeds, E)`` and half the width of its 95 % interval."""
    seeds, examples = values.shape
    if examples == 0:
        return float("nan"), 0.0
    variance = float(values.mean(0).var(ddof=1)) / examples if examples > 1 else 0.0
    if seeds > 1:
        variance += float(values.mean(1).var(ddof=1)) / seeds
    quantile = float(stats.t.ppf(0.975, seeds - 1 if seeds > 1 else math.inf))
    return float(values.mean()), quantile * math.sqrt(variance)


def queries_to(share: float, queries: Sequence[int], values: Sequence[float]) -> float | None:
    """Return how many queries reach ``share``, between the measured budgets along the logarithm of the queries.

    None where no budget reached it; the smallest budget where that one did already.

    >>> queries_to(0.9, [100, 10_000], [0.8, 1.0])
    1000.0
    >>> queries_to(0.9, [100, 10_000], [0.8, 0.85]) is None
    True
    """
    if values[0] >= share:
        return float(queries[0])
    for left in range(len(queries) - 1):
        low, high = values[left], values[left + 1]
        if low < share <= high:
            part = (share - low) / (high - low)
            logs = math.log(queries[left]), math.log(queries[left + 1])
            return round(math.exp(logs[0] + part * (logs[1] - logs[0])), 1)
    return None


def summary(hits: Hits) -> Estimate | None:
    """Return :func:`over_seeds`, or None where there are no examples."""
    return over_seeds(hits) if hits.shape[1] else None


def unit_of(task: Task) -> str:
    """Return the unit of the metric in the words of a report: ``share`` is shown in per cent."""
    return "share" if task.unit == "%" else task.unit


def metric_summary(scores: Hits, task: Task) -> Estimate:
    """Return the metric of scores ``(seeds, E)`` with its 95 % interval.

    Examples without a target, whose score is NaN, do not count.

    >>> from nutlet.tasks import Regression
    >>> metric_summary(np.array([[-1.0, -1.0]]), Regression(unit="h"))
    Estimate(value=1.0, low=1.0, high=1.0, examples=2, unit='h', values=(1.0,))
    """
    scores = scores[:, ~np.isnan(scores).any(0)]
    value, half = _interval(scores)
    low, high = sorted(metric_of(task, end) for end in (value - half, value + half))
    if task.unit == "%":
        low, high = max(low, 0.0), min(high, 1.0)
    means = tuple(metric_of(task, float(mean)) for mean in scores.mean(1))
    return Estimate(metric_of(task, value), low, high, scores.shape[1], unit_of(task), means)


def metric_difference(before: Hits, after: Hits, task: Task) -> Estimate:
    """Return how much larger the metric of ``after`` is than that of ``before``; see :func:`paired_difference`."""
    gap = paired_difference(before, after)
    if task.higher_is_better:
        return gap
    return replace(gap, value=0.0 - gap.value, low=0.0 - gap.high, high=0.0 - gap.low)
