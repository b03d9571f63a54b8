"""The figures of a task on a page: shares in per cent, others in their unit."""

from __future__ import annotations

from typing import Any

from nutlet.measurement.results import Metric
from nutlet.report.figures import NOT_MEASURED, interval, percent, points

__all__ = ["metric_in", "score_change", "score_interval", "score_text", "titled"]


def metric_in(part: dict[str, Any], key: str = "task") -> Metric:
    """Return the metric that a part of a report names; top-1 accuracy where it names none, as older ones do."""
    return Metric(**(part.get(key) or {}))


def titled(metric: Metric) -> str:
    """Return the name of the metric at the head of a row.

    >>> titled(Metric()), titled(Metric("regression", "mean absolute error", "hours", False))
    ('Accuracy', 'Mean absolute error')
    """
    return metric.name[:1].upper() + metric.name[1:]


def score_text(metric: Metric, score: float | None) -> str:
    """Return a mean score as the metric.

    >>> score_text(Metric(), 0.5), score_text(Metric("regression", "mean absolute error", "hours", False), -2.5)
    ('50.00 %', '2.5 hours')
    """
    if score is None:
        return NOT_MEASURED
    return percent(score) if metric.unit == "%" else metric.text(score)


def score_interval(metric: Metric, low: float | None, high: float | None) -> str:
    """Return the interval of a mean score as that of the metric, nothing where there is none."""
    if metric.unit == "%" or low is None or high is None:
        return interval(low, high)
    near, far = sorted((metric.text(low), metric.text(high)), key=lambda text: float(text.split()[0]))
    return f"{near} to {far}"


def score_change(metric: Metric, gained: float, *, sign: bool = True) -> str:
    """Return the change of the metric where the mean score rises by ``gained``: in points, or in its unit.

    >>> score_change(Metric(), -0.012), score_change(Metric("regression", "mean absolute error", "hours", False), -0.5)
    ('-1.2 points', '+0.5 hours')
    """
    if metric.unit == "%":
        return f"{points(gained, sign=sign)} points"
    moved = 0.0 + (gained if metric.higher_is_better else -gained)
    return f"{moved:{'+' if sign else ''}.4g} {metric.unit}".rstrip()
