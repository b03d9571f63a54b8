from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nutlet.data.examples import Examples
from nutlet.errors import DataError, ModelError
from nutlet.measurement import agreement, difference, predict_module, top1, wilson


# Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_published_values(successes: int, total: int, low: float, high: float) -> None:
    assert wilson(successes, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("total", [1, 7, 100, 10_000, 1_000_003])
def test_wilson_holds_its_estimate_at_the_ends(total: int) -> None:
    assert wilson(0, total)[0] == 0 < wilson(0, total)[1] <= 1
    assert wilson(total, total)[1] == 1 > wilson(total, total)[0] >= 0


@pytest.mark.parametrize(("successes", "total"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(successes: int, total: int) -> None:
    with pytest.raises(DataError, match="expected 0 <= successes"):
        wilson(successes, total)


def test_wilson_covers_about_95_percent() -> None:
    drawn = np.random.default_rng(0).binomial(200, 0.9, 2000)
    covered = [low <= 0.9 <= high for low, high in (wilson(int(k), 200) for k in drawn)]
    assert 0.93 < np.mean(covered) < 0.97


def test_paired_difference_published_value() -> None:
    # Newcombe (1998), paired data, 36 / 12 / 2 / 0, method 10.
    first = np.repeat([True, False, True, False], [36, 12, 2, 0])
    second = np.repeat([True, True, False, False], [36, 12, 2, 0])
    found = difference(first, second)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)


def test_paired_difference_is_narrow_for_models_that_fail_together() -> None:
    right = np.arange(10_000) % 10 > 0
    same, apart = difference(right, right), difference(right, np.roll(right, 1))
    assert same.value == 0
    assert same.low < 0 < same.high < 0.001
    assert apart.high > 0.005


def test_paired_difference_turns_its_sign() -> None:
    one, two = np.arange(100) < 90, np.arange(100) < 80
    ahead, behind = difference(two, one), difference(one, two)
    assert (ahead.value, ahead.low, ahead.high) == pytest.approx((-behind.value, -behind.high, -behind.low))


def test_top1_and_agreement() -> None:
    outputs, others = np.eye(4), np.eye(4)[[0, 1, 3, 3]]
    assert top1(outputs, np.array([0, 1, 2, 0])).value == 0.75
    assert agreement(outputs, others).value == 0.75


def test_labels_beyond_the_outputs_are_an_error() -> None:
    with pytest.raises(DataError, match="largest label is 7, but the model gives 4 classes"):
        top1(np.eye(4), np.array([0, 1, 2, 7]))
    with pytest.raises(DataError, match="4 rows of outputs for 3 labels"):
        top1(np.eye(4), np.array([0, 1, 2]))
    with pytest.raises(DataError, match="same examples and classes"):
        agreement(np.eye(4), np.eye(5))


def test_module_modes_are_put_back(examples: Examples) -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 4)).train()
    model[0].eval()
    before = [module.training for module in model.modules()]
    assert np.array_equal(predict_module(model, examples, batch=3), predict_module(model, examples, batch=3))
    assert [module.training for module in model.modules()] == before


def test_module_modes_are_put_back_after_an_error(examples: Examples) -> None:
    model = nn.Linear(5, 4).train()
    with pytest.raises(RuntimeError):
        predict_module(model, examples)
    assert model.training


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_module_with_broken_outputs_is_an_error(examples: Examples, value: float) -> None:
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.bias[1] = value
    with pytest.raises(ModelError, match="NaN or infinity for 20 of 20 examples, the first at index 0"):
        predict_module(model, examples)


def test_module_that_returns_a_feature_map_is_an_error(examples: Examples) -> None:
    with pytest.raises(ModelError, match=r"shape \(20, 4, 1\) for 20 examples; expected one tensor \(N, classes\)"):
        predict_module(nn.Unflatten(1, (4, 1)), examples)
