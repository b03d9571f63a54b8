"""How exposed one file is, by itself: a graded answer to each question that a thief would ask, by stated thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from nutlet.report.audited import best_clone, best_membership, last, ran, victims
from nutlet.report.figures import estimated, exact, percent, rate

__all__ = ["exposed", "exposure", "level_name", "reached", "summed_up"]

Grade = Literal["high", "medium", "low", "cannot tell"]
CHEAP = 1_000
"""Answers that nobody notices: a copy that takes no more is for the asking."""


def exposure(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the attacks say of the file that ships, whatever it came from: plain data for the key ``exposure``.

    A question that no attack was run for is left out.

    Args:
        audit: as schema.json describes it; ``exposure`` need not be there yet.
    """
    found = []
    for question, rule, answer in _QUESTIONS:
        told = answer(audit)
        if told is not None:
            grade, text = told
            found.append({"question": question, "grade": grade, "answer": text, "rule": rule})
    return found


def exposed(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """Return how exposed the file is by itself; audits of before that was asked have it worked out here."""
    found: list[dict[str, Any]] = audit["exposure"] if "exposure" in audit else exposure(audit)
    return found


def summed_up(exposed: list[dict[str, Any]], name: str) -> str:
    """Return the verdict of a file that was audited alone, in one sentence.

    >>> summed_up([{"question": "copying by asking", "grade": "high", "answer": "a few answers do"}], "model.onnx")
    'High risk of copying by asking: a few answers do (model.onnx).'
    """
    if not exposed:
        return "Nothing was measured."
    parts = []
    for grade in ("high", "medium", "low", "cannot tell"):
        asked = [entry["question"] for entry in exposed if entry["grade"] == grade]
        if asked:
            risk = f"{grade} risk of" if grade != "cannot tell" else "no verdict on"
            parts.append(f"{risk} {', '.join(asked)}")
    text = (
        f"{'; '.join(parts)}: {exposed[0]['answer']} ({name})."
        if len(parts) == 1
        else (f"{'; '.join(parts)}. {exposed[0]['answer'][:1].upper()}{exposed[0]['answer'][1:]} ({name}).")
    )
    return text[0].upper() + text[1:]


def reached(reach: dict[str, Any] | None, largest: int) -> str:
    """Return how many answers a level of agreement takes, in words.

    >>> reached({"value": 276.4, "low": 244.1, "high": None, "at_most": False}, 4000)
    '280 (240 to more than 4,000)'
    >>> reached({"value": 250.0, "low": None, "high": 250.0, "at_most": True}, 4000), reached(None, 4000)
    ('at most 250', 'more than 4,000')
    """
    if reach is None:
        return f"more than {exact(largest)}"
    if reach["at_most"]:
        return f"at most {exact(round(reach['value']))}"
    value, low, high = (None if reach[end] is None else _two_digits(reach[end]) for end in ("value", "low", "high"))
    assert value is not None
    if value == low == high:
        return exact(value)
    below = "fewer" if low is None else exact(low)
    return f"{exact(value)} ({below} to {f'more than {exact(largest)}' if high is None else exact(high)})"


def level_name(text: str) -> str:
    """Return ``0.90`` as ``90 %``; a name that is no number stays as it is.

    >>> level_name("0.90")
    '90 %'
    """
    share = _number(text)
    return rate(share) if math.isfinite(share) else text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf


def _two_digits(value: float) -> int:
    return round(float(f"{value:.1e}"))


def _copying(audit: dict[str, Any]) -> tuple[Grade, str] | None:
    attack = best_clone(audit)
    if attack is None:
        return None
    victim = victims(audit, attack)["after"]
    largest, price = max(audit["protocol"]["budgets"], default=0), audit["protocol"]["price"]
    parts = []
    free = ((last(victim) or {}).get("baseline_agreement") or {}).get("value", 0.0)
    for level, reach in sorted((victim.get("queries_to") or {}).items()):
        if _number(level) <= free:
            parts.append(f"a copy that agrees on {level_name(level)} takes no answer at all, only inputs and labels")
            continue
        money = ""
        if reach is not None and price is not None:
            spent = price["per_query"] * reach["value"]
            money = f", {spent:.2f} {price['currency']}" if spent >= 0.01 else f", below 0.01 {price['currency']}"
        parts.append(f"a copy that agrees on {level_name(level)} takes {reached(reach, largest)} answers{money}")
    reaches = list((victim.get("queries_to") or {}).values())
    point = last(victim)
    if not parts and point is not None:
        parts.append(f"a copy agrees on {percent(point['agreement']['value'])} after {exact(point['queries'])} answers")
    first = reaches[0] if reaches else None
    grade: Grade = "low" if first is None else "high" if first["value"] <= CHEAP else "medium"
    return grade, f"{'; '.join(parts)} ({attack['name']})"


def _without_asking(audit: dict[str, Any]) -> tuple[Grade, str] | None:
    attack = best_clone(audit)
    point = last(victims(audit, attack)["after"]) if attack else None
    alone = (point or {}).get("baseline_agreement")
    if not alone:
        return None
    value = alone["value"]
    grade: Grade = "high" if value >= 0.9 else "medium" if value >= 0.7 else "low"
    return grade, f"the same thief who never asks agrees with it on {estimated(alone)} of inputs"


def _members(audit: dict[str, Any]) -> tuple[Grade, str] | None:
    attack = best_membership(audit)
    auc = victims(audit, attack)["after"].get("auc") if attack else None
    if attack is None or not auc:
        return None
    if (audit["protocol"]["members"] or {}).get("split_by_us"):
        return "cannot tell", "nobody said which examples the model was trained on: name others with --test"
    surely = auc["value"] if auc["low"] is None else auc["low"]
    grade: Grade = "high" if surely > 0.6 else "medium" if surely > 0.5 else "low"
    ends = "" if auc["low"] is None else f" ({auc['low']:.3f} to {auc['high']:.3f})"
    return grade, f"members are told from others with an AUC of {auc['value']:.3f}{ends} ({attack['name']})"


def _reading(audit: dict[str, Any]) -> tuple[Grade, str] | None:
    shares = [
        (share["value"], attack["name"])
        for attack in ran(audit, "file")
        if (share := victims(audit, attack)["after"].get("share"))
    ]
    if not shares:
        return None
    value, name = max(shares)
    items = {
        item["item"]: item["found"]
        for attack in ran(audit, "file")
        for item in (victims(audit, attack)["after"].get("facts") or {}).get("items") or []
        if isinstance(item, dict) and {"item", "found"} <= set(item)
    }
    if items.get("weights") and items.get("architecture"):
        return "high", f"layers and weights lie open, so whoever has the file has the model ({name})"
    grade: Grade = "high" if value >= 0.5 else "medium" if value > 0.1 else "low"
    return grade, f"of what a file may give away, {percent(value)} can be read in this one ({name})"


def _start(audit: dict[str, Any]) -> tuple[Grade, str] | None:
    rows = [row for claim in audit["claims"] for row in claim["rows"] if row["goal"] == "reuse"]
    started = [row["after"] for row in rows if row["primary"] and row["after"] is not None]
    nothing = [row["after"] for row in rows if not row["primary"] and row["before"] is None]
    if not started or not nothing:
        return None
    lead = started[0] - nothing[0]
    grade: Grade = "high" if lead >= 0.1 else "medium" if lead >= 0.03 else "low"
    return grade, (
        f"with few labels a new task is learned to {percent(started[0])} from it, to {percent(nothing[0])} from nothing"
    )


_QUESTIONS: tuple[tuple[str, str, Callable[[dict[str, Any]], tuple[Grade, str] | None]], ...] = (
    (
        "copying by asking",
        f"high: {CHEAP:,} answers or fewer buy a copy that agrees on 90 %; low: the largest budget does not",
        _copying,
    ),
    (
        "copying without asking",
        "high: a thief who never asks agrees on 90 %; low: on less than 70 %",
        _without_asking,
    ),
    (
        "telling who was in the training data",
        "high: the interval of the AUC (0.5 is guessing) lies above 0.6; low: it holds 0.5",
        _members,
    ),
    (
        "reading the file",
        "high: layers and weights lie open, or half of a fixed list can be read in the file; low: a tenth or less",
        _reading,
    ),
    (
        "reuse for another task",
        "high: 10 points better than from nothing; low: less than 3 points",
        _start,
    ),
)
