"""How well scores tell members from others, how sure that is, and what so few candidates cannot show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from nutlet.data.examples import Examples
from nutlet.errors import DataError
from nutlet.measurement import Estimate, wilson
from nutlet.tasks import is_classifier
from nutlet.tasks.inputs import as_tensors

__all__ = [
    "auc",
    "blind_scores",
    "claimable",
    "curve",
    "difference",
    "logistic",
    "roc",
    "sequential",
    "settled",
    "tpr_at",
]

Array = npt.NDArray[Any]

_Z = 1.959963984540054  # the 97.5 % point of the normal distribution: two-sided 95 %
_Z_HALF = 2.241402727604945  # the 98.75 % point: two such intervals hold together at 95 %
_DIRECTIONS = 256
"""Numbers of an input that the blind baseline looks at."""


def roc(scores: npt.ArrayLike, members: npt.ArrayLike) -> tuple[Array, Array]:
    """Return the receiver operating characteristic, false and true positive rates from ``(0, 0)`` to ``(1, 1)``.

    Args:
        scores: higher for a surer member, ``(N,)``; equal ones are one threshold.
        members: who is one, ``(N,)`` bool.

    Raises:
        DataError: the numbers differ, a score is NaN, or there are no members, or no others.

    >>> fpr, tpr = roc([3, 2, 1, 0], [True, False, True, False])
    >>> fpr.tolist(), tpr.tolist()
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])
    """
    scores, members = _checked(scores, members)
    order, last = _thresholds(scores)
    true = np.cumsum(members[order])[last]
    false = last + 1 - true
    return np.append(0, false) / false[-1], np.append(0, true) / true[-1]


def auc(scores: npt.ArrayLike, members: npt.ArrayLike) -> Estimate:
    """Return the area under the curve, with the 95 % interval of DeLong et al. (1988).

    The probability that a member scores higher than another candidate, ties counting half; half of the members' ranks
    and of the others' give its variance. Where the scores separate all, that variance is 0, and the interval is that of
    as many successes in a row as there are members or others, whichever are fewer.

    Raises:
        DataError: see :func:`roc`.

    >>> auc([3, 2, 1, 0], [True, False, True, False]).value
    0.75
    """
    scores, members = _checked(scores, members)
    inside, outside = scores[members], scores[~members]
    ranks = _midranks(scores)
    # Of each member, the share of others that score lower; of each other candidate, the share of members above it.
    above = (ranks[members] - _midranks(inside)) / len(outside)
    below = 1 - (ranks[~members] - _midranks(outside)) / len(inside)
    value = float(above.mean())
    if value in (0.0, 1.0) or min(len(inside), len(outside)) < 2:
        fewer = min(len(inside), len(outside))
        return Estimate(value, *wilson(round(value * fewer), fewer), len(scores))
    deviation = float(np.sqrt(above.var(ddof=1) / len(inside) + below.var(ddof=1) / len(outside)))
    return Estimate(value, max(value - _Z * deviation, 0.0), min(value + _Z * deviation, 1.0), len(scores))


def claimable(members: npt.ArrayLike, rates: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1)) -> tuple[float, ...]:
    """Return those false positive rates that so many candidates can show: at least one non-member is that share.

    >>> claimable([True] * 500 + [False] * 500)
    (0.01, 0.1)
    """
    others = int((~np.asarray(members, dtype=bool)).sum())
    return tuple(rate for rate in rates if rate * others >= 1)


def tpr_at(scores: npt.ArrayLike, members: npt.ArrayLike, fpr: float) -> Estimate:
    """Return the largest true positive rate whose false positive rate is at most ``fpr``, with a 95 % interval.

    The threshold is itself an estimate: the interval reaches from the fewest to the most non-members that the true one
    may have let through (a binomial interval), and takes Wilson's interval of the share of members at either end, each
    at 97.5 % so that both hold together at 95 %. It assumes no distribution of the scores.

    Raises:
        DataError: see :func:`roc`; or there are too few non-members for so small a rate.

    >>> tpr_at([3, 2, 1, 0], [True, False, True, False], fpr=0.5).value
    1.0
    """
    scores, members = _checked(scores, members)
    others = int((~members).sum())
    if not 0 < fpr <= 1:
        raise DataError(f"the false positive rate is {fpr}; expected a share above 0 and at most 1")
    if fpr * others < 1:
        raise DataError(
            f"{others:,} non-members cannot show a false positive rate of {fpr:g}; expected a rate of at least "
            f"{1 / others:.2g}, or {int(np.ceil(1 / fpr)):,} candidates that are no members"
        )
    order, last = _thresholds(scores)
    true = np.cumsum(members[order])[last]
    false = last + 1 - true

    def hits(passed: float) -> int:
        allowed = int((false <= passed).sum())
        return int(true[allowed - 1]) if allowed else 0

    fewest, most = _binomial_interval(others, fpr)
    total, value = int(members.sum()), hits(fpr * others)
    low, high = wilson(hits(fewest), total, _Z_HALF)[0], wilson(hits(most), total, _Z_HALF)[1]
    return Estimate(value / total, low, high, len(scores))


def difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    members: npt.ArrayLike,
    *,
    fpr: float | None = None,
    repeats: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Return how much more the second scores tell than the first, with the 95 % interval of a paired bootstrap.

    Both are scores of the same candidates, as of a model before and after compression. Members and others are drawn
    anew apart, the same ones for both. The interval is of these two models: two models trained alike differ too.

    Args:
        first: scores of one model, ``(N,)``.
        second: scores of the other.
        members: who is one, of both.
        fpr: compare true positive rates at this false positive rate; areas under the curve where not given.
        repeats: draws.
        seed: of the draws.

    Raises:
        DataError: see :func:`roc` and :func:`tpr_at`.
    """
    (one, members_), (other, _) = _checked(first, members), _checked(second, members)
    if fpr is not None:
        tpr_at(one, members_, fpr)  # refuses what cannot be shown
    random = np.random.default_rng(seed)

    def gap(weights: Array) -> Array:
        return _weighted(other, members_, weights, fpr) - _weighted(one, members_, weights, fpr)

    draws = []
    for start in range(0, repeats, 100):
        weights = np.empty((min(100, repeats - start), len(one)))
        for side in (members_, ~members_):
            count = int(side.sum())
            weights[:, side] = random.multinomial(count, np.full(count, 1 / count), size=len(weights))
        draws.append(gap(weights))
    low, high = np.quantile(np.concatenate(draws), (0.025, 0.975))
    value = float(gap(np.ones((1, len(one))))[0])
    return Estimate(value, min(float(low), value), max(float(high), value), len(one))


def curve(scores: npt.ArrayLike, members: npt.ArrayLike, points: int = 200) -> tuple[Array, Array]:
    """Return at most ``points`` points of the curve, evenly apart on a logarithmic axis of false positive rates.

    The first is at the smallest rate that can be shown, one non-member.
    """
    fpr, tpr = roc(scores, members)
    others = int((~np.asarray(members, dtype=bool)).sum())
    grid = np.geomspace(1 / others, 1, points)
    grid[-1] = 1  # and not 0.9999999
    kept = np.unique(np.searchsorted(fpr, grid * (1 + 1e-9), side="right") - 1)
    kept = kept[fpr[kept] > 0]
    return fpr[kept], tpr[kept]


def blind_scores(pool: Examples, members: npt.ArrayLike, seed: int = 0, folds: int = 5) -> Array:
    """Return scores of a classifier that sees candidates and no model at all (Das et al. 2024, arXiv:2406.16201).

    Logistic regression on inputs and labels is told the members of all folds but one and scores that one. It is a
    control: where it does better than chance, members differ from others as such, and no membership figure on this pool
    means anything.

    Args:
        pool: candidates ``(N,)``.
        members: who is one, ``(N,)`` bool.
        seed: of the folds.
        folds: parts that are scored in turn.
    """
    random = np.random.default_rng(seed)
    rows = [torch.cat([each.flatten(1).float() for each in as_tensors(x).values()], 1) for x, _ in pool.batches()]
    x = torch.cat(rows).numpy().astype("float64")
    if x.shape[1] > _DIRECTIONS:  # a random projection keeps what is linear in few directions
        x = x @ random.normal(size=(x.shape[1], _DIRECTIONS))
    y = F.one_hot(pool.y) if is_classifier(pool.task) else pool.y.flatten(1).nan_to_num()
    x = np.hstack([x, y.numpy()])
    x = np.hstack([(x - x.mean(0)) / (x.std(0) + 1e-6), np.ones((len(x), 1))])
    wanted = np.asarray(members, dtype="float64")
    part = random.permutation(len(x)) % folds
    scores = np.empty(len(x))
    for fold in range(folds):
        scores[part == fold] = x[part == fold] @ logistic(x[part != fold], wanted[part != fold])
    return scores


def sequential(
    score: Callable[[int], npt.ArrayLike],
    enough: Callable[[Array, Array], bool],
    counts: Sequence[int] = (2, 4, 8, 16, 32, 64),
) -> tuple[Array, int]:
    """Return the scores of the fewest shadow models that are enough, and their number.

    Shadow models are nested, so a larger number trains only what is missing.

    Args:
        score: scores with so many shadow models.
        enough: whether the scores of the number before and of this one settle the matter.
        counts: numbers of models to try, ascending.

    >>> sequential(lambda count: [count], lambda before, now: now[0] - before[0] > 3)
    (array([8]), 8)
    """
    before = np.asarray(score(counts[0]))
    for count in counts[1:]:
        now = np.asarray(score(count))
        if enough(before, now):
            return now, count
        before = now
    return before, counts[-1]


def settled(members: npt.ArrayLike, gain: float = 0.005) -> Callable[[Array, Array], bool]:
    """Return, for :func:`sequential`, whether the last models raised the area under the curve by at most ``gain``.

    Models are doubled each time, and each doubling gains less than the one before it.
    """
    return lambda before, now: auc(now, members).value - auc(before, members).value <= gain


def _checked(scores: npt.ArrayLike, members: npt.ArrayLike) -> tuple[Array, Array]:
    found, inside = np.asarray(scores), np.asarray(members, dtype=bool)
    if found.ndim != 1 or found.shape != inside.shape:
        raise DataError(
            f"found scores of shape {found.shape} for candidates of shape {inside.shape}; expected one score each"
        )
    if np.isnan(found).any():
        raise DataError(f"{int(np.isnan(found).sum())} of {len(found)} scores are NaN; expected numbers")
    if inside.all() or not inside.any():
        raise DataError(
            f"found {int(inside.sum())} members among {len(inside)} candidates; expected some members and some others"
        )
    return found, inside


def _thresholds(scores: Array) -> tuple[Array, Array]:
    """Return the order from the highest score down, and where in it each run of equal scores ends."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order]))
    return order, np.append(ends, len(scores) - 1)


def _midranks(values: Array) -> Array:
    """Return ranks from 1 up, the mean rank for equal values."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[where]
    return ranks


def _weighted(scores: Array, members: Array, weights: Array, fpr: float | None) -> Array:
    """Return area, or true positive rate at ``fpr``, of each row of weights ``(B, N)``."""
    order, last = _thresholds(scores)
    inside = np.cumsum(weights[:, order] * members[order], axis=1)[:, last]
    outside = np.cumsum(weights[:, order] * ~members[order], axis=1)[:, last]
    start = np.zeros((len(weights), 1))
    true, false = np.hstack([start, inside]) / inside[:, -1:], np.hstack([start, outside]) / outside[:, -1:]
    if fpr is None:
        area: Array = np.trapezoid(true, false, axis=1)
        return area
    # A share of whole numbers must not miss its bound by rounding.
    passed = (false <= fpr + 1e-12).sum(1) - 1
    at: Array = true[np.arange(len(true)), passed]
    return at


def _binomial_interval(trials: int, share: float) -> tuple[int, int]:
    """Return the 97.5 % central interval of the number of successes."""
    if share == 1:
        return trials, trials
    k = np.arange(trials)
    steps = np.log((trials - k) / (k + 1)) + np.log(share / (1 - share))
    cumulative = np.cumsum(np.exp(trials * np.log1p(-share) + np.append(0.0, np.cumsum(steps))))
    low, high = np.searchsorted(cumulative, (0.0125, 0.9875))
    return int(low), min(int(high), trials)


def logistic(x: Array, wanted: Array, penalty: float = 0.02, steps: int = 8) -> Array:
    """Return the weights of a logistic regression with a ridge penalty, ``(F,)``, by Newton's method.

    Args:
        x: features ``(N, F)``; a column of ones for an intercept.
        wanted: ones and zeros, ``(N,)``.
        penalty: of the squared weights, for each row.
        steps: of Newton's method.
    """
    weights = np.zeros(x.shape[1])
    ridge = penalty * len(x)
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (wanted - chance) - ridge * weights
        hessian = (x * (chance * (1 - chance))[:, None]).T @ x
        weights += np.linalg.solve(hessian + ridge * np.eye(len(weights)), gradient)
    return weights
