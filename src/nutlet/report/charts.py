"""Small inline SVG pictures: no script, no fixed width, and colours only through the page's CSS classes.

Positions along x are percentages: a picture fills its place on a phone and on a desk with text of the same size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Bar", "bars", "line", "meter", "ticks"]

LEFT, RIGHT = 13.0, 96.0
"""Where the plot of a line chart starts and ends, in per cent of the width; the scale stands to the left."""
BAR_END = 68.0
"""How far the longest bar reaches, in per cent; its figure stands behind it."""


@dataclass(frozen=True)
class Bar:
    """One bar.

    Args:
        series: CSS class that colours it: ``before``, ``after`` or ``packed``.
        value: length, in the unit of the chart.
        text: the figure beside it.
        reach: end of the thin line beyond the bar (a 95th percentile), in the unit of the chart.
    """

    series: str
    value: float
    text: str
    reach: float | None = None


def bars(name: str, title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> Markup:
    """Return horizontal bars in labelled groups, all on one scale that starts at zero.

    Args:
        name: unique id in the page.
        title: what the picture shows, read aloud by screen readers.
        groups: label and bars, from top to bottom.
    """
    every = [bar for _, row in groups for bar in row]
    top = max((max(bar.value, bar.reach or 0) for bar in every), default=0) or 1
    parts, y = [], 0
    for label, row in groups:
        parts.append(Markup('<text class="label" x="0" y="{}">{}</text>').format(y + 15, label))
        y += 22
        for bar in row:
            width, reach = BAR_END * (bar.value / top), BAR_END * ((bar.reach or 0) / top)
            parts.append(
                Markup('<rect class="bar {}" x="0" y="{}" width="{:.2f}%" height="14" rx="2"/>').format(
                    bar.series, y, max(width, 0.3)
                )
            )
            if reach > width:
                parts.append(
                    Markup(
                        '<line class="whisker" x1="{0:.2f}%" x2="{1:.2f}%" y1="{2}" '
                        'y2="{2}"/><line class="whisker" x1="{1:.2f}%" x2="{1:.2f}%" y1="{3}" y2="{4}"/>'
                    ).format(width, reach, y + 7, y + 3, y + 11)
                )
            parts.append(
                Markup('<text class="value" x="{:.2f}%" dx="7" y="{}">{}</text>').format(
                    max(width, reach), y + 12, bar.text
                )
            )
            y += 19
        y += 9
    spoken = "; ".join(f"{label}: {', '.join(f'{bar.series} {bar.text}' for bar in row)}" for label, row in groups)
    return _svg(name, f"{title}. {spoken}", y, parts)


def line(
    name: str, title: str, values: Sequence[float], labels: Sequence[str], texts: Sequence[str], unit: str = ""
) -> Markup:
    """Return a line through one value per step, with a dashed line at the level of the first.

    The scale is cut to the values, for a loss of one point would vanish on a scale from zero; its ends are labelled.

    Args:
        name: unique id in the page.
        title: what the picture shows, read aloud by screen readers.
        values: one per step.
        labels: what stands below each step.
        texts: what stands above each point.
        unit: behind the numbers of the scale.
    """
    height, top, bottom = 240, 30, 190
    marks = ticks(min(values), max(values))
    low, high = marks[0], marks[-1]
    decimals = max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9))

    def x(index: int) -> float:
        inset = LEFT + 6
        return inset + (RIGHT - 4 - inset) * (index / (len(values) - 1) if len(values) > 1 else 0.5)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    def valley(index: int) -> bool:
        """Whether the line comes down to this point and goes up again: its figure belongs below."""
        return 0 < index < len(values) - 1 and values[index] < min(values[index - 1], values[index + 1])

    parts = [
        Markup(
            '<line class="grid" x1="{0}%" x2="{1}%" y1="{2:.1f}" y2="{2:.1f}"/>'
            '<text class="tick" x="{3}%" y="{4:.1f}" text-anchor="end">{5}</text>'
        ).format(LEFT, RIGHT, y(mark), LEFT - 1.5, y(mark) + 4, f"{mark:.{decimals}f}{unit}")
        for mark in marks
    ]
    parts.append(
        Markup('<line class="level" x1="{0}%" x2="{1}%" y1="{2:.1f}" y2="{2:.1f}"/>').format(LEFT, RIGHT, y(values[0]))
    )
    for (i, a), (j, b) in itertools.pairwise(enumerate(values)):
        parts.append(
            Markup('<line class="curve" x1="{:.2f}%" y1="{:.1f}" x2="{:.2f}%" y2="{:.1f}"/>').format(
                x(i), y(a), x(j), y(b)
            )
        )
    shown = max(1, math.ceil(len(values) / 8))
    for index, (value, label, text) in enumerate(zip(values, labels, texts, strict=True)):
        series = "before" if index == 0 else "after"
        parts.append(
            Markup('<circle class="dot {}" cx="{:.2f}%" cy="{:.1f}" r="4.5"/>').format(series, x(index), y(value))
        )
        if index % shown == 0 or index == len(values) - 1:
            parts.append(
                Markup(
                    '<text class="value" x="{0:.2f}%" y="{1:.1f}" text-anchor="middle">{2}</text>'
                    '<text class="tick" x="{0:.2f}%" y="{3}" text-anchor="middle">{4}</text>'
                ).format(x(index), y(value) + (20 if valley(index) else -11), text, bottom + 40, label)
            )
    spoken = "; ".join(f"{label}: {text}" for label, text in zip(labels, texts, strict=True))
    return _svg(name, f"{title}. {spoken}", height, parts)


def meter(title: str, before: float | None, after: float, top: float) -> Markup:
    """Return a small bar for a table cell: ``after`` filled, over ``before`` in outline where it is known."""
    top = top or 1
    outline = (
        Markup('<rect class="outline" x="0.5" y="2.5" width="{:.1f}%" height="9" rx="2"/>').format(99 * before / top)
        if before is not None
        else Markup("")
    )
    return Markup(
        '<svg class="meter" width="120" height="14" role="img" aria-label="{0}"><title>{0}</title>{1}'
        '<rect class="bar after" x="0.5" y="2.5" width="{2:.1f}%" height="9" rx="2"/></svg>'
    ).format(title, outline, max(99 * after / top, 0.8))


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Return round numbers, evenly spaced, that enclose ``low`` and ``high``.

    >>> ticks(90.1, 91.8)
    [90.0, 90.5, 91.0, 91.5, 92.0]
    >>> len(ticks(5.0, 5.0)) > 1
    True
    """
    span = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-6)
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    return [round(index * step, 12) for index in range(first, last + 1)]


def _svg(name: str, title: str, height: float, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="chart" width="100%" height="{0:.0f}" role="img" aria-labelledby="{1}"><title id="{1}">{2}</title>'
        "{3}</svg>"
    ).format(height, escape(name), title, Markup("").join(parts))
