"""What compression did to the work of a thief: the words that an audit decides by, writes and shows."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

__all__ = ["Verdict", "combined"]


class Verdict(StrEnum):
    """The verdict of one measure, or of several together; as text it is what ``audit.json`` holds."""

    HARDER = "harder"
    ONLY_LOST_ACCURACY = "harder only with lost accuracy"
    """The thief gets less because the file itself became worse: no protection."""
    EASIER = "easier"
    SAME = "the same"
    """Within the margin that the audit states: an equivalence test says so, not a missing difference."""
    CANNOT_TELL = "cannot tell"
    """The interval holds both no difference and one that would matter."""
    NO_VOTE = "no vote"
    """Beside the one row that decides a claim: it has an interval, and counts for nothing."""
    NOT_MEASURED = "not measured"
    MIXED = "mixed"
    """Of several measures, that do not agree."""

    @property
    def mark(self) -> str:
        """The CSS class that it is shown in."""
        return self.value if self in (Verdict.HARDER, Verdict.EASIER) else "even"


def combined(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict that all share which were measured and have a vote; ``mixed`` where they differ.

    >>> str(combined([Verdict.HARDER, Verdict.NOT_MEASURED, Verdict.HARDER])), str(combined([]))
    ('harder', 'not measured')
    >>> str(combined([Verdict.HARDER, Verdict.SAME, Verdict.NO_VOTE]))
    'mixed'
    """
    measured = set(verdicts) - {Verdict.NOT_MEASURED, Verdict.NO_VOTE}
    return Verdict.MIXED if len(measured) > 1 else measured.pop() if measured else Verdict.NOT_MEASURED
