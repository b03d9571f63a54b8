"""What a shipped file has to reach, and whether a measurement shows that it does."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from nutlet.errors import ConfigError
from nutlet.options import Count, Positive, Range, Validated

if TYPE_CHECKING:
    from nutlet.measurement.results import Measurement

__all__ = ["Goal", "GoalVerdict", "Judged", "byte_count", "goal_sentence", "judge", "judged", "plain"]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class GoalVerdict(StrEnum):
    """Whether a goal is reached, as far as an interval tells."""

    MET = "met"
    MISSED = "missed"
    NOT_SHOWN = "not shown"

    @property
    def exit_code(self) -> int:
        """What the command line returns; other than the codes of errors."""
        return {GoalVerdict.MET: 0, GoalVerdict.MISSED: 20, GoalVerdict.NOT_SHOWN: 21}[self]


@dataclass(frozen=True, kw_only=True)
class Goal(Validated):
    """What a shipped file has to reach; each part is judged by itself.

    Args:
        max_loss: most of the mean score that may be lost against the original: in points where scores are shares, else
            in the unit of the task's metric.
        max_bytes: most bytes of the file on disk.
        min_speedup: least times that the file is faster than the original, at the smallest batch and the fewest threads
            that are timed.

    Raises:
        ConfigError: none is given, or a value is out of range.

    >>> Goal(max_loss=1.0, max_bytes=300_000).max_bytes
    300000
    """

    max_loss: Annotated[float, Range(0)] | None = None
    max_bytes: Count | None = None
    min_speedup: Positive | None = None

    def __post_init__(self) -> None:
        """Check each option, and that there is one."""
        super().__post_init__()
        if self.max_loss is None and self.max_bytes is None and self.min_speedup is None:
            raise ConfigError("Goal is empty; expected one or more of max_loss, max_bytes and min_speedup")

    @property
    def compares(self) -> bool:
        """Whether it can be judged only beside an original."""
        return self.max_loss is not None or self.min_speedup is not None


@dataclass(frozen=True)
class Judged:
    """One part of a goal beside what was measured.

    Args:
        name: ``loss``, ``bytes`` or ``speedup``.
        limit: what was asked for, in ``unit``.
        unit: ``points``, ``bytes``, ``x``, or that of the task's metric.
        value: what was measured, likewise; None where it was not.
        low: lower end of its 95 % interval; None where nothing is known of it.
        high: upper end.
        verdict: met where the whole interval is inside of the limit, missed where it is outside, else not shown.
    """

    name: str
    limit: float
    unit: str
    value: float | None
    low: float | None
    high: float | None
    verdict: str

    @property
    def words(self) -> str:
        """Describe the part, with as many digits as it takes to see on which side of the limit an end lies.

        >>> Judged("loss", 1.0, "points", 0.7, 0.3, 1.04, "not shown").words
        'loss of at most 1 points: not shown (0.70, 95 % interval 0.30 to 1.04)'
        """
        if self.name == "bytes":
            return f"at most {self.limit:,.0f} bytes: {self.verdict} ({self.value:,.0f})"
        asked = f"loss of at most {self.limit:g} {self.unit}".rstrip()
        asked = f"at least {self.limit:g}x faster" if self.name == "speedup" else asked
        if self.value is None:
            return f"{asked}: {self.verdict} (not measured)"
        ends = [end for end in (self.low, self.high) if end is not None]
        digits = self._digits
        interval = f", 95 % interval {ends[0]:.{digits}f} to {ends[1]:.{digits}f}" if len(ends) == 2 else ""
        return f"{asked}: {self.verdict} ({self.value:.{digits}f}{interval})"

    @property
    def brief(self) -> str:
        """What was measured with its interval, for the cell of a table, in the digits of :attr:`words`.

        >>> Judged("loss", 1.0, "points", 0.7, 0.3, 1.04, "not shown").brief
        '0.70 [0.30, 1.04]'
        """
        if self.value is None:
            return "not measured"
        value, *ends = (f"{x:.{self._digits}f}" for x in (self.value, self.low, self.high) if x is not None)
        return f"{value} [{', '.join(ends)}]" if len(ends) == 2 else value

    @property
    def _digits(self) -> int:
        ends = [end for end in (self.low, self.high) if end is not None]
        return next((n for n in range(1, 5) if all(_apart(end, self.limit, n) for end in ends)), 5)


def judge(goal: Goal, found: Measurement) -> tuple[Judged, ...]:
    """Judge each part of a goal by the measurement of a shipped file."""
    parts = []
    if goal.max_loss is not None:
        share = found.task.unit == "%"
        ends = (found.score_drop, found.score_drop_low, found.score_drop_high)
        value, low, high = (None if end is None else end * (100 if share else 1) for end in ends)
        inside = high is not None and high <= goal.max_loss
        outside = low is not None and low > goal.max_loss
        unit = "points" if share else found.task.unit
        parts.append(Judged("loss", goal.max_loss, unit, value, low, high, _verdict(inside, outside)))
    if goal.max_bytes is not None:
        size = found.compressed.bytes
        verdict = _verdict(size <= goal.max_bytes, size > goal.max_bytes)
        parts.append(Judged("bytes", goal.max_bytes, "bytes", size, size, size, verdict))
    if goal.min_speedup is not None:
        first = min(found.speedups, key=lambda speedup: (speedup.batch, speedup.threads), default=None)
        low, high = (first.low, first.high) if first else (None, None)
        inside, outside = low is not None and low >= goal.min_speedup, high is not None and high < goal.min_speedup
        ratio = first.ratio if first else None
        parts.append(Judged("speedup", goal.min_speedup, "x", ratio, low, high, _verdict(inside, outside)))
    return tuple(parts)


def judged(parts: tuple[Judged, ...]) -> GoalVerdict:
    """Return the verdict of a whole goal: missed where one part is, met where all are."""
    verdicts = {part.verdict for part in parts}
    if GoalVerdict.MISSED in verdicts:
        return GoalVerdict.MISSED
    return GoalVerdict.NOT_SHOWN if GoalVerdict.NOT_SHOWN in verdicts else GoalVerdict.MET


def goal_sentence(parts: list[dict[str, Any]] | tuple[Judged, ...]) -> str:
    """Return what page and terminal say of a goal; nothing where there is none."""
    known = tuple(part if isinstance(part, Judged) else Judged(**part) for part in parts)
    return f"Goal {judged(known)}: {'; '.join(part.words for part in known)}." if known else ""


def plain(parts: tuple[Judged, ...]) -> list[dict[str, Any]]:
    """Return plain JSON."""
    return [{**asdict(part), "verdict": str(part.verdict)} for part in parts]


def byte_count(option: str, text: str) -> int | None:
    """Read a number of bytes as people write it; None where there is none.

    Raises:
        ConfigError: it is none.

    >>> [byte_count("--max-bytes", text) for text in ("300000", "300kB", "0.3 MB", "1KiB", "")]
    [300000, 300000, 300000, 1024, None]
    """
    if not text:
        return None
    found = re.fullmatch(r"([0-9][0-9_,]{0,15}(?:\.[0-9]{1,9})?) ?([a-z]{0,3})", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise ConfigError(f"{option} is {text!r}; expected a number of bytes, as 300000, 300kB or 0.3MB")
    return round(float(re.sub("[_,]", "", found[1])) * _UNITS[found[2]])


def _verdict(inside: bool, outside: bool) -> GoalVerdict:
    return GoalVerdict.MET if inside else GoalVerdict.MISSED if outside else GoalVerdict.NOT_SHOWN


def _apart(end: float, limit: float, digits: int) -> bool:
    """Whether an end that is not the limit does not look like it when it is rounded."""
    return end == limit or round(end, digits) != limit
