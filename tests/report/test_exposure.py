"""The grades of one file go by their stated thresholds, and a question that nobody tried is left out."""

from __future__ import annotations

from typing import Any

import pytest

from nutlet.report import exposure, summed_up
from report.audit_example import estimate, full_audit, reach, small_audit


def graded(audit: dict[str, Any]) -> dict[str, str]:
    return {entry["question"]: entry["grade"] for entry in exposure(audit)}


def test_only_what_was_tried_is_graded() -> None:
    assert list(graded(small_audit())) == ["copying by asking"]
    assert exposure({**small_audit(), "attacks": []}) == []
    assert summed_up([], "model.onnx") == "Nothing was measured."


@pytest.mark.parametrize(
    ("takes", "grade", "words"),
    [
        ({"value": 250.0, "low": None, "high": 250.0, "at_most": True}, "high", "takes at most 250 answers, 0.25 USD"),
        (reach(1000.0), "high", "takes 1,000 (900 to 1,200) answers, 1.00 USD"),
        (reach(1001.0), "medium", "takes 1,000 (900 to 1,200) answers, 1.00 USD"),
        ({**reach(3900.0), "high": None}, "medium", "takes 3,900 (3,500 to more than 4,000) answers, 3.90 USD"),
        (None, "low", "takes more than 4,000 answers"),
    ],
)
def test_a_copy_is_graded_by_the_answers_that_it_takes(takes: dict[str, Any] | None, grade: str, words: str) -> None:
    audit = full_audit()
    for attack in audit["attacks"]:
        for victim in attack["victims"]:
            if "queries_to" in victim:
                victim["queries_to"] = {"0.90": takes}
    entry = exposure(audit)[0]
    assert (entry["question"], entry["grade"]) == ("copying by asking", grade)
    assert words in entry["answer"]


@pytest.mark.parametrize(("auc", "grade"), [(0.52, "low"), (0.58, "medium"), (0.65, "high")])
def test_members_are_graded_by_the_lower_end(auc: float, grade: str) -> None:
    audit = full_audit()
    for attack in audit["attacks"]:
        for victim in attack["victims"]:
            if "auc" in victim:
                victim["auc"] = estimate(auc, 0.03)
    assert graded(audit)["telling who was in the training data"] == grade


def test_a_start_is_held_against_none_at_all() -> None:
    audit = full_audit()
    assert "reuse for another task" not in graded(audit)
    rows = audit["claims"][2]["rows"]
    rows.append({**rows[0], "measure": "the same from nothing", "primary": False, "before": None, "after": 0.55})
    assert graded(audit)["reuse for another task"] == "high"
    rows[-1]["after"] = 0.68
    assert graded(audit)["reuse for another task"] == "low"


def test_the_sentence_of_a_file_alone_names_the_grades() -> None:
    told = summed_up(exposure(full_audit()), "vendor.onnx")
    assert told.startswith("High risk of copying by asking, reading the file; medium risk of copying without asking, ")
    assert told.endswith("(ActiveThief) (vendor.onnx).")


def test_what_a_thief_has_without_asking_costs_nothing() -> None:
    audit = full_audit()
    for attack in audit["attacks"]:
        for victim in attack["victims"]:
            for point in victim.get("curve") or []:
                point["baseline_agreement"] = estimate(0.92)
    answer = exposure(audit)[0]["answer"]
    assert "agrees on 90 % takes no answer at all" in answer
    assert "agrees on 95 % takes more than 4,000 answers" in answer


def test_members_that_nobody_named_are_not_graded() -> None:
    audit = full_audit()
    audit["protocol"]["members"]["split_by_us"] = True
    assert graded(audit)["telling who was in the training data"] == "cannot tell"
    assert "no verdict on telling who" in summed_up(exposure(audit), "vendor.onnx")


def test_a_file_whose_weights_lie_open_is_the_copy() -> None:
    audit = full_audit()
    for attack in audit["attacks"]:
        for victim in attack["victims"] if attack["goal"] == "file" else ():
            items = [{"item": name, "found": True, "example": ""} for name in ("architecture", "weights")]
            victim.update(share=estimate(0.2), facts={"items": items})
    entry = next(entry for entry in exposure(audit) if entry["question"] == "reading the file")
    assert (entry["grade"], entry["answer"]) == (
        "high",
        "layers and weights lie open, so whoever has the file has the model (FileLeaks)",
    )
