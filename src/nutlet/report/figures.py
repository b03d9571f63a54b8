"""Numbers as people read them; what was not measured says so and is never a zero or a blank."""

from __future__ import annotations

import math
from typing import Any

from nutlet.rounding import points, times

__all__ = [
    "NOT_MEASURED",
    "amount",
    "change",
    "clean",
    "count",
    "estimated",
    "exact",
    "interval",
    "milliseconds",
    "percent",
    "points",
    "rate",
    "seconds",
    "size",
]

NOT_MEASURED = "not measured"
LONGEST_TEXT = 2_000


def percent(value: float | None) -> str:
    """Return a share as a percentage with two decimals.

    >>> percent(0.91764), percent(1.0), percent(None)
    ('91.76 %', '100 %', 'not measured')
    """
    if value is None:
        return NOT_MEASURED
    text = f"{100 * value:.2f}"
    if value in (0, 1):
        text = text.split(".")[0]
    elif text in ("100.00", "0.00"):  # rounding must not turn nearly all into all, nor hardly any into none
        return "> 99.99 %" if value > 0.5 else "< 0.01 %"
    return f"{text} %"


def interval(low: float | None, high: float | None) -> str:
    """Return the interval of a share, nothing where there is none; an end beyond what a share can be is cut.

    >>> interval(0.91171, 0.92249), interval(-0.01, 1.02), interval(None, None)
    ('91.17 to 92.25 %', '0 to 100 %', '')
    """
    if low is None or high is None:
        return ""
    return f"{percent(max(low, 0)).removesuffix(' %')} to {percent(min(high, 1))}"


def rate(value: float) -> str:
    """Return a share that somebody chose, with the digits it has.

    >>> rate(0.001), rate(0.01), rate(0.9)
    ('0.1 %', '1 %', '90 %')
    """
    return f"{100 * value:.4g} %"


def size(value: int | None) -> str:
    """Return bytes in decimal units, three figures.

    >>> size(284316), size(999), size(1_100_000), size(None)
    ('284 kB', '999 bytes', '1.10 MB', 'not measured')
    """
    if value is None:
        return NOT_MEASURED
    return f"{value:,} bytes" if value < 1000 else f"{count(value)}B"


def count(value: float | None) -> str:
    """Return a count with three figures and a decimal prefix.

    >>> count(40_551_424), count(272_474), count(999_900), count(12)
    ('40.6 M', '272 k', '1.00 M', '12 ')
    """
    if value is None:
        return NOT_MEASURED
    for prefix in ("", "k", "M", "G", "T"):
        if value < 999.5 or prefix == "T":
            break
        value /= 1000
    if not prefix:
        return f"{value:.0f} "
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {prefix}"


def exact(value: int | None) -> str:
    """Return a whole number with thousands separated.

    >>> exact(284316)
    '284,316'
    """
    return NOT_MEASURED if value is None else f"{value:,}"


def amount(value: float | None, unit: str, *, sign: bool = False) -> str:
    """Return a value in one of the units of an audit: share, points, bytes, queries, count, or that of a metric.

    With ``sign`` it is a difference: of shares too it is then in percentage points.

    >>> amount(0.5, "share"), amount(2300.5, "queries"), amount(284316, "bytes"), amount(None, "count")
    ('50.00 %', '2,300', '284 kB', 'not measured')
    >>> amount(-0.004, "share", sign=True), amount(-914000, "bytes", sign=True), amount(12, "queries", sign=True)
    ('-0.4 points', '-914 kB', '+12')
    >>> amount(1.2345, "nats"), amount(-0.5, "", sign=True), amount(-0.5, "")
    ('1.23 nats', '-0.5', '-0.5')
    """
    if value is None:
        return NOT_MEASURED
    if unit == "points" or (unit == "share" and sign):
        return f"{points(value if unit == 'share' else value / 100, sign=sign)} points"
    if unit == "share":
        return percent(value)
    text = size(round(abs(value))) if unit == "bytes" else _number(abs(value))
    if unit not in ("bytes", "queries", "count", ""):
        text += f" {unit}"
    return f"{'-' if value < 0 else '+' if sign and value > 0 else ''}{text}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


def estimated(estimate: dict[str, Any]) -> str:
    """Return an estimate as a text, with its interval where it has one.

    >>> estimated({"value": 0.5, "low": 0.4, "high": 0.6})
    '50.00 % (40.00 to 60.00 %)'
    >>> estimated({"value": 2.0, "low": None, "high": None, "unit": "h"})
    '2 h'
    """
    if "unit" in estimate:
        value, *ends = (amount(estimate[name], estimate["unit"]) for name in ("value", "low", "high"))
        return value if estimate["low"] is None else f"{value} ({' to '.join(ends)})"
    span = interval(estimate["low"], estimate["high"])
    return f"{percent(estimate['value'])} ({span})" if span else percent(estimate["value"])


def milliseconds(value: float | None) -> str:
    """Return a duration in milliseconds, three figures.

    >>> milliseconds(1.2345), milliseconds(0.04321), milliseconds(123.4)
    ('1.23 ms', '0.0432 ms', '123 ms')
    """
    if value is None:
        return NOT_MEASURED
    decimals = 2 if value <= 0 else min(max(2 - math.floor(math.log10(value)), 0), 6)
    return f"{value:.{decimals}f} ms"


def seconds(value: float | None) -> str:
    """Return a duration as a person would say it.

    >>> seconds(0.04), seconds(75), seconds(7300)
    ('0.04 s', '1 min 15 s', '2 h 2 min')
    """
    if value is None:
        return NOT_MEASURED
    if value < 59.5:
        return f"{value:.{2 if value < 1 else 1 if value < 9.95 else 0}f} s"
    if round(value) < 3600:
        return f"{round(value) // 60} min {round(value) % 60} s"
    return f"{round(value / 60) // 60:,} h {round(value / 60) % 60} min"


def change(before: float | None, after: float | None, less: str, more: str, *, same: float = 0.01) -> str:
    """Say how many times less or more ``after`` is than ``before``; within the share ``same`` they are equal.

    >>> change(610, 100, "smaller", "bigger"), change(100, 130, "smaller", "bigger"), change(100, 100, "less", "more")
    ('6.1x smaller', '1.3x bigger', 'no change')
    """
    if before is None or after is None:
        return NOT_MEASURED
    if abs(before - after) <= same * max(abs(before), abs(after)):
        return "no change"
    if before <= 0 or after <= 0:
        return less if after < before else more
    ratio, word = (before / after, less) if before > after else (after / before, more)
    return f"{times(ratio)} {word}"


def clean(value: Any) -> Any:
    r"""Make every text in ``value`` safe to look at: no control or direction-changing characters, no endless text.

    Names come from other people's files; a right-to-left mark could make one name read as another.

    >>> clean({"a\u202eb": ["c\x00", 1]})
    {'a�b': ['c�', 1]}
    """
    if isinstance(value, str):
        text = value if len(value) <= LONGEST_TEXT else value[: LONGEST_TEXT - 1] + "…"
        return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return value
