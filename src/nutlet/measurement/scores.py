"""Means of one number per example, and of differences between two models, each with a 95 % interval."""

from __future__ import annotations

import numpy as np
from scipy import stats

from nutlet.errors import DataError
from nutlet.measurement.intervals import Estimate, difference, wilson
from nutlet.tasks.base import Scores

__all__ = ["lost_score", "mean_agreement", "mean_score"]

_LEVEL = 0.95
_RESAMPLES = 2000
_MOST_RESAMPLED = 20_000
"""Examples above which the mean is normal enough, and the bootstrap would only take time."""


def mean_score(scores: Scores, *, zero_one: bool) -> Estimate:
    """Return the mean of scores ``(N,)``, with Wilson's interval where they are 0 or 1, else :func:`mean_of`."""
    _check(scores)
    if zero_one:
        hits = int(scores.sum())
        return Estimate(hits / len(scores), *wilson(hits, len(scores)), len(scores))
    return mean_of(scores)


def lost_score(scores: Scores, others: Scores, *, zero_one: bool) -> Estimate:
    """Return how much smaller the mean of ``scores`` is than that of ``others``, on the same examples ``(N,)``.

    The interval is paired: Newcombe's where scores are 0 or 1, else that of the mean of the differences.
    """
    _check(scores)
    if zero_one:
        return difference(scores > 0.5, others > 0.5)
    return mean_of(others - scores)


def mean_agreement(agreements: Scores, *, zero_one: bool) -> Estimate:
    """Return the mean of agreements ``(N,)`` in [0, 1], with an interval that stays there."""
    found = mean_score(agreements, zero_one=zero_one)
    return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0), found.examples)


def mean_of(values: Scores) -> Estimate:
    """Return the mean of ``values`` ``(N,)`` with the wider of two 95 % intervals.

    Student's t (1908) trusts the mean to be normal, the bootstrap (BCa: Efron 1987) the sample to look like the
    population: of few skewed values the one is wrong, of very few the other.

    >>> found = mean_of(np.array([0.0, 1.0, 2.0, 3.0]))
    >>> f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
    '1.50 [-0.55, 3.55]'
    """
    _check(values)
    n, mean = len(values), float(values.mean())
    if n < 2 or np.ptp(values) == 0:
        return Estimate(mean, mean, mean, n)
    low, high = stats.t.interval(_LEVEL, n - 1, loc=mean, scale=stats.sem(values))
    if n <= _MOST_RESAMPLED:
        # In batches: all resamples of many examples at once would fill the memory.
        options = {"n_resamples": _RESAMPLES, "confidence_level": _LEVEL, "random_state": 0, "batch": 100}
        other = stats.bootstrap((values,), np.mean, method="BCa" if n > 2 else "percentile", **options)
        ends = other.confidence_interval
        low, high = np.nanmin([low, ends.low]), np.nanmax([high, ends.high])
    return Estimate(mean, float(low), float(high), n)


def _check(scores: Scores) -> None:
    if not len(scores) or bool(np.isnan(scores).any()):
        raise DataError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} examples have no score; expected a target for each: leave "
            "those without one out"
        )
