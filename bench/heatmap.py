"""A heat map as SVG: numbers on colours, rows by the first of a pair and columns by the second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

CELL, LEFT, TOP = 62, 96, 64
LOW, HIGH = (247, 251, 255), (165, 15, 21)
"""Colours of the best and of the worst value."""


def heatmap(
    title: str, names: Sequence[str], values: Mapping[tuple[str, str], float], digits: int, *, best: str = "low"
) -> str:
    """Return an SVG with a square for each pair.

    Args:
        title: what the numbers are, and how to read rows and columns.
        names: rows and columns, in this order.
        values: ``(row, column)`` to number; a square without one stays empty.
        digits: after the point.
        best: whether ``low`` or ``high`` numbers are the good ones, drawn pale.
    """
    width, height = LEFT + CELL * len(names) + 8, TOP + CELL // 2 * len(names) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><title>{escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="4" y="16" font-size="13">{escape(title)}</text>',
    ]
    ordered = sorted(values.values())
    # The colour scale ends where nine in ten values do: one wreck would make the others look alike.
    low, high = (ordered[0], ordered[int(0.9 * (len(ordered) - 1))]) if ordered else (0.0, 1.0)
    if best == "high":
        low, high = (ordered[int(0.1 * (len(ordered) - 1))], ordered[-1]) if ordered else (0.0, 1.0)
    for k, name in enumerate(names):
        parts.append(f'<text x="{LEFT + CELL * k + CELL / 2}" y="{TOP - 8}" text-anchor="middle">{escape(name)}</text>')
        parts.append(f'<text x="{LEFT - 6}" y="{TOP + CELL / 2 * k + 20}" text-anchor="end">{escape(name)}</text>')
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            if (row, column) not in values:
                continue
            value = values[row, column]
            share = min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)
            share = 1 - share if best == "high" else share
            colour = tuple(round(a + (b - a) * share) for a, b in zip(LOW, HIGH, strict=True))
            x, y = LEFT + CELL * j, TOP + CELL // 2 * i
            ink = "#fff" if share > 0.55 else "#222"
            parts.append(
                f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL // 2 - 2}" fill="rgb{colour}"/>'
                f'<text x="{x + CELL / 2 - 1}" y="{y + 19}" text-anchor="middle" fill="{ink}">{value:.{digits}f}</text>'
            )
    return "".join(parts) + "</svg>\n"
