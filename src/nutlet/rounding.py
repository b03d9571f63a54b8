"""How differences and ratios are rounded, on a page and in a terminal alike."""

from __future__ import annotations

__all__ = ["points", "times"]


def points(value: float, *, sign: bool = False) -> str:
    """Return a difference of two shares in percentage points, without the unit.

    >>> points(0.0091), points(-0.002, sign=True), points(0.0004)
    ('0.9', '-0.2', '0.04')
    """
    value = 100 * value
    decimals = 1 if abs(value) >= 0.095 or value == 0 else 2
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    return text[1:] if float(text) == 0 and text[0] in "+-" else text


def times(ratio: float) -> str:
    """Return how many times one is the other.

    >>> times(6.12), times(1.02), times(0.87), times(250.4)
    ('6.1x', '1.02x', '0.87x', '250x')
    """
    return f"{ratio:,.0f}x" if ratio >= 99.5 else f"{ratio:.1f}x" if ratio >= 1.05 else f"{ratio:.2f}x"
