"""The judge: intervals that hold what they promise, verdicts that follow from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from nutlet.auditing.claims import Row, decided, judged, sentence
from nutlet.auditing.scoring import (
    CloneHits,
    Difference,
    clone_hits,
    difference_where_wrong,
    over_seeds,
    paired_difference,
    queries_to,
    summary,
)
from nutlet.verdicts import Verdict


def test_hits_are_counted_against_file_original_and_truth() -> None:
    one_hot = torch.eye(3)
    file, original, labels = one_hot[[0, 1, 2, 0]], one_hot[[0, 1, 1, 1]], torch.tensor([0, 1, 1, 1])
    hits = clone_hits(one_hot[[0, 1, 2, 2]][None], file, labels, original)
    assert hits.file.tolist() == [[True, True, True, False]]
    assert hits.original is not None
    assert hits.original.tolist() == [[True, True, False, False]]
    assert hits.where_wrong.tolist() == [[True, False]]  # the file errs on the last two
    assert hits.score.tolist() == [[True, True, False, False]]
    assert clone_hits(one_hot[None], one_hot, torch.arange(3), None).original is None
    assert summary(clone_hits(one_hot[None], one_hot, torch.arange(3), None).where_wrong) is None


def releases(
    rng: np.random.Generator, seeds: int, examples: int = 800, between: float = 0.008, lost: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw hits of clones ``(seeds, E)`` before and after, with the variances of real ones: of most examples every seed
    is sure, and seeds differ by ``between``.
    """
    sure = rng.beta(2.0, 0.2, examples)
    before, after = (
        rng.random((seeds, examples)) < np.clip(sure + between * rng.standard_normal((seeds, 1)), 0, 1)
        for _ in range(2)
    )
    return before, after & (rng.random(after.shape) >= lost)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("between", [0.008, 0.05])
def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says(seeds: int, between: float) -> None:
    rng = np.random.default_rng(seeds)
    gaps = [paired_difference(*releases(rng, seeds, between=between)) for _ in range(400)]
    held = np.mean([abs(gap.value) <= gap.half() for gap in gaps])
    assert 0.925 < held < 0.985  # an interval that always holds it is too wide to tell anything


@pytest.mark.parametrize(("seeds", "power"), [(3, 0.4), (6, 0.9)])
def test_a_difference_of_two_and_a_half_points_is_found(seeds: int, power: float) -> None:
    rng = np.random.default_rng(seeds)
    gaps = [paired_difference(*releases(rng, seeds, 2000, lost=0.0275)) for _ in range(100)]
    assert np.mean([gap.half() < abs(gap.value) for gap in gaps]) >= power


def test_where_examples_dominate_three_seeds_find_most() -> None:
    rng = np.random.default_rng(0)
    gaps = [paired_difference(*releases(rng, 3, 2000, between=0.0, lost=0.0275)) for _ in range(100)]
    assert np.mean([gap.half() < abs(gap.value) for gap in gaps]) >= 0.7
    assert np.mean([gap.smallest() for gap in gaps]) <= 0.025


def test_a_paired_difference_sees_what_two_intervals_would_not() -> None:
    rng = np.random.default_rng(1)
    before = rng.random((3, 2000)) < 0.8
    after = before | (rng.random((3, 2000)) < 0.1)
    gap = paired_difference(before, after)
    assert gap.estimate.clear
    assert gap.value == pytest.approx(after.mean() - before.mean())
    alone = over_seeds(before), over_seeds(after)
    assert 2 * gap.half() < (alone[0].high - alone[0].low) + (alone[1].high - alone[1].low)


def test_shares_are_never_certain_and_numbers_may_be() -> None:
    same = np.ones((3, 100))
    assert paired_difference(same, same).half() > 0
    assert paired_difference(same, same, unit="h").half() == 0


def test_where_victims_are_wrong_on_other_examples_both_shares_keep_their_chance() -> None:
    rng = np.random.default_rng(3)
    held = []
    for _ in range(200):
        before, after = releases(rng, 5)
        sides = [CloneHits(hits, None, rng.random(800) < 0.15, hits) for hits in (before, after)]
        gap = difference_where_wrong(*sides)
        assert gap is not None
        held.append(abs(gap.value) <= gap.half())
    assert 0.92 < np.mean(held) < 0.995
    right = CloneHits(before, None, np.zeros(800, dtype=bool), before)
    assert difference_where_wrong(right, right) is None


def test_looking_up_to_three_times_errs_as_seldom_as_once() -> None:
    rng = np.random.default_rng(4)
    called = 0
    for _ in range(300):
        before, after = releases(rng, 10)
        gaps = [(paired_difference(before[:n], after[:n]), level) for n, level in ((3, 0.003), (6, 0.012), (10, 0.03))]
        called += any(gap.p < level for gap, level in gaps)
    assert called / 300 <= 0.06


def test_queries_are_interpolated_along_their_logarithm() -> None:
    assert queries_to(0.9, [10, 1000], [0.95, 0.99]) == 10
    assert queries_to(0.9, [10, 1000], [0.5, 0.89]) is None
    assert queries_to(0.9, [10, 100, 1000], [0.8, 0.85, 0.95]) == pytest.approx(316.2, abs=0.1)


def row(value: float, error: float = 0.004, *, primary: bool = True, **others: Any) -> Row:
    gap = Difference(value, error, 10.0, 2000, 3)
    return Row("m", "share", 0.5, 0.5 + value, gap, primary=primary, **others)


@pytest.mark.parametrize(
    ("asked", "verdict", "words"),
    [
        (row(0.03), "easier", "easier, by 3.0 points (2.1 to 3.9)"),
        (row(-0.03), "harder", "harder, by 3.0 points (2.1 to 3.9)"),
        (row(0.03, more_is="harder"), "harder", "harder, by 3.0 points (2.1 to 3.9)"),
        (row(0.001), "the same", "the same within 2.0 points: any difference is below 0.8 points"),
        (
            row(0.01, 0.02),
            "cannot tell",
            "cannot tell: between -3.5 points and +5.5 points; "
            "a difference of 6.2 points would probably have been seen",
        ),
    ],
)
def test_verdicts_say_how_much_they_could_have_seen(asked: Row, verdict: str, words: str) -> None:
    found = judged(asked, margin=0.02)
    assert (found.verdict, found.words) == (verdict, words)


def test_two_seeds_tell_nothing() -> None:
    found = judged(Row("m", "share", 0.5, 0.9, Difference(0.4, 0.001, 1.0, 2000, 2), primary=True), 0.02)
    assert (found.verdict, found.words) == (Verdict.CANNOT_TELL, "cannot tell from fewer than 3 seeds")


def test_lost_accuracy_is_no_protection() -> None:
    lost = Difference(-0.03, 0.004, 10.0, 2000)
    found = judged(row(-0.05, weaker=lost), 0.02)
    assert found.verdict is Verdict.ONLY_LOST_ACCURACY
    assert "no protection" in found.note
    assert judged(row(-0.05, weaker=Difference(0.0, 0.004)), 0.02).verdict is Verdict.HARDER
    words = sentence([{"claim": "harder to extract", "rows": [found.to_dict()]}])
    assert words == "Harder to extract: only as far as the file itself lost accuracy."


def test_claims_share_one_error_and_the_other_rows_have_no_vote() -> None:
    # Of three p-values of 0.02, 0.03 and 0.04 none is below a third of 5 %: nothing is clear (Holm 1979).
    errors = [abs(0.03 / stats.t.ppf(p / 2, 10)) for p in (0.02, 0.03, 0.04)]
    together = decided([[row(0.03, error), row(-0.2, primary=False)] for error in errors], 0.02)
    assert {rows[0].verdict for rows in together} == {Verdict.CANNOT_TELL}
    assert {rows[1].verdict for rows in together} == {Verdict.NO_VOTE}
    alone = decided([[row(0.03, errors[0])], [Row("bytes", "bytes", 10, 5), Row("late", "share", None, 0.5)]], 0.02)
    assert [found.verdict for rows in alone for found in rows] == ["easier", "no vote", "not measured"]


def test_the_sentence_goes_by_the_row_that_decides() -> None:
    rows = [{"primary": False, "verdict": "no vote", "words": "no vote"}]
    assert sentence([{"claim": "c", "rows": rows}]) == "C: not measured."
    rows.append({"primary": True, "verdict": "easier", "words": "easier, by 3.0 points (2.1 to 3.9)"})
    assert sentence([{"claim": "c", "rows": rows}]) == "C: no, easier, by 3.0 points (2.1 to 3.9)."
