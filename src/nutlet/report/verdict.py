"""What changed, in one honest sentence: a loss, a slowdown or a bigger file is said as plainly as a gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nutlet.measurement.goal import goal_sentence
from nutlet.measurement.results import ACCURACY, Metric
from nutlet.report.figures import change, milliseconds, points, size
from nutlet.report.metrics import metric_in, score_change, score_interval, score_text

__all__ = [
    "PARITY_EXPECTED",
    "SAME_SIZE",
    "SAME_SPEED",
    "AccuracyChange",
    "accuracy_change",
    "paired_latency",
    "verdict",
]

PARITY_EXPECTED = 0.99
"""Share of examples on which the file and the module in PyTorch should name the same class."""
SAME_SIZE = 0.01
"""Sizes closer than this share are called equal."""
SAME_SPEED = 0.05
"""Medians closer than this share are called equal: timings on a shared machine wander by a few per cent."""
WIDE = 0.02
"""A possible loss of accuracy that is larger is pointed out, even where none was found."""


@dataclass(frozen=True)
class AccuracyChange:
    """Mean score after minus mean score before, of classes accuracy, 0 to 1, with its 95 % interval."""

    value: float
    low: float
    high: float
    metric: Metric = ACCURACY

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    @property
    def words(self) -> str:
        """Describe the change with its interval."""
        if self.metric.task != "classification":
            return self._in_its_metric
        amount = points(abs(self.value))
        if not self.clear:
            return (
                f"no measurable {'loss' if self.value <= 0 else 'change'} of accuracy ({points(self.value, sign=True)} "
                f"points, 95 % interval {points(self.low, sign=True)} to {points(self.high, sign=True)})"
            )
        near, far = sorted((abs(self.low), abs(self.high)))
        word = "less" if self.value < 0 else "more"
        return f"{amount} points {word} accurate (95 % interval {points(near)} to {points(far)})"

    @property
    def _in_its_metric(self) -> str:
        amount = score_change(self.metric, self.value)
        ends = sorted((score_change(self.metric, self.low), score_change(self.metric, self.high)), key=_number)
        told = f"{amount}, 95 % interval {ends[0].split()[0]} to {ends[1].split()[0]}"
        if not self.clear:
            return f"no measurable {'loss' if self.value <= 0 else 'change'} of {self.metric.name} ({told})"
        return f"{self.metric.name} {'worse' if self.value < 0 else 'better'} ({told})"


def accuracy_change(measurement: dict[str, Any]) -> AccuracyChange | None:
    """Return the change of accuracy with its paired interval; None where the two files were not compared.

    Both files answered the same examples, so the interval is that of the difference, which is narrower than two
    separate ones laid side by side.

    >>> files = {"original": {"accuracy": 0.92}, "compressed": {"accuracy": 0.915}}
    >>> accuracy_change({**files, "accuracy_drop_pp_low": 0.2, "accuracy_drop_pp_high": 0.8}).clear
    True
    >>> accuracy_change({**files, "accuracy_drop_pp_low": -0.1, "accuracy_drop_pp_high": 1.1}).clear
    False
    """
    before, after = measurement.get("original") or {}, measurement.get("compressed") or {}
    metric = metric_in(measurement)
    least, most = measurement.get("score_drop_low"), measurement.get("score_drop_high")
    if metric.unit == "%":
        points_lost = (measurement.get(f"accuracy_drop_pp_{end}") for end in ("low", "high"))
        least, most = (None if lost is None else lost / 100 for lost in points_lost)
    if before.get("accuracy") is None or after.get("accuracy") is None or least is None or most is None:
        return None
    # 0 - x and not -x: no loss must not read "-0.0".
    return AccuracyChange(after["accuracy"] - before["accuracy"], 0 - most, 0 - least, metric)


def _number(text: str) -> float:
    return float(text.split()[0])


def paired_latency(measurement: dict[str, Any]) -> list[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """Return ``(before, after)`` per batch size and number of threads, smallest first; None where one is missing."""
    sides = []
    for side in ("original", "compressed"):
        rows = (measurement.get(side) or {}).get("latency") or []
        sides.append({(row["batch"], row["threads"]): row for row in rows})
    return [(sides[0].get(key), sides[1].get(key)) for key in sorted(sides[0].keys() | sides[1].keys())]


def verdict(report: dict[str, Any]) -> str:
    """Say in plain words what compression did to size, speed and accuracy of the file, and to a thief where audited.

    >>> before, after = {"bytes": 610, "accuracy": 0.9}, {"bytes": 100, "accuracy": 0.9}
    >>> files = {"original": before, "compressed": after}
    >>> verdict({"measurement": {**files, "accuracy_drop_pp_low": -0.4, "accuracy_drop_pp_high": 0.4}})
    '6.1x smaller, speed not measured, no measurable loss of accuracy (0.0 points, 95 % interval -0.4 to +0.4).'
    """
    doubts = report.get("findings") or []
    more = f" ({len(doubts) - 1} more below.)" if len(doubts) > 1 else ""
    doubt = f"Doubtful: {doubts[0]['words']}{more}" if doubts else ""
    text = _measured(report.get("measurement") or {})
    goal = goal_sentence((report.get("measurement") or {}).get("goal") or ())
    audit = report.get("audit")
    return " ".join(filter(None, [doubt, text, goal, audit["sentence"] if audit else ""]))


def _measured(measurement: dict[str, Any]) -> str:
    before, after = measurement.get("original"), measurement.get("compressed")
    if not after:
        return "Not measured: there is no shipped file to speak about yet."
    if not before:
        return _alone(after, metric_in(measurement))
    accuracy = accuracy_change(measurement)
    parts = [
        _size(before.get("bytes"), after.get("bytes")),
        _speed(measurement),
        accuracy.words if accuracy else f"{metric_in(measurement).name} not compared",
    ]
    sentences = [", ".join(parts), *_reservations(measurement, accuracy)]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _alone(after: dict[str, Any], metric: Metric) -> str:
    text = f"A file of {size(after.get('bytes'))}" if after.get("bytes") is not None else "A file of unknown size"
    if after.get("accuracy") is not None:
        score = score_text(metric, after["accuracy"])
        text += f", {score} accurate" if metric.task == "classification" else f", {metric.name} {score}"
        if after.get("accuracy_low") is not None and after.get("accuracy_high") is not None:
            text += f" (95 % interval {score_interval(metric, after['accuracy_low'], after['accuracy_high'])})"
    first = min(after.get("latency") or [], key=lambda row: (row["batch"], row["threads"]), default=None)
    if first is not None:
        text += f", {milliseconds(first.get('median_ms'))} at batch {first['batch']}"
    return f"{text}. No original file was measured beside it, so nothing is compared."


def _size(before: int | None, after: int | None) -> str:
    if before is None or after is None:
        return "size not compared"
    words = change(before, after, "smaller", "bigger", same=SAME_SIZE)
    return "no smaller" if words == "no change" else words


def _ratio(measurement: dict[str, Any], pair: tuple[dict[str, Any] | None, dict[str, Any] | None]) -> str | None:
    """Return the change of the time of a call, or None where it cannot be told.

    It goes by the rounds in which both files were timed in turn, where there are any: on a busy machine medians taken
    one after the other mislead.
    """
    before, after = (row.get("median_ms") if row else None for row in pair)
    if not before or not after or pair[1] is None:
        return None
    setting = pair[1]["batch"], pair[1]["threads"]
    for paired in measurement.get("speedups") or ():
        if (paired["batch"], paired["threads"]) == setting and paired.get("ratio"):
            low, high = paired.get("low"), paired.get("high")
            if low is not None and high is not None and low < 1 < high:
                return "no change"
            before, after = paired["ratio"], 1.0
    return change(before, after, "faster", "slower", same=SAME_SPEED)


def _speed(measurement: dict[str, Any]) -> str:
    for pair in paired_latency(measurement):
        words = _ratio(measurement, pair)
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
    told = [(pair[1] or {}, words) for pair in paired_latency(measurement) if (words := _ratio(measurement, pair))]
    slower = [
        f"{words} at batch {row['batch']} with {row['threads']} thread{'s' * (row['threads'] != 1)}"
        for row, words in told[1:]
        if words.endswith("slower")
    ]
    if slower:
        found.append(f"{'also' if told[0][1].endswith('slower') else 'but'} {', '.join(slower)}")
    if accuracy and accuracy.metric.unit == "%" and not accuracy.clear and accuracy.low < -WIDE:
        found.append(f"with so few examples a loss of up to {points(-accuracy.low)} points cannot be ruled out")
    return found
