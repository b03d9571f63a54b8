"""A budget spent over layers, against all ways of spending it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nutlet.methods.budget import choose, descent, share_out

LAYERS = {
    "easy": [(100, 0.0), (80, 0.1), (60, 0.2), (20, 4.0)],
    "hard": [(100, 0.0), (90, 5.0), (50, 6.0), (10, 9.0)],
}


def test_each_step_is_the_one_of_least_loss_for_what_it_saves() -> None:
    steps = [(step.layer, LAYERS[step.layer][step.option][0], step.saving) for step in descent(LAYERS)]
    # 0.005 for each unit down to 60, then 0.095, then 0.1: the hard layer's other points lie above that line.
    assert steps == [("easy", 60, 40), ("easy", 20, 40), ("hard", 10, 90)]
    prices = [step.price for step in descent(LAYERS)]
    assert prices == pytest.approx([0.005, 0.095, 0.1])


def test_what_is_no_cheaper_than_the_layer_as_it_is_is_never_chosen() -> None:
    assert descent({"a": [(10, 0.0), (10, -1.0), (12, -2.0)]}) == []


@pytest.mark.parametrize("saving", [20, 60, 90, 120, 168])
def test_the_saving_is_reached(saving: float) -> None:
    chosen, saved = choose(LAYERS, saving)
    left = sum(options[chosen.get(name, 0)][0] for name, options in LAYERS.items())
    assert saved == 200 - left
    assert saved >= saving


def test_the_last_step_need_not_go_all_the_way() -> None:
    assert choose(LAYERS, 125) == ({"easy": 3, "hard": 2}, 130)


def test_all_that_can_be_saved_is_where_more_is_asked() -> None:
    assert choose(LAYERS, 199)[1] == 170
    assert choose({}, 1) == ({}, 0.0)
    assert sum(share_out(LAYERS, 199).values()) == 170


def test_no_choice_of_the_same_cost_loses_less_on_convex_curves() -> None:
    draw = np.random.default_rng(0)
    layers = {}
    for name in "abc":
        savings = np.cumsum(draw.integers(1, 9, 4))
        losses = np.cumsum(np.sort(draw.random(4)) * np.diff(savings, prepend=0))
        layers[name] = [(40, 0.0), *((40 - int(s), float(loss)) for s, loss in zip(savings, losses, strict=True))]
    steps = descent(layers)
    for count in range(len(steps) + 1):
        chosen = {step.layer: step.option for step in steps[:count]}
        cost, loss = (sum(layers[n][chosen.get(n, 0)][k] for n in layers) for k in (0, 1))
        rivals = [
            sum(option[1] for option in options)
            for options in itertools.product(*layers.values())
            if sum(option[0] for option in options) <= cost
        ]
        assert loss == pytest.approx(min(rivals))


def test_a_loss_that_falls_with_the_cost_is_taken_first() -> None:
    # Eight bits may by chance lose more than four.
    assert choose({"a": [(8, 1.0), (4, 0.5), (2, 0.7)], "b": [(8, 0.0), (4, 0.0)]}, 4) == ({"a": 1}, 4)


def test_amounts_are_shared_out_between_the_options() -> None:
    assert share_out(LAYERS, 50) == {"easy": 50, "hard": 0}
    assert share_out(LAYERS, 110) == {"easy": 80, "hard": 30}
