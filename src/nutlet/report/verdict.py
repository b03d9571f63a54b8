"""What changed, in one honest sentence: a loss, a slowdown or a bigger file is said as plainly as a gain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nutlet.report.figures import change, milliseconds, percent, points, size

__all__ = ["AccuracyChange", "accuracy_change", "paired_latency", "verdict"]

SAME_SIZE = 0.01
SAME_SPEED = 0.05
"""Medians closer than this share are called equal: timings on a shared machine wander by a few per cent."""
WIDE = 0.02


@dataclass(frozen=True)
class AccuracyChange:
    """Accuracy after minus accuracy before, 0 to 1, with its 95 % interval (None where there is none)."""

    value: float
    low: float | None
    high: float | None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def words(self) -> str:
        """Describe the change with its interval."""
        amount = points(abs(self.value))
        if self.low is None or self.high is None:
            side = "lower" if self.value < 0 else "higher"
            return f"accuracy {amount} points {side} (no interval was measured)" if self.value else "the same accuracy"
        if not self.clear:
            return (
                f"no measurable {'loss' if self.value <= 0 else 'change'} of accuracy ({points(self.value, sign=True)} "
                f"points, 95 % interval {points(self.low, sign=True)} to {points(self.high, sign=True)})"
            )
        near, far = sorted((abs(self.low), abs(self.high)))
        word = "less" if self.value < 0 else "more"
        return f"{amount} points {word} accurate (95 % interval {points(near)} to {points(far)})"


def accuracy_change(measurement: dict[str, Any]) -> AccuracyChange | None:
    """Compare the accuracies of the two files; None where one of them was not measured.

    Both files answered the same examples, so the examples on which they disagree bound how far their accuracies can
    differ: the variance of the difference is at most ``(disagreement - difference²) / examples``. That interval is
    much narrower than two separate ones laid side by side. The paired interval of the measurement itself
    (``accuracy_drop_pp_low`` and ``_high``) is preferred; without either, the separate intervals count, and
    overlapping ones show no difference.

    >>> before = {"accuracy": 0.92, "accuracy_low": 0.914, "accuracy_high": 0.926, "examples": 10000}
    >>> after = {"accuracy": 0.915, "accuracy_low": 0.909, "accuracy_high": 0.921, "examples": 10000}
    >>> accuracy_change({"original": before, "compressed": after}).clear
    False
    >>> accuracy_change({"original": before, "compressed": after, "agreement": 0.98, "agreement_low": 0.977}).clear
    True
    """
    before, after = measurement.get("original") or {}, measurement.get("compressed") or {}
    if before.get("accuracy") is None or after.get("accuracy") is None:
        return None
    value = after["accuracy"] - before["accuracy"]
    least, most = measurement.get("accuracy_drop_pp_low"), measurement.get("accuracy_drop_pp_high")
    if least is not None and most is not None:
        return AccuracyChange(value, -most / 100, -least / 100)
    agreement = measurement.get("agreement_low")
    agreement = measurement.get("agreement") if agreement is None else agreement
    examples = after.get("examples")
    if agreement is not None and examples and examples == before.get("examples"):
        half = 1.96 * math.sqrt(max(1 - agreement - value**2, 0) / examples)
        return AccuracyChange(value, value - half, value + half)
    old_low, old_high, new_low, new_high = (
        side.get(end) for side in (before, after) for end in ("accuracy_low", "accuracy_high")
    )
    if old_low is None or old_high is None or new_low is None or new_high is None:
        return AccuracyChange(value, None, None)
    return AccuracyChange(value, new_low - old_high, new_high - old_low)


def paired_latency(measurement: dict[str, Any]) -> list[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """Return ``(before, after)`` per batch size and number of threads, smallest first; None where one is missing."""
    sides = []
    for side in ("original", "compressed"):
        rows = (measurement.get(side) or {}).get("latency") or []
        sides.append({(row["batch"], row["threads"]): row for row in rows})
    return [(sides[0].get(key), sides[1].get(key)) for key in sorted(sides[0].keys() | sides[1].keys())]


def verdict(report: dict[str, Any]) -> str:
    """Say in plain words what compression did to size, speed and accuracy of the file.

    >>> file = {"bytes": 100, "accuracy": 0.9, "accuracy_low": 0.88, "accuracy_high": 0.92}
    >>> verdict({"measurement": {"original": {**file, "bytes": 610}, "compressed": file}})
    '6.1x smaller, speed not measured, no measurable loss of accuracy (0.0 points, 95 % interval -4.0 to +4.0). With so few examples a loss of up to 4.0 points cannot be ruled out.'
    """  # noqa: E501
    measurement = report.get("measurement") or {}
    before, after = measurement.get("original"), measurement.get("compressed")
    if not after:
        return "Not measured: there is no shipped file to speak about yet."
    if not before:
        return _alone(after)
    accuracy = accuracy_change(measurement)
    parts = [
        _size(before.get("bytes"), after.get("bytes")),
        _speed(measurement),
        accuracy.words if accuracy else "accuracy not compared",
    ]
    sentences = [", ".join(parts), *_reservations(measurement, accuracy)]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _alone(after: dict[str, Any]) -> str:
    text = f"A file of {size(after.get('bytes'))}" if after.get("bytes") is not None else "A file of unknown size"
    if after.get("accuracy") is not None:
        text += f", {percent(after['accuracy'])} accurate"
        if after.get("accuracy_low") is not None and after.get("accuracy_high") is not None:
            text += f" (95 % interval {percent(after['accuracy_low'])} to {percent(after['accuracy_high'])})"
    first = min(after.get("latency") or [], key=lambda row: (row["batch"], row["threads"]), default=None)
    if first is not None:
        text += f", {milliseconds(first.get('median_ms'))} at batch {first['batch']}"
    return f"{text}. No original file was measured beside it, so nothing is compared."


def _size(before: int | None, after: int | None) -> str:
    if before is None or after is None:
        return "size not compared"
    words = change(before, after, "smaller", "bigger", same=SAME_SIZE)
    return "no smaller" if words == "no change" else words


def _ratio(pair: tuple[dict[str, Any] | None, dict[str, Any] | None]) -> str | None:
    """Return the change of the median, or None where it cannot be told."""
    before, after = (row.get("median_ms") if row else None for row in pair)
    if not before or not after:
        return None
    return change(before, after, "faster", "slower", same=SAME_SPEED)


def _speed(measurement: dict[str, Any]) -> str:
    for pair in paired_latency(measurement):
        words = _ratio(pair)
        if words is not None and pair[0] is not None:
            return f"{'no faster' if words == 'no change' else words} at batch {pair[0]['batch']}"
    return "speed not compared" if measurement["compressed"].get("latency") else "speed not measured"


def _reservations(measurement: dict[str, Any], accuracy: AccuracyChange | None) -> list[str]:
    """Return what the first sentence alone would hide."""
    found = []
    before, after = measurement["original"], measurement["compressed"]
    packed = before.get("bytes_zstd"), after.get("bytes_zstd")
    if _size(before.get("bytes"), after.get("bytes")) == "no smaller" and None not in packed:
        smaller = _size(*packed)
        if smaller.endswith("x smaller"):
            found.append(f"only after zstd is it smaller, by {smaller.removesuffix(' smaller')}")
    told = [(pair[1] or {}, words) for pair in paired_latency(measurement) if (words := _ratio(pair))]
    slower = [
        f"{words} at batch {row['batch']} with {row['threads']} thread{'s' * (row['threads'] != 1)}"
        for row, words in told[1:]
        if words.endswith("slower")
    ]
    if slower:
        found.append(f"{'also' if told[0][1].endswith('slower') else 'but'} {', '.join(slower)}")
    if accuracy and not accuracy.clear and accuracy.low is not None and accuracy.low < -WIDE:
        found.append(f"with so few examples a loss of up to {points(-accuracy.low)} points cannot be ruled out")
    return found
