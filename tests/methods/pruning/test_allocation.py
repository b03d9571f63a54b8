"""How much each layer keeps."""

from __future__ import annotations

import pytest
import torch

from nutlet.methods.pruning.allocation import LEVELS, by_rank, by_sensitivity, erk_densities


def test_ranks_across_layers_with_the_exact_count() -> None:
    units = {"a": torch.arange(10.0), "b": torch.arange(10.0, 40.0)}
    assert by_rank(units, 0.5) == {"a": 0, "b": 20}
    assert sum(by_rank({"a": torch.ones(10), "b": torch.ones(31)}, 0.5).values()) == 41 - 20


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
def test_densities_follow_the_kernel(sparsity: float) -> None:
    shapes = {"stem": (16, 3, 3, 3), "conv": (64, 64, 3, 3), "wide": (128, 64, 3, 3), "fc": (10, 128)}
    found = erk_densities(shapes, sparsity)
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    kept = sum(found[name] * sizes[name] for name in shapes)
    assert kept == pytest.approx((1 - sparsity) * sum(sizes.values()))
    assert all(0 < density <= 1 for density in found.values())
    # (64 + 64 + 3 + 3) / (64 64 3 3) and so on, one factor for all that are not full
    factors = [found[name] / (sum(shapes[name]) / sizes[name]) for name in shapes if found[name] < 1]
    assert factors == pytest.approx(factors[:1] * len(factors))


def test_what_costs_least_goes_first() -> None:
    sizes = {"tough": 100, "soft": 100, "large": 200}
    losses = {name: [whole * level for level in LEVELS] for name, whole in (("tough", 9.0), ("soft", 1), ("large", 2))}
    # For each weight: 0.09, 0.01 and 0.01.
    assert by_sensitivity(sizes, 0.75, losses) == {"tough": 100, "soft": 0, "large": 0}


def test_losses_that_rise_are_shared_out() -> None:
    rising = [level**2 for level in LEVELS]
    assert by_sensitivity({"a": 1000, "b": 1000}, 0.5, {"a": rising, "b": rising}) == {"a": 500, "b": 500}
