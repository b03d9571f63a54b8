"""The judge: what a clone is worth, and whether two victims differ, over seeds and evaluation examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nutlet.measurement import Estimate

__all__ = ["CloneHits", "clone_hits", "over_seeds", "paired_difference", "queries_to", "summary"]

Hits = npt.NDArray[np.bool_]

# 97.5 % points of Student's t for 1 to 30 degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


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
    value, half = _interval(after.astype(np.float64) - before.astype(np.float64))
    return Estimate(value, value - half, value + half, before.shape[1])


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean of ``(seeds, E)`` and half the width of its 95 % interval."""
    seeds, examples = values.shape
    if examples == 0:
        return float("nan"), 0.0
    variance = float(values.mean(0).var(ddof=1)) / examples if examples > 1 else 0.0
    quantile = 1.96
    if seeds > 1:
        variance += float(values.mean(1).var(ddof=1)) / seeds
        quantile = _T[seeds - 2] if seeds - 2 < len(_T) else 1.96
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
