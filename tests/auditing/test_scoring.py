"""The judge: intervals that hold what they promise, verdicts that follow from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nutlet.auditing.claims import judged, sentence
from nutlet.auditing.scoring import clone_hits, over_seeds, paired_difference, queries_to, summary
from nutlet.measurement import Estimate
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


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(seeds: int) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        # Both kinds of chance: how good a clone came out, and which examples were drawn.
        quality = np.clip(0.8 + 0.03 * rng.standard_normal(seeds), 0, 1)
        hits = rng.random((seeds, 400)) < quality[:, None]
        estimate = over_seeds(hits)
        held += estimate.low <= 0.8 <= estimate.high
    assert 0.93 < held / 300 <= 1


@pytest.mark.parametrize(("seeds", "quantile"), [(1, 1.959964), (2, 12.706205), (5, 2.776445), (40, 2.022691)])
def test_the_quantile_is_students_for_the_seeds(seeds: int, quantile: float) -> None:
    # Every seed right on one example more than the last: all variance but that of the examples is theirs.
    hits = np.arange(1000) < 500 + np.arange(seeds)[:, None]
    shares, chance = hits.mean(1), hits.mean(0)
    variance = chance.var(ddof=1) / 1000 + (shares.var(ddof=1) / seeds if seeds > 1 else 0)
    estimate = over_seeds(hits)
    assert estimate.high - estimate.value == pytest.approx(quantile * np.sqrt(variance), rel=1e-6)


def test_a_paired_difference_sees_what_two_intervals_would_not() -> None:
    rng = np.random.default_rng(1)
    before = rng.random((3, 2000)) < 0.8
    after = before | (rng.random((3, 2000)) < 0.1)
    gap = paired_difference(before, after)
    assert gap.clear
    assert gap.value == pytest.approx(after.mean() - before.mean())
    alone = over_seeds(before), over_seeds(after)
    assert gap.high - gap.low < (alone[0].high - alone[0].low) + (alone[1].high - alone[1].low)


def test_no_difference_is_not_called_one() -> None:
    rng = np.random.default_rng(2)
    called = sum(paired_difference(rng.random((3, 500)) < 0.8, rng.random((3, 500)) < 0.8).clear for _ in range(200))
    assert called / 200 < 0.08


def test_queries_are_interpolated_along_their_logarithm() -> None:
    assert queries_to(0.9, [10, 1000], [0.95, 0.99]) == 10
    assert queries_to(0.9, [10, 1000], [0.5, 0.89]) is None
    assert queries_to(0.9, [10, 100, 1000], [0.8, 0.85, 0.95]) == pytest.approx(316.2, abs=0.1)


@pytest.mark.parametrize(
    ("gap", "more_is", "verdict"),
    [
        (Estimate(0.02, 0.01, 0.03, 100), "easier", "easier"),
        (Estimate(-0.02, -0.03, -0.01, 100), "easier", "harder"),
        (Estimate(0.02, 0.01, 0.03, 100), "harder", "harder"),
        (Estimate(0.01, -0.01, 0.03, 100), "easier", "no measurable difference"),
    ],
)
def test_verdicts_follow_from_the_interval(gap: Estimate, more_is: str, verdict: str) -> None:
    assert judged("m", "share", 0.5, 0.5 + gap.value, gap, more_is=more_is).verdict == verdict  # type: ignore[arg-type]


def test_lost_accuracy_is_no_protection() -> None:
    gap, lost = Estimate(-0.05, -0.06, -0.04, 100), Estimate(-0.03, -0.04, -0.02, 100)
    row = judged("m", "share", 0.9, 0.85, gap, weaker=lost)
    assert row.verdict is Verdict.ONLY_LOST_ACCURACY
    assert "no protection" in row.note
    assert judged("m", "share", 0.9, 0.85, gap, weaker=Estimate(0, -0.01, 0.01, 100)).verdict is Verdict.HARDER
    words = sentence([{"claim": "harder to extract", "rows": [row.to_dict()]}])
    assert words == "Harder to extract: only as far as the file itself lost accuracy."


def test_the_sentence_says_mixed_where_measures_disagree() -> None:
    rows = [{"verdict": verdict} for verdict in ("harder", "easier", "not measured")]
    assert "mixed, 1 of 2 measures easier, 1 harder" in sentence([{"claim": "c", "rows": rows}])
    assert sentence([{"claim": "c", "rows": [rows[2]]}]) == "C: not measured."
