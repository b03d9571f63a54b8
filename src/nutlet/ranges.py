"""Bounds of the numbers that options may be."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Range"]


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for ``Annotated``.

    Args:
        low: the least value; None for no bound.
        high: the largest value; None for no bound.
        left_open: whether ``low`` itself is out of range.
        right_open: whether ``high`` itself is out of range.
        multiple_of: what the number has to be a multiple of; for whole numbers.
        noun: what the number is, with its article, for messages; by default what its type is called.
        note: what helps who gave a wrong value, for messages: why the bound is there, or an example.

    >>> 1 in Range(0, 1, right_open=True), 0.5 in Range(0, 1)
    (False, True)
    """

    low: float | None = None
    high: float | None = None
    left_open: bool = False
    right_open: bool = False
    multiple_of: int | None = None
    noun: str = ""
    note: str = ""

    def __contains__(self, value: float) -> bool:
        if self.low is not None and (value <= self.low if self.left_open else value < self.low):
            return False
        if self.high is not None and (value >= self.high if self.right_open else value > self.high):
            return False
        return self.multiple_of is None or value % self.multiple_of == 0

    def described(self, noun: str) -> str:
        """Return the range in words; ``noun`` where it has none of its own.

        >>> Range(0, 1, left_open=True).described("a number"), Range(2).described("a whole number")
        ('a number above 0 up to 1', 'a whole number of 2 or more')
        """
        noun = self.noun or noun
        low, high = (None if bound is None else f"{bound:,}" for bound in (self.low, self.high))
        if low is not None and high is not None:
            start = f"above {low}" if self.left_open else f"from {low}"
            if self.left_open and self.right_open:
                text = f"{noun} {start} and below {high}"
            elif self.right_open:
                text = f"{noun} {start} up to but not including {high}"
            else:
                text = f"{noun} {start} {'up ' * self.left_open}to {high}"
        elif low is not None:
            text = f"{noun} above {low}" if self.left_open else f"{noun} of {low} or more"
        elif high is not None:
            text = f"{noun} below {high}" if self.right_open else f"{noun} of {high} or less"
        else:
            text = noun
        return f"{text} ({self.note})" if self.note else text

    def schema(self) -> dict[str, float]:
        """Return the bounds as keywords of JSON Schema."""
        keywords = {
            "exclusiveMinimum" if self.left_open else "minimum": self.low,
            "exclusiveMaximum" if self.right_open else "maximum": self.high,
            "multipleOf": self.multiple_of,
        }
        return {keyword: bound for keyword, bound in keywords.items() if bound is not None}
