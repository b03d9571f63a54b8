from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from nutlet.data.examples import Examples
from nutlet.errors import DataError
from nutlet.measurement.roc import (
    auc,
    blind_scores,
    claimable,
    curve,
    difference,
    roc,
    sequential,
    settled,
    tpr_at,
)


def drawn(shift: float, count: int = 400, seed: int = 0, digits: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of ``count`` candidates, every other a member, members higher by ``shift``."""
    members = np.arange(count) % 2 == 0
    scores = np.random.default_rng(seed).normal(size=count) + shift * members
    return (scores if digits is None else scores.round(digits)), members


def test_the_curve_of_four_candidates_by_hand() -> None:
    fpr, tpr = roc([0.9, 0.8, 0.8, 0.1], [True, True, False, False])
    # The two that score alike are let through together.
    assert fpr.tolist() == [0, 0, 0.5, 1]
    assert tpr.tolist() == [0, 0.5, 1, 1]
    # One pair of four is a tie: (1 + 1 + 1/2 + 1) / 4.
    assert auc([0.9, 0.8, 0.8, 0.1], [True, True, False, False]).value == 0.875


@pytest.mark.parametrize("digits", [None, 1, 0])
def test_area_and_curve_are_those_of_scikit_learn(digits: int | None) -> None:
    scores, members = drawn(0.7, digits=digits)
    assert auc(scores, members).value == pytest.approx(roc_auc_score(members, scores), abs=1e-12)
    fpr, tpr, _ = roc_curve(members, scores, drop_intermediate=False)
    ours = roc(scores, members)
    np.testing.assert_allclose(ours[0], fpr)
    np.testing.assert_allclose(ours[1], tpr)


def test_infinite_scores_and_tensors_are_scores() -> None:
    assert auc(torch.tensor([torch.inf, 0.0, -torch.inf]), torch.tensor([True, False, False])).value == 1


def test_the_interval_of_the_area_holds_its_95_percent() -> None:
    truth = 0.6382  # Phi(0.5 / sqrt 2), of two unit normals half a deviation apart
    hits = sum((found := auc(*drawn(0.5, count=120, seed=seed))).low <= truth <= found.high for seed in range(400))
    assert 0.91 <= hits / 400 <= 0.98


def test_scores_that_separate_all_are_not_certain() -> None:
    few, many = (auc(np.arange(n), np.arange(n) >= n // 2) for n in (10, 1000))
    assert few.value == many.value == 1
    assert few.low < 0.6 < 0.98 < many.low < 1
    assert auc(-np.arange(10), np.arange(10) >= 5).value == 0


def test_the_true_positive_rate_of_ten_candidates_by_hand() -> None:
    scores = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    members = [1, 1, 0, 1, 0, 1, 1, 0, 0, 0]
    # One of five others may pass: it stands third, and the next one fifth; three members lie above that.
    found = tpr_at(scores, members, 0.2)
    assert found.value == 0.6
    assert found.low < 0.6 < found.high


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_the_interval_of_the_true_positive_rate_holds_its_95_percent(rate: float) -> None:
    truth = {0.01: 0.0924, 0.05: 0.2595}[rate]  # 1 - Phi(z - 1)
    found = [tpr_at(*drawn(1.0, count=1000, seed=seed), rate) for seed in range(300)]
    assert sum(one.low <= truth <= one.high for one in found) / 300 >= 0.95
    assert np.mean([one.value for one in found]) == pytest.approx(truth, rel=0.1)


def test_rates_that_so_few_candidates_cannot_show_are_refused() -> None:
    scores, members = drawn(1.0, count=1000)
    assert claimable(members) == (0.01, 0.1)
    with pytest.raises(DataError, match=r"500 non-members cannot show .* 0\.001; expected a rate of at least 0\.002"):
        tpr_at(scores, members, 0.001)
    with pytest.raises(DataError, match="cannot show"):
        difference(scores, scores, members, fpr=0.001)
    for wrong in (0.0, -0.1, 1.5):
        with pytest.raises(DataError, match="above 0 and at most 1"):
            tpr_at(scores, members, wrong)
    assert tpr_at(scores, members, 1.0).value == 1


def test_a_rate_is_not_missed_by_rounding() -> None:
    assert 0.29 * 100 < 29  # of a hundred others, 29 may pass
    scores, members = np.arange(101), np.arange(101) == 71
    assert tpr_at(scores, members, 0.29).value == 1


def test_the_difference_of_two_models_is_paired() -> None:
    before, members = drawn(1.0)
    after = before + 0.1 * drawn(0.0, seed=1)[0] - 0.15 * members
    found = difference(before, after, members)
    assert found.value == pytest.approx(auc(after, members).value - auc(before, members).value)
    assert found.high < 0  # far tighter than the two intervals apart, which overlap
    assert auc(before, members).low < auc(after, members).high
    assert difference(before, after, members) == found
    same = difference(before, before, members)
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_one_member_is_too_few_for_a_difference() -> None:
    with pytest.raises(DataError, match="found 1 members and 2 others; expected at least two of each"):
        difference([3, 2, 1], [1, 2, 3], [True, False, False])


def test_the_difference_at_a_false_positive_rate() -> None:
    (before, members), (after, _) = drawn(0.3), drawn(2.0, seed=3)
    found = difference(before, after, members, fpr=0.05)
    assert found.value == pytest.approx(tpr_at(after, members, 0.05).value - tpr_at(before, members, 0.05).value)
    assert found.low > 0


def test_the_interval_of_the_difference_holds_its_95_percent() -> None:
    hits = []
    for seed in range(60):
        before, members = drawn(0.8, count=200, seed=seed)
        after = drawn(0.8, count=200, seed=1000 + seed)[0]
        found = difference(before, after, members, repeats=200)
        hits.append(found.low <= 0 <= found.high)
    assert 0.88 <= np.mean(hits) <= 1


def test_the_thinned_curve_keeps_its_shape() -> None:
    scores, members = drawn(1.0, count=20_000)
    fpr, tpr = curve(scores, members)
    assert len(fpr) <= 200
    assert (fpr[0], fpr[-1], tpr[-1]) == (1e-4, 1, 1)
    for at in (1e-3, 1e-2, 1e-1):
        assert tpr[np.searchsorted(fpr, at, side="right") - 1] == pytest.approx(
            tpr_at(scores, members, at).value, abs=0.01
        )
    fpr, tpr = curve([3, 2, 1, 0], [True, False, True, False])
    assert fpr.tolist() == [0.5, 1]


@pytest.mark.parametrize(
    ("scores", "members", "message"),
    [
        ([1.0, 2.0], [True], "one score each"),
        ([[1.0], [2.0]], [[True], [False]], "one score each"),
        ([1.0, float("nan")], [True, False], "1 of 2 scores are NaN"),
        ([1.0, 2.0], [True, True], "2 members among 2"),
        ([1.0, 2.0], [False, False], "0 members among 2"),
    ],
)
def test_what_is_no_scores_is_refused(scores: list[float], members: list[bool], message: str) -> None:
    for statistic in (auc, roc, curve):
        with pytest.raises(DataError, match=message):
            statistic(scores, members)  # type: ignore[operator]


def blind_pool(shift: float, features: int = 6) -> tuple[Examples, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    members = np.arange(600) % 2 == 0
    x = torch.randn(600, features, generator=generator)
    x[:, 0] += shift * torch.from_numpy(members)
    return Examples(x, torch.arange(600) // 2 % 3), members


@pytest.mark.parametrize("features", [6, 700])
def test_no_model_is_needed_where_the_split_itself_tells(features: int) -> None:
    pool, members = blind_pool(0.0, features)
    assert abs(auc(blind_scores(pool, members), members).value - 0.5) < 0.08
    pool, members = blind_pool(3.0 if features == 6 else 40.0, features)
    scores = blind_scores(pool, members)
    assert auc(scores, members).value > 0.9
    np.testing.assert_array_equal(scores, blind_scores(pool, members))


def test_few_candidates_have_blind_scores_too() -> None:
    pool, members = blind_pool(3.0)
    some = np.r_[0, 2, 1, 3, 5]
    assert blind_scores(pool.subset(torch.from_numpy(some)), members[some]).shape == (5,)


def test_models_are_added_until_they_are_enough() -> None:
    asked = []

    def score(count: int) -> np.ndarray:
        asked.append(count)
        # From 8 models on nothing changes any more.
        return drawn(0.25 * min(count, 8), count=2000)[0]

    scores, count = sequential(score, settled(drawn(0.0, count=2000)[1]))
    assert asked == [2, 4, 8, 16]
    assert count == 16
    np.testing.assert_array_equal(scores, drawn(2.0, count=2000)[0])
    assert sequential(score, lambda before, now: False, counts=(2, 4))[1] == 4
