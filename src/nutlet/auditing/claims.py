"""The three claims of compression against theft, each row a measured difference and a plain verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nutlet.attacks.base import Goal
from nutlet.auditing.scoring import Difference

__all__ = ["CLAIMS", "Row", "judged", "sentence"]

Verdict = Literal["harder", "easier", "no measurable difference", "not measured"]
CLAIMS = ("smaller attack surface", "harder to extract", "worth less to a thief")


@dataclass(frozen=True)
class Row:
    """One measure before and after.

    Args:
        measure: what was measured.
        unit: ``share``, ``bytes``, ``count``, ``queries``.
        before: figure of the original; None where it was not measured.
        after: figure of the file.
        difference: after minus before with its interval; None where there is none.
        verdict: whether theft became harder or easier.
        note: what a reader must know to read the verdict.
        goal: of the attacks that it measures; None where it is of no attack.
    """

    measure: str
    unit: str
    before: float | None
    after: float | None
    difference: Difference | None
    verdict: Verdict
    note: str = ""
    goal: Goal | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        gap = self.difference
        return {
            "measure": self.measure,
            "goal": self.goal,
            "unit": self.unit,
            "before": self.before,
            "after": self.after,
            "difference": None if gap is None else {"value": gap.value, "low": gap.low, "high": gap.high},
            "verdict": self.verdict,
            "note": self.note,
        }


def judged(
    measure: str,
    unit: str,
    before: float | None,
    after: float | None,
    difference: Difference | None = None,
    *,
    goal: Goal | None = None,
    more_is: Literal["easier", "harder"] = "easier",
    weaker: Difference | None = None,
    note: str = "",
) -> Row:
    """Return a row with its verdict.

    Args:
        measure: what was measured.
        unit: of the figures.
        before: of the original.
        after: of the file.
        difference: with an interval; without one the figures are exact (bytes, counts) and any difference counts.
        goal: of the attacks that it measures.
        more_is: what a larger figure means for theft.
        weaker: how much accuracy the file itself gained; where it clearly lost some, a difference that looks like
            protection goes with it and the note says so.
        note: beside the verdict.
    """
    verdict: Verdict = "not measured"
    if before is not None and after is not None:
        gap = difference or Difference(after - before, after - before, after - before)
        verdict = "no measurable difference"
        if gap.clear:
            grew = gap.value > 0
            verdict = more_is if grew else "harder" if more_is == "easier" else "easier"
        if verdict == "harder" and weaker is not None and weaker.high < 0:
            lost = "goes with the accuracy that the file itself lost: no protection"
            note = f"{lost}; {note}" if note else lost
    return Row(measure, unit, before, after, difference, verdict, note, goal)


def sentence(claims: Sequence[dict[str, Any]]) -> str:
    """Say in one sentence what compression did for each claim; where rows of a claim disagree, it says so.

    >>> row = {"verdict": "no measurable difference", "note": ""}
    >>> sentence([{"claim": "harder to extract", "rows": [row]}])
    'Harder to extract: no measurable difference.'
    """
    parts = []
    for claim in claims:
        found = [row["verdict"] for row in claim["rows"] if row["verdict"] != "not measured"]
        genuine = [
            row["verdict"] for row in claim["rows"] if row["verdict"] == "harder" and "no protection" not in row["note"]
        ]
        if not found:
            words = "not measured"
        elif "easier" in found and genuine:
            words = f"mixed, {found.count('easier')} of {len(found)} measures easier, {len(genuine)} harder"
        elif "easier" in found:
            words = f"no, {found.count('easier')} of {len(found)} measures became easier"
        elif genuine:
            words = f"yes by {len(genuine)} of {len(found)} measures"
        elif "harder" in found:
            words = "only as far as the file itself lost accuracy"
        else:
            words = "no measurable difference"
        parts.append(f"{claim['claim']}: {words}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else "Nothing was measured."
