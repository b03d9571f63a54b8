"""The two pictures of an audit: agreement by queries, and the ROC curve on logarithmic axes.

As in :mod:`nutlet.report.charts`, positions are percentages and colours are the page's. Lines and bands stand in an
inner picture of 100 by 100 units that is stretched to the plot, for a polygon takes no percentages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from nutlet.report.charts import LEFT, RIGHT, ticks
from nutlet.report.figures import exact, interval, percent, rate

__all__ = ["LEAST", "Copy", "Roc", "extraction", "roc"]

TOP, BOTTOM, HEIGHT = 14, 214, 268
"""Pixels from above: the plot begins, the plot ends, the picture ends."""
APART = 17.0
"""Per cent of the width that a label below the plot needs."""
LEAST = 1e-3
"""Lowest rate on the axes of a ROC curve."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Copy:
    """The copies of one file after each budget.

    Args:
        series: ``before`` or ``after``: CSS class that colours it.
        queries: inputs sent, rising.
        agreement: ``(value, low, high)`` for each, 0 to 1; the ends of the interval may be None.
        baseline: agreement of the same thief without a query; None where it was not measured.
    """

    series: str
    queries: Sequence[float]
    agreement: Sequence[tuple[float, float | None, float | None]]
    baseline: Sequence[float | None]


@dataclass(frozen=True)
class Roc:
    """One ROC curve: ``series`` colours it, ``(fpr, tpr)`` are its points, 0 to 1."""

    series: str
    points: Sequence[Point]


def extraction(name: str, title: str, copies: Sequence[Copy], chance: float | None) -> Markup:
    """Return agreement by queries: a line with its band per file, dashed the same thief without queries.

    Args:
        name: unique id in the page.
        title: what the picture shows, read aloud by screen readers.
        copies: one per file, each with a point at least.
        chance: agreement of a guess, a dotted line; None where it was not worked out.
    """
    queries = sorted({max(1.0, asked) for copy in copies for asked in copy.queries})
    levels = [level for copy in copies for level in [*(value for value, *_ in copy.agreement), *copy.baseline]]
    known = [100 * level for level in [*levels, chance or 0.0] if level is not None]
    marks = ticks(min(known), max(known), 5)
    marks = [mark for mark in marks if 0 <= mark <= 100] or marks

    def x(asked: float) -> float:
        span = math.log(queries[-1] / queries[0])
        return 6 + 88 * (math.log(max(1.0, asked) / queries[0]) / span if span else 0.5)

    def y(share: float) -> float:
        level = min(max(100 * share, marks[0]), marks[-1])
        return 100 - 100 * (level - marks[0]) / (marks[-1] - marks[0])

    inner, dots, spoken = [], [], []
    for copy in copies:
        middle = [(x(asked), y(value)) for asked, (value, *_) in zip(copy.queries, copy.agreement, strict=True)]
        spans = [
            (x(asked), y(low), y(high))
            for asked, (_, low, high) in zip(copy.queries, copy.agreement, strict=True)
            if low is not None and high is not None
        ]
        around = [*((across, high) for across, _, high in spans), *((across, low) for across, low, _ in spans[::-1])]
        floor = [
            (x(asked), y(level)) for asked, level in zip(copy.queries, copy.baseline, strict=True) if level is not None
        ]
        if len(floor) == 1:  # a line through one point would not be seen
            floor = [(max(floor[0][0] - 6, 0), floor[0][1]), (min(floor[0][0] + 6, 100), floor[0][1])]
        inner += [_polygon(f"band {copy.series}", around), _polyline(f"baseline {copy.series}", floor)]
        inner.append(_polyline(f"trace {copy.series}", middle))
        dots += [_dot(copy.series, across, down) for across, down in middle]
        for asked, (value, low, high) in zip(copy.queries, copy.agreement, strict=True):
            span = interval(low, high)
            spoken.append(f"{copy.series}, {exact(round(asked))} queries: {percent(value)}{f' ({span})' * bool(span)}")
    if chance is not None:
        inner.insert(0, _polyline("chance", [(0, y(chance)), (100, y(chance))]))
    below = _spread([(x(asked), exact(round(asked))) for asked in queries])
    beside = [(y(mark / 100), f"{mark:g} %") for mark in marks]
    return _plot(name, f"{title}. {'; '.join(spoken)}", inner, dots, below, beside, "queries sent")


def roc(name: str, title: str, curves: Sequence[Roc], smallest: float | None = None) -> Markup:
    """Return ROC curves on two logarithmic axes from 0.1 % to 100 %, with the diagonal of guessing.

    Args:
        name: unique id in the page.
        title: what the picture shows, read aloud by screen readers.
        curves: one per file.
        smallest: smallest false-positive rate that may be spoken of; what is left of it is covered.
    """

    def place(share: float) -> float:
        return 100 * (1 - math.log10(max(share, 1e-9)) / math.log10(LEAST))

    inner = [_polyline("chance", [(0, 100), (100, 0)])]
    spoken = []
    for curve in curves:
        points = _thin([(place(fpr), 100 - place(tpr)) for fpr, tpr in sorted(curve.points)])
        inner.append(_polyline(f"trace {curve.series}", points))
        for wanted in (LEAST, 10 * LEAST):
            reached = max((tpr for fpr, tpr in curve.points if fpr <= wanted), default=None)
            if reached is not None and wanted >= (smallest or 0):
                spoken.append(f"{curve.series}: {percent(reached)} at {rate(wanted)}")
    if smallest is not None and smallest > LEAST:
        inner.append(Markup('<rect class="unsaid" x="0" y="0" width="{:.2f}" height="100"/>').format(place(smallest)))
    decades = [(place(share), rate(share)) for share in (LEAST, 1e-2, 1e-1, 1.0)]
    beside = [(100 - across, label) for across, label in decades]
    return _plot(name, f"{title}. {'; '.join(spoken)}", inner, [], decades, beside, "others wrongly named")


def _thin(points: Sequence[Point]) -> list[Point]:
    """Keep the first and the last of the points that fall on the same half per cent of the width.

    What is left of the plot counts where the plot begins: a step there reaches on until the next.
    """
    kept: list[Point] = []
    for place, group in itertools.groupby(points, key=lambda point: max(-1, math.floor(2 * point[0]))):
        members = list(group)
        if place >= 0:
            kept += members[:1] if len(members) == 1 else [members[0], members[-1]]
        elif members[-1][1] < 100:
            kept.append((0, members[-1][1]))
    return kept


def _spread(labels: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Leave out labels that would touch the one before; the last always stays."""
    kept: list[tuple[float, str]] = []
    for across, text in reversed(labels):
        if not kept or kept[-1][0] - across >= APART:
            kept.append((across, text))
    return kept[::-1]


def _across(share: float) -> float:
    return LEFT + (RIGHT - LEFT) * share / 100


def _down(share: float) -> float:
    return TOP + (BOTTOM - TOP) * share / 100


def _dot(series: str, across: float, down: float) -> Markup:
    return Markup('<circle class="dot {}" cx="{:.2f}%" cy="{:.1f}" r="4.5"/>').format(
        series, _across(across), _down(down)
    )


def _joined(points: Iterable[Point]) -> str:
    return " ".join(f"{across:.2f},{down:.2f}" for across, down in points)


def _polyline(kind: str, points: Sequence[Point]) -> Markup:
    return Markup('<polyline class="{}" points="{}"/>').format(kind, _joined(points)) if len(points) > 1 else Markup("")


def _polygon(kind: str, points: Sequence[Point]) -> Markup:
    return Markup('<polygon class="{}" points="{}"/>').format(kind, _joined(points)) if points else Markup("")


def _anchor(across: float) -> str:
    """Return how a label below the plot is set, so that it does not stand out at the ends."""
    return "end" if across > 95 else "start" if across < 5 else "middle"


def _plot(
    name: str,
    title: str,
    inner: Sequence[Markup],
    dots: Sequence[Markup],
    below: Sequence[tuple[float, str]],
    beside: Sequence[tuple[float, str]],
    axis: str,
) -> Markup:
    grid = [
        Markup(
            '<line class="grid" x1="{0}%" x2="{1}%" y1="{2:.1f}" y2="{2:.1f}"/>'
            '<text class="tick" x="{3}%" y="{4:.1f}" text-anchor="end">{5}</text>'
        ).format(LEFT, RIGHT, _down(down), LEFT - 1.5, _down(down) + 4, label)
        for down, label in beside
    ]
    texts = [
        Markup(
            '<line class="grid" x1="{0:.2f}%" x2="{0:.2f}%" y1="{1}" y2="{2}"/>'
            '<text class="tick" x="{0:.2f}%" y="{3}" text-anchor="{4}">{5}</text>'
        ).format(_across(across), BOTTOM, BOTTOM + 5, BOTTOM + 21, _anchor(across), label)
        for across, label in below
    ]
    return Markup(
        '<svg class="chart" width="100%" height="{0}" role="img" aria-labelledby="{1}"><title id="{1}">{2}</title>{3}'
        '<svg class="plot" x="{4}%" y="{5}" width="{6}%" height="{7}" viewBox="0 0 100 100" preserveAspectRatio="none">'
        '{8}</svg>{9}{10}<text class="tick" x="{11}%" y="{12}" text-anchor="end">{13}</text></svg>'
    ).format(
        HEIGHT, escape(name), title, Markup("").join(grid), LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP,
        Markup("").join(inner), Markup("").join(dots), Markup("").join(texts), RIGHT, BOTTOM + 42, axis,
    )  # fmt: skip
