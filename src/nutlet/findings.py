"""What was noticed about model or data that makes figures doubtful: told in the same words wherever figures are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Finding", "distinct"]


@dataclass(frozen=True)
class Finding:
    """One thing that is probably wrong, with how to mend it.

    ``check``, the terminal of ``compress`` and the headline of the report all show the same list of these.

    Args:
        about: what it is about, one word; of two about the same the first is told.
        words: what was found, a sentence.
        remedy: what to do, a sentence.

    >>> print(Finding("scale", "The mean is 125.", "Divide it by 255."))
    The mean is 125. Divide it by 255.
    """

    about: str
    words: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.words} {self.remedy}"


def distinct(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings in order, one about each thing.

    >>> len(distinct([Finding("scale", "A.", "B."), Finding("scale", "C.", "D.")]))
    1
    """
    first: dict[str, Finding] = {}
    for finding in findings:
        first.setdefault(finding.about, finding)
    return tuple(first.values())
