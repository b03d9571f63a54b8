"""The three claims of compression against theft: one row of each decides, and how much it could have seen is said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nutlet.attacks.base import Goal
from nutlet.auditing.scoring import Difference
from nutlet.verdicts import Verdict

__all__ = ["CLAIMS", "FEWEST_SEEDS", "Row", "decided", "judged", "sentence"]

CLAIMS = ("smaller attack surface", "harder to extract", "worth less to a thief")
FEWEST_SEEDS = 3
"""Of fewer clones there is no verdict: their spread is hardly known."""
_LEVEL = 0.05


@dataclass(frozen=True)
class Row:
    """One measure before and after.

    Args:
        measure: what was measured.
        unit: ``share``, ``bytes``, ``count``, ``queries``, or that of a metric.
        before: figure of the original; None where it was not measured.
        after: figure of the file.
        difference: after minus before with its chance; None where there is none.
        verdict: whether theft became harder or easier.
        note: what a reader must know to read the verdict.
        goal: of the attacks that it measures; None where it is of no attack.
        more_is: what a larger figure means for theft.
        primary: whether it decides its claim; fixed before anything is measured.
        weaker: how much accuracy the file itself gained.
        level: the error that it was looked at with, where it was looked at more than once.
        words: the verdict with what it rests on.
    """

    measure: str
    unit: str
    before: float | None
    after: float | None
    difference: Difference | None = None
    verdict: Verdict = Verdict.NOT_MEASURED
    note: str = ""
    goal: Goal | None = None
    more_is: Literal["easier", "harder"] = "easier"
    primary: bool = False
    weaker: Difference | None = None
    level: float = _LEVEL
    words: str = ""

    @property
    def p(self) -> float:
        """The p-value, as if it had been looked at once."""
        assert self.difference is not None
        return min(1.0, self.difference.p * _LEVEL / self.level)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "measure": self.measure,
            "goal": self.goal,
            "unit": self.unit,
            "before": self.before,
            "after": self.after,
            "difference": None if self.difference is None else self.difference.estimate.to_dict(),
            "primary": self.primary,
            "verdict": self.verdict.value,
            "words": self.words or self.verdict.value,
            "note": self.note,
        }


def judged(row: Row, margin: float, level: float = _LEVEL, *, may_be_clear: bool = True) -> Row:
    """Return a row with its verdict, tested at ``level``.

    A difference is *clear* where its interval leaves out zero, *the same* where the interval of twice the level lies
    within the margin (two one-sided tests), and otherwise nobody can tell.

    Args:
        row: with a figure before and after, and their difference; one without that has no verdict.
        margin: differences below are none that matter, in the unit of the row.
        level: the error of the test.
        may_be_clear: False where a more likely difference of another claim was not clear.
    """
    gap = row.difference
    if gap is None or row.before is None or row.after is None:
        return row
    if gap.seeds is not None and gap.seeds < FEWEST_SEEDS:
        words = f"cannot tell from fewer than {FEWEST_SEEDS} seeds"
        return replace(row, verdict=Verdict.CANNOT_TELL, words=words)
    low, high = gap.value - gap.half(), gap.value + gap.half()
    if may_be_clear and row.p < level:
        verdict = Verdict.EASIER if (gap.value > 0) == (row.more_is == "easier") else Verdict.HARDER
        words = f"{verdict.value}, by {_amount(abs(gap.value), row.unit)} ({_span(low, high, gap.value, row.unit)})"
        if verdict is Verdict.HARDER and row.weaker is not None and row.weaker.estimate.high < 0:
            lost = "goes with the accuracy that the file itself lost: no protection"
            note = f"{lost}; {row.note}" if row.note else lost
            return replace(row, verdict=Verdict.ONLY_LOST_ACCURACY, words=Verdict.ONLY_LOST_ACCURACY.value, note=note)
        return replace(row, verdict=verdict, words=words)
    if row.unit == "share" and gap.bound() < margin:
        words = f"the same within {_amount(margin, row.unit)}: any difference is below {_amount(gap.bound(), row.unit)}"
        return replace(row, verdict=Verdict.SAME, words=words)
    words = (
        f"cannot tell: between {_amount(low, row.unit, sign=True)} and {_amount(high, row.unit, sign=True)}; "
        f"a difference of {_amount(gap.smallest(level), row.unit)} would probably have been seen"
    )
    return replace(row, verdict=Verdict.CANNOT_TELL, words=words)


def decided(claims: Sequence[Sequence[Row]], margin: float) -> list[list[Row]]:
    """Return the rows of all claims with their verdicts: the primary ones by the procedure of Holm (1979), so that all
    together err in 5 % of the audits where there is no difference; the others have no vote.
    """  # noqa: D205
    tested = sorted((row for rows in claims for row in rows if row.primary and row.difference), key=lambda row: row.p)
    voted: dict[int, Row] = {}
    clear = True
    for place, row in enumerate(tested):
        level = _LEVEL / (len(tested) - place)
        clear = clear and row.p < level
        voted[id(row)] = judged(row, margin, level, may_be_clear=clear)
    return [[voted.get(id(row)) or _without_vote(row) for row in rows] for rows in claims]


def _without_vote(row: Row) -> Row:
    compared = row.before is not None and row.after is not None
    return replace(row, verdict=Verdict.NO_VOTE) if compared else row


def _amount(value: float, unit: str, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.1f} points" if unit == "share" else f"{value:{plus}.3g} {unit}".strip()


def _span(low: float, high: float, value: float, unit: str) -> str:
    """Return the interval of a clear difference without its sign, the smaller end first."""
    ends = sorted((low, high)) if value > 0 else sorted((-low, -high))
    return " to ".join(_amount(end, unit).removesuffix(" points") for end in ends)


def sentence(claims: Iterable[dict[str, Any]]) -> str:
    """Say in one sentence what compression did for each claim, by the row that decides it.

    >>> row = {"primary": True, "verdict": "harder", "words": "harder, by 2.8 points (1.7 to 3.9)"}
    >>> sentence([{"claim": "harder to extract", "rows": [row]}])
    'Harder to extract: yes, by 2.8 points (1.7 to 3.9).'
    """
    parts = []
    for claim in claims:
        words = next((row["words"] for row in claim["rows"] if row["primary"]), "not measured")
        for verdict, answer in ((Verdict.ONLY_LOST_ACCURACY, "only as far as the file itself lost accuracy"),
                                (Verdict.HARDER, "yes"), (Verdict.EASIER, "no, easier")):  # fmt: skip
            if words.startswith(verdict.value):
                words = answer + words.removeprefix(verdict.value)
                break
        parts.append(f"{claim['claim']}: {words}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else "Nothing was measured."
