"""How well scores tell members from others, how sure that is, and what so few candidates cannot show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
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
    "roc",
    "sequential",
    "settled",
    "tpr_at",
]

Array = npt.NDArray[Any]

_DIRECTIONS = 256
"""Numbers of an input that the blind baseline looks at."""
_PENALTY = 0.02
"""Of its squared weights, for each candidate."""


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
    from sklearn.metrics import roc_curve

    scores, members = _checked(scores, members)
    # Ranks in place of scores: scikit-learn refuses infinity, which a log-likelihood ratio may be.
    fpr, tpr, _ = roc_curve(members, stats.rankdata(scores, method="dense"), drop_intermediate=False)
    return fpr, tpr


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
    ranks = stats.rankdata(scores)
    # Of each member, the share of others that score lower; of each other candidate, the share of members above it.
    above = (ranks[members] - stats.rankdata(inside)) / len(outside)
    below = 1 - (ranks[~members] - stats.rankdata(outside)) / len(inside)
    value = float(above.mean())
    if value in (0.0, 1.0) or min(len(inside), len(outside)) < 2:
        fewer = min(len(inside), len(outside))
        return Estimate(value, *wilson(round(value * fewer), fewer), len(scores))
    variance = above.var(ddof=1) / len(inside) + below.var(ddof=1) / len(outside)
    low, high = stats.norm.interval(0.95, value, np.sqrt(variance))
    return Estimate(value, max(float(low), 0.0), min(float(high), 1.0), len(scores))


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
    fewest, most = stats.binom.ppf((0.0125, 0.9875), others, fpr)
    total = int(members.sum())
    least, found, greatest = (
        int(_found(scores[members], scores[~members], int(passed))) for passed in (fewest, _allowed(fpr, others), most)
    )
    return Estimate(found / total, wilson(least, total, 0.975)[0], wilson(greatest, total, 0.975)[1], len(scores))


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
        DataError: see :func:`roc` and :func:`tpr_at`; or a single member or other, from which nothing can be drawn.
    """
    (one, members_), (other, _) = _checked(first, members), _checked(second, members)
    if fpr is not None:
        tpr_at(one, members_, fpr)  # refuses what cannot be shown

    def figure(scores: Array, inside: Array, outside: Array) -> Array:
        if fpr is None:
            return _area(scores[inside], scores[outside])
        rate: Array = _found(scores[inside], scores[outside], _allowed(fpr, outside.shape[-1])) / inside.shape[-1]
        return rate

    # The bootstrap says which axis is that of the candidates: always the last.
    def gap(inside: Array, outside: Array, axis: int = -1) -> Array:
        return figure(other, inside, outside) - figure(one, inside, outside)

    candidates = np.flatnonzero(members_), np.flatnonzero(~members_)
    if min(map(len, candidates)) < 2:
        raise DataError(
            f"found {len(candidates[0])} members and {len(candidates[1])} others; expected at least two of each: "
            "the interval is that of draws from them"
        )
    value = float(gap(*candidates))
    low, high = stats.bootstrap(
        candidates, gap, n_resamples=repeats, batch=100, vectorized=True, method="percentile", rng=seed
    ).confidence_interval
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
        members: who is one, ``(N,)`` bool; at least two, and two others.
        seed: of the folds.
        folds: parts that are scored in turn; fewer where there are not as many members, or others.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.random_projection import GaussianRandomProjection

    rows = [torch.cat([each.flatten(1).float() for each in as_tensors(x).values()], 1) for x, _ in pool.batches()]
    x = torch.cat(rows).numpy().astype("float64")
    if x.shape[1] > _DIRECTIONS:  # a random projection keeps what is linear in few directions
        x = GaussianRandomProjection(_DIRECTIONS, random_state=seed).fit_transform(x)
    y = F.one_hot(pool.y, pool.classes) if is_classifier(pool.task) else pool.y.flatten(1).nan_to_num()
    x = np.hstack([x, y.numpy()])
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / (_PENALTY * len(x)), solver="newton-cholesky")
    )
    # As many members in each part: a part with fewer would teach the classifier to expect more of them in it.
    wanted = np.asarray(members, dtype=int)
    parts = StratifiedKFold(min(folds, *np.bincount(wanted)), shuffle=True, random_state=seed)
    scores: Array = cross_val_predict(classifier, x, wanted, cv=parts, method="decision_function")
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


def _area(inside: Array, outside: Array) -> Array:
    """Return the area under the curve ``(...)`` of members' scores ``(..., M)`` and others' ``(..., O)``."""
    count = inside.shape[-1]
    ranks = stats.rankdata(np.concatenate([inside, outside], axis=-1), axis=-1)[..., :count]
    area: Array = (ranks.mean(-1) - (count + 1) / 2) / outside.shape[-1]
    return area


def _allowed(fpr: float, others: int) -> int:
    return int(fpr * others + 1e-9)  # 0.29 * 100 is 28.999999999999996


def _found(inside: Array, outside: Array, allowed: int) -> Array:
    """Return how many members ``(..., M)`` score above all others ``(..., O)`` but ``allowed`` of them, ``(...)``."""
    if allowed == outside.shape[-1]:
        return np.full(inside.shape[:-1], inside.shape[-1])
    threshold = np.partition(outside, -allowed - 1, axis=-1)[..., -allowed - 1]
    found: Array = (inside > threshold[..., None]).sum(-1)
    return found
