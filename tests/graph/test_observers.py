"""Ranges of activations against what they are defined as."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nutlet.graph.observers import observer


def seen(kind: str, *batches: Tensor, levels: int = 256) -> tuple[float, float]:
    watching = observer(kind)  # type: ignore[arg-type]
    for batch in batches:
        assert watching(batch) is batch
    return watching.range(levels)


def skewed() -> Tensor:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).abs()
    values[:5] = torch.tensor([40.0, 45.0, 50.0, 55.0, 60.0])
    return values


@pytest.mark.parametrize("kind", ["minmax", "moving", "percentile", "mse", "entropy"])
def test_zero_is_always_inside(kind: str) -> None:
    low, high = seen(kind, torch.linspace(2, 3, 1000), torch.linspace(2, 5, 1000))
    assert low == 0
    assert 0 < high <= 5
    low, high = seen(kind, -torch.linspace(2, 3, 1000))
    assert high == 0
    assert -3 <= low < 0
    assert seen(kind, torch.zeros(10)) == (0, 0)


def test_minmax_and_moving_averages() -> None:
    batches = (torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 1.0]))
    assert seen("minmax", *batches) == (-3, 2)
    assert seen("moving", *batches) == pytest.approx((-1.2, 1.9))


def test_a_percentile_leaves_outliers_out() -> None:
    low, high = seen("percentile", skewed())
    assert low == 0
    assert high == pytest.approx(float(torch.quantile(skewed(), 1 - 1e-4)), rel=0.05)


@pytest.mark.parametrize("bits", [4, 8])
def test_mse_is_about_the_best_range_there_is(bits: int) -> None:
    values = skewed()

    def error(high: float) -> float:
        step = high / (2**bits - 1)
        return float((torch.round(values.clamp_max(high) / step) * step - values).square().sum())

    high = seen("mse", values, levels=2**bits)[1]
    best = min(error(h) for h in torch.linspace(0.5, 60, 400).tolist())
    assert error(high) <= best * 1.1
    assert error(high) < error(60.0) * (0.5 if bits == 4 else 1.01)


def test_entropy_gives_up_outliers_for_the_bulk() -> None:
    high = seen("entropy", skewed(), levels=16)[1]
    assert 1.5 < high < 30


def test_bins_are_joined_where_larger_values_come() -> None:
    one, other = torch.rand(5000) * 0.1, torch.rand(5000) * 30
    joined = seen("percentile", one, other)
    at_once = seen("percentile", torch.cat([one, other]))
    assert joined == pytest.approx(at_once, rel=0.01)


def test_a_nan_is_not_lost() -> None:
    for kind in ("minmax", "moving", "percentile", "mse"):
        assert not all(bound == bound for bound in seen(kind, torch.tensor([1.0, float("nan")]), torch.tensor([1.0])))
