"""Ranks within a budget."""

from __future__ import annotations

import pytest

from nutlet.methods.low_rank.ranks import Choice, cheapest, descent, within


def layer(*points: tuple[int, float]) -> list[Choice]:
    """Return choices of these parameters and errors; half as many multiply-accumulates."""
    return [Choice((k,) if k else (), error, size, size / 2) for k, (size, error) in enumerate(points)]


LAYERS = {
    "easy": layer((100, 0.0), (80, 0.1), (60, 0.2), (20, 4.0)),
    "hard": layer((100, 0.0), (90, 5.0), (50, 6.0), (10, 9.0)),
}


def test_each_step_is_the_one_of_least_error_for_what_it_saves() -> None:
    steps = [(name, choice.parameters) for name, choice in descent(LAYERS, "parameters")]
    # 0.005 for each parameter down to 60, then 0.095, then 0.1: the hard layer's other points lie above that line.
    assert steps == [("easy", 60), ("easy", 20), ("hard", 10)]


@pytest.mark.parametrize("what", ["parameters", "macs"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.45, 0.6, 0.84])
def test_the_saving_is_reached_and_hardly_exceeded(what: str, share: float) -> None:
    total = sum(choices[0].cost(what) for choices in LAYERS.values())  # type: ignore[arg-type]
    chosen, saved = within(LAYERS, what, share * total)  # type: ignore[arg-type]
    left = sum(chosen.get(name, choices[0]).cost(what) for name, choices in LAYERS.items())  # type: ignore[arg-type]
    assert saved == pytest.approx(total - left)
    assert saved >= share * total


def test_the_last_step_need_not_go_all_the_way() -> None:
    chosen, saved = within(LAYERS, "parameters", 125)
    assert chosen["easy"].parameters == 20
    assert chosen["hard"].parameters == 50
    assert saved == 130


def test_all_that_can_be_saved_is_where_more_is_asked() -> None:
    assert within(LAYERS, "parameters", 199)[1] == 170
    assert within({}, "parameters", 1) == ({}, 0.0)


def test_cheapest_is_none_where_all_lose_more() -> None:
    assert cheapest(LAYERS["hard"][1:], 1.0) is None
