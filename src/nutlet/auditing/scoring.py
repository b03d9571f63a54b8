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
    "Difference",
    "Hits",
    "chance_agreement",
    "clone_hits",
    "difference_where_wrong",
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
        wrong: where the shipped file is wrong, ``(E,)`` bool; nowhere if the task does not tell right from wrong.
        score: how good its answers are, higher is better.
    """

    file: Hits
    original: Hits | None
    wrong: npt.NDArray[np.bool_]
    score: Hits

    @property
    def where_wrong(self) -> Hits:
        """How far it answers as the file does where that is wrong, ``(seeds, W)``: what shows copying."""
        return self.file[:, self.wrong]

    def joined(self, others: CloneHits) -> CloneHits:
        """Return the hits of these seeds and of ``others``."""
        original = None
        if self.original is not None and others.original is not None:
            original = np.concatenate([self.original, others.original])
        return CloneHits(
            np.concatenate([self.file, others.file]),
            original,
            self.wrong,
            np.concatenate([self.score, others.score]),
        )


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
        wrong=wrong,
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


@dataclass(frozen=True)
class Difference:
    """How much larger a figure of the file is than that of the original, and the chance in it.

    Args:
        value: after minus before.
        error: standard error.
        freedom: degrees of freedom of the error; infinite where it is known.
        examples: how many are behind it.
        seeds: how many clones are behind each side; None where it does not go by seeds.
        unit: ``share``, or that of a metric.
    """

    value: float
    error: float
    freedom: float = math.inf
    examples: int = 0
    seeds: int | None = None
    unit: str = "share"

    def half(self, level: float = 0.05) -> float:
        """Return half the width of the interval of confidence ``1 - level``."""
        return float(stats.t.ppf(1 - level / 2, self.freedom)) * self.error

    @property
    def estimate(self) -> Estimate:
        """It with its 95 % interval."""
        half = self.half()
        return Estimate(self.value, self.value - half, self.value + half, self.examples, self.unit)

    @property
    def p(self) -> float:
        """The probability of a difference as large where there is none (Student's t, two-sided)."""
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))

    def bound(self, level: float = 0.05) -> float:
        """Return what the true difference is below, either way (two one-sided tests, Schuirmann 1987)."""
        return abs(self.value) + self.half(2 * level)

    def smallest(self, level: float = 0.05, power: float = 0.8) -> float:
        """Return the difference that would be told from none with probability ``power``."""
        return float(stats.t.ppf(1 - level / 2, self.freedom) + stats.t.ppf(power, self.freedom)) * self.error


def over_seeds(hits: Hits) -> Estimate:
    """Return the mean of ``hits`` ``(seeds, E)`` with a 95 % interval over seeds and evaluation examples.

    Another seed gives another clone, and another draw of examples another share; see :func:`paired_difference`.

    >>> e = over_seeds(np.array([[True, False, True, True]] * 2))
    >>> e.value, e.low < 0.75 < e.high
    (0.75, True)
    """
    value, error, freedom = _crossed(hits.astype(np.float64), shares=True)
    half = Difference(value, error, freedom).half()
    seeds = tuple(float(share) for share in hits.mean(1))
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0), hits.shape[1], values=seeds)


def paired_difference(before: Hits, after: Hits, unit: str = "share") -> Difference:
    """Return how much larger the share of ``after`` is than that of ``before``, seed by seed and example by example.

    Seeds and examples are crossed random effects. With the variance of the means of rows over seeds, ``a``, that of the
    means of columns over examples, ``b``, and that of the residual, ``c``, which is in both, the variance is
    ``max(a + b - c, a, b)``, with the degrees of freedom of Satterthwaite (1946). Of shares, half an example more is
    never certain.

    Args:
        before: ``(seeds, E)``, the same seeds and examples as ``after``; an example with NaN in it does not count.
        after: ``(seeds, E)``.
        unit: ``share``, or that of the numbers.

    >>> same = np.array([[True, False], [False, True]])
    >>> paired_difference(same, same).value
    0.0
    """
    gaps = after.astype(np.float64) - before.astype(np.float64)
    gaps = gaps[:, ~np.isnan(gaps).any(0)]
    return Difference(*_crossed(gaps, shares=unit == "share"), gaps.shape[1], len(gaps), unit)


def difference_where_wrong(before: CloneHits, after: CloneHits) -> Difference | None:
    """Return the difference of the agreement where each victim is wrong, which are not the same examples.

    Each share is a ratio of sums over all examples; their difference is made linear in the examples (the delta method),
    so that both share their chance. None where a victim is never wrong.
    """
    counts = [int(hits.wrong.sum()) for hits in (before, after)]
    if 0 in counts:
        return None
    parts = []
    for hits, count in zip((before, after), counts, strict=True):
        parts.append(len(hits.wrong) / count * hits.wrong * (hits.file - hits.where_wrong.mean()))
    _, error, freedom = _crossed(parts[1] - parts[0], shares=False)
    error = math.hypot(error, 0.5 / counts[0], 0.5 / counts[1])
    value = float(after.where_wrong.mean() - before.where_wrong.mean())
    return Difference(value, error, freedom, min(counts), len(before.file))


def _crossed(values: npt.NDArray[np.float64], *, shares: bool) -> tuple[float, float, float]:
    """Return the mean of ``(seeds, E)``, its standard error, and the degrees of freedom of that."""
    seeds, examples = values.shape
    if examples == 0:
        return float("nan"), 0.0, math.inf
    mean, rows, columns = values.mean(), values.mean(1), values.mean(0)
    a = float(rows.var(ddof=1)) / seeds if seeds > 1 else 0.0
    b = float(columns.var(ddof=1)) / examples if examples > 1 else 0.0
    c = 0.0
    if seeds > 1 and examples > 1:
        rest = values - rows[:, None] - columns + mean
        c = float(np.square(rest).sum()) / ((seeds - 1) * (examples - 1)) / (seeds * examples)
    variance = max(a + b - c, a, b)
    spread = (a**2 / (seeds - 1) if seeds > 1 else 0.0) + (b**2 / (examples - 1) if examples > 1 else 0.0)
    freedom = variance**2 / spread if spread else math.inf
    floor = 1 / examples if shares else 0.0
    return float(mean), math.hypot(math.sqrt(variance), floor), freedom


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
    value, error, freedom = _crossed(scores, shares=task.unit == "%")
    half = Difference(value, error, freedom).half()
    low, high = sorted(metric_of(task, end) for end in (value - half, value + half))
    if task.unit == "%":
        low, high = max(low, 0.0), min(high, 1.0)
    means = tuple(metric_of(task, float(mean)) for mean in scores.mean(1))
    return Estimate(metric_of(task, value), low, high, scores.shape[1], unit_of(task), means)


def metric_difference(before: Hits, after: Hits, task: Task) -> Difference:
    """Return how much larger the metric of ``after`` is than that of ``before``; see :func:`paired_difference`."""
    gap = paired_difference(before, after, unit_of(task))
    return gap if task.higher_is_better else replace(gap, value=0.0 - gap.value)
