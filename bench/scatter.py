"""A scatter plot as SVG: times smaller against accuracy, a point for each file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 300, 52, 16, 34, 44
COLOURS = {"original": "#b98a52", "ours": "#1d7a68", "other": "#8a8478"}
PLACES = {"left": (-10, -4, "end"), "right": (10, -4, "start"), "above": (0, 11, "middle")}
"""Where a label stands: to the right, upwards, and what of it is there."""


@dataclass(frozen=True)
class Point:
    """One file.

    Args:
        smaller: how many times smaller than the original.
        accuracy: in percent.
        kind: ``original``, ``ours`` or ``other``.
        label: beside the point; none for a small point without a name.
        place: of the label: ``left`` or ``right`` of the point, or ``above`` it.
    """

    smaller: float
    accuracy: float
    kind: str
    label: str = ""
    place: str = "right"


def scatter(title: str, points: Sequence[Point], lowest: float) -> str:
    """Return an SVG, accuracy upwards from ``lowest``; points below it are left out."""
    shown = [point for point in points if point.accuracy >= lowest]
    top = math.ceil(max(point.accuracy for point in shown) + 0.3)
    most = math.ceil(max(point.smaller for point in shown) + 0.5)

    def x(smaller: float) -> float:
        return LEFT + 14 + (WIDTH - LEFT - RIGHT - 60) * math.log(smaller) / math.log(most)

    def y(accuracy: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - accuracy) / (top - lowest)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#24211c"><title>{escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="13">{escape(title)}</text>',
    ]
    for accuracy in range(math.ceil(lowest), top + 1):
        parts.append(f'<path d="M{LEFT} {y(accuracy):.1f}H{WIDTH - RIGHT}" stroke="#e2dcd0"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(accuracy) + 4:.1f}" text-anchor="end">{accuracy} %</text>')
    for times in range(1, most + 1):
        parts.append(f'<text x="{x(times):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{times}x</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">times smaller than the original</text>')
    for point in sorted(shown, key=lambda point: bool(point.label)):
        across, down = x(point.smaller), y(point.accuracy)
        fill = f'fill="{COLOURS[point.kind]}"' if point.label else f'fill="none" stroke="{COLOURS[point.kind]}"'
        parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="{6 if point.label else 4}" {fill}/>')
        if point.label:
            aside, up, anchor = PLACES[point.place]
            parts.append(
                f'<text x="{across + aside:.1f}" y="{down - up:.1f}" text-anchor="{anchor}" font-weight="600">'
                f"{escape(point.label)}</text>"
            )
    return "".join(parts) + "</svg>\n"
