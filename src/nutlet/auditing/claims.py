"""The three claims of compression against theft, each row a measured difference and a plain verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nutlet.attacks.base import Goal
from nutlet.measurement import Estimate
from nutlet.verdicts import Verdict

__all__ = ["CLAIMS", "Row", "judged", "sentence"]

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
    difference: Estimate | None
    verdict: Verdict
    note: str = ""
    goal: Goal | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "measure": self.measure,
            "goal": self.goal,
            "unit": self.unit,
            "before": self.before,
            "after": self.after,
            "difference": None if self.difference is None else self.difference.to_dict(),
            "verdict": self.verdict.value,
            "note": self.note,
        }


def judged(
    measure: str,
    unit: str,
    before: float | None,
    after: float | None,
    difference: Estimate | None = None,
    *,
    goal: Goal | None = None,
    more_is: Literal["easier", "harder"] = "easier",
    weaker: Estimate | None = None,
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
            protection goes with it, and the verdict and the note say so.
        note: beside the verdict.
    """
    verdict = Verdict.NOT_MEASURED
    if before is not None and after is not None:
        gap = difference or Estimate(after - before, after - before, after - before, 0)
        verdict = Verdict.NO_DIFFERENCE
        if gap.clear:
            verdict = Verdict.EASIER if (gap.value > 0) == (more_is == "easier") else Verdict.HARDER
        if verdict is Verdict.HARDER and weaker is not None and weaker.high < 0:
            verdict = Verdict.ONLY_LOST_ACCURACY
            lost = "goes with the accuracy that the file itself lost: no protection"
            note = f"{lost}; {note}" if note else lost
    return Row(measure, unit, before, after, difference, verdict, note, goal)


def sentence(claims: Sequence[dict[str, Any]]) -> str:
    """Say in one sentence what compression did for each claim; where rows of a claim disagree, it says so.

    >>> row = {"verdict": "no measurable difference"}
    >>> sentence([{"claim": "harder to extract", "rows": [row]}])
    'Harder to extract: no measurable difference.'
    """
    parts = []
    for claim in claims:
        verdicts = [Verdict(row["verdict"]) for row in claim["rows"]]
        measured = len(verdicts) - verdicts.count(Verdict.NOT_MEASURED)
        easier, harder = verdicts.count(Verdict.EASIER), verdicts.count(Verdict.HARDER)
        if not measured:
            words = "not measured"
        elif easier and harder:
            words = f"mixed, {easier} of {measured} measures easier, {harder} harder"
        elif easier:
            words = f"no, {easier} of {measured} measures became easier"
        elif harder:
            words = f"yes by {harder} of {measured} measures"
        elif Verdict.ONLY_LOST_ACCURACY in verdicts:
            words = "only as far as the file itself lost accuracy"
        else:
            words = "no measurable difference"
        parts.append(f"{claim['claim']}: {words}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else "Nothing was measured."
