"""Choosing ranks."""

from __future__ import annotations

from nutlet.methods.low_rank.ranks import Choice, cheapest

CHOICES = [Choice((1,), 5.0, 90, 45), Choice((2,), 6.0, 50, 25), Choice((3,), 9.0, 10, 5)]


def test_cheapest_is_the_one_of_fewest_parameters_that_loses_no_more() -> None:
    assert cheapest(CHOICES, 6.0) is CHOICES[1]
    assert cheapest(CHOICES, 10.0) is CHOICES[2]


def test_cheapest_is_none_where_all_lose_more() -> None:
    assert cheapest(CHOICES, 1.0) is None
