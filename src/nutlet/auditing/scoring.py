"""The judge: what a clone is worth, and whether two victims differ, over seeds and evaluation examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from nutlet.measurement import Estimate

__all__ = ["CloneHits", "Difference", "clone_hits", "over_seeds", "paired_difference", "queries_to", "summary"]

Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CloneHits:
    """What a clone got right on the evaluation examples, ``(seeds, E)`` bool each.

    Args:
        file: it answers as the shipped file does.
        original: it answers as the original does; None where there is none.
        where_wrong: it answers as the shipped file does, on the examples where that is wrong, ``(seeds, W)``: copying
            mistakes is what shows copying.
        label: it answers with the true label.
    """

    file: Hits
    original: Hits | None
    where_wrong: Hits
    label: Hits


@dataclass(frozen=True)
class Difference:
    """After minus before, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def clone_hits(
    clones: npt.NDArray[Any], file: npt.NDArray[Any], labels: npt.NDArray[Any], original: npt.NDArray[Any] | None
) -> CloneHits:
    """Compare clones with the victim, the original and the truth.

    Args:
        clones: outputs ``(seeds, E, classes)``.
        file: outputs of the shipped file ``(E, classes)``.
        labels: ``(E,)``.
        original: outputs of the original ``(E, classes)``.
    """
    chosen, victim = clones.argmax(2), file.argmax(1)
    wrong = victim != labels
    same: Hits = chosen == victim
    return CloneHits(
        file=same,
        original=None if original is None else chosen == original.argmax(1),
        where_wrong=same[:, wrong],
        label=chosen == labels,
    )


def over_seeds(hits: Hits) -> Estimate:
    """Return the mean of ``hits`` ``(seeds, E)`` with a 95 % interval over seeds and evaluation examples.

    Another seed gives another clone, and another draw of examples another share: both variances are added, and the
    quantile is Student's for the seeds, or the normal one where there is one seed.

    >>> e = over_seeds(np.array([[True, False, True, True]] * 2))
    >>> e.value, e.low < 0.75 < e.high
    (0.75, True)
    """
    value, half = _interval(hits.astype(np.float64))
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0), hits.shape[1])


def paired_difference(before: Hits, after: Hits) -> Difference:
    """Return how much larger the share of ``after`` is than that of ``before``, seed by seed and example by example.

    Args:
        before: ``(seeds, E)``, the same seeds and examples as ``after``.
        after: ``(seeds, E)``.

    >>> same = np.array([[True, False], [False, True]])
    >>> paired_difference(same, same)
    Difference(value=0.0, low=0.0, high=0.0)
    """
    value, half = _interval(after.astype(np.float64) - before.astype(np.float64))
    return Difference(value, value - half, value + half)


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


def summary(hits: Hits) -> dict[str, Any] | None:
    """Return :func:`over_seeds` as plain JSON, with the share of each seed; None where there are no examples."""
    if hits.shape[1] == 0:
        return None
    estimate = over_seeds(hits)
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "values": [float(share) for share in hits.mean(1)],
    }
