"""Pruning of single weights as a step."""

from __future__ import annotations

import pytest
import torch

import nutlet as nl
import tiny
from nutlet.compression.size import size_of
from nutlet.constraints.stack import Mask, constrained_weight, constraints


def sparsity_of(result: nl.Compressed) -> dict[str, float]:
    layers = size_of(result.model, result.example).layers
    return {layer.name: layer.sparsity for layer in layers if layer.sparsity}


def test_layers_that_the_pattern_does_not_fit_are_left_alone_with_a_note() -> None:
    model, data = tiny.tiny("cnn")
    result = nl.compress(model, [nl.PruneWeights(pattern="2:4")], data)
    notes = result.steps[-1].notes
    assert "stem: its 3 input channels are not a multiple of 4, left alone" in notes
    assert "depthwise: its 1 input channels are not a multiple of 4, left alone" in notes
    assert set(result.steps[-1].plan["masked"]) == set(sparsity_of(result))
    assert set(sparsity_of(result).values()) == {0.5}


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    model, data = tiny.tiny("cnn")
    for method in (
        nl.PruneWeights(pattern="2:4", include=("stem",)),
        nl.PruneSecondOrder(sparsity=0.5, pattern="block", block=(5, 1)),
    ):
        with pytest.raises(nl.ConfigError, match=r"no layer in scope can take .*expected a pattern that divides"):
            nl.compress(model, [method], data)


def test_percent_is_explained() -> None:
    with pytest.raises(nl.ConfigError, match=r"50 percent would be 0\.5"):
        nl.PruneWeights(sparsity=50)


def test_a_pattern_refuses_what_contradicts_it() -> None:
    with pytest.raises(nl.ConfigError, match=r"makes it 0\.5; leave `sparsity` out"):
        nl.PruneWeights(pattern="2:4", sparsity=0.6)
    assert nl.PruneWeights(pattern="2:4", sparsity=0.5).sparsity == 0.5
    with pytest.raises(nl.ConfigError, match="leave `distribution` out"):
        nl.PruneWeights(pattern="2:4", distribution="uniform")


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk", "sensitivity"])
@pytest.mark.parametrize("criterion", ["magnitude", "activation", "taylor"])
def test_the_share_is_that_which_was_asked_for(criterion: str, distribution: str) -> None:
    model, data = tiny.tiny("cnn")
    options = {"sparsity": 0.6, "criterion": criterion, "distribution": distribution}
    result = nl.compress(model, [nl.method_from_dict({"PruneWeights": options})], data)
    weights = torch.cat([constrained_weight(m).flatten() for m in result.model.modules() if constraints(m)])
    assert float((weights == 0).float().mean()) == pytest.approx(0.6, abs=0.005)


def test_the_sensitive_layer_keeps_more_and_the_cost_is_said() -> None:
    model, data = tiny.tiny("mlp")
    with torch.no_grad():
        model.block1.fc2.weight.mul_(0.01)  # of no consequence for the output
    result = nl.compress(model, [nl.PruneWeights(sparsity=0.3, distribution="sensitivity")], data)
    shares = sparsity_of(result)
    assert set(sorted(shares, key=lambda name: shares[name])[-2:]) == {"block1.fc1", "block1.fc2"}
    assert "sensitivity: measured with 36 passes over the calibration examples" in result.steps[-1].notes


def test_zeros_stay_zeros_also_where_a_pattern_would_keep_them() -> None:
    model, data = tiny.tiny("mlp")
    once = nl.compress(model, [nl.PruneWeights(sparsity=0.8)], data)
    twice = nl.compress(model, [nl.PruneWeights(sparsity=0.8), nl.PruneWeights(pattern="2:4")], data)
    for name in twice.steps[-1].plan["masked"]:
        before = constrained_weight(once.model.get_submodule(name))
        after = constrained_weight(twice.model.get_submodule(name))
        assert not bool(after[before == 0].any()), name
        (mask,) = (c for c in constraints(twice.model.get_submodule(name)) if isinstance(c, Mask))
        assert torch.equal(mask.mask, after != 0)


def test_what_was_pruned_before_is_counted() -> None:
    model, data = tiny.tiny("mlp")
    chain = [nl.PruneWeights(sparsity=0.8, distribution="uniform"), nl.PruneWeights(sparsity=0.5)]
    result = nl.compress(model, chain, data)
    assert any("weights left already" in note for note in result.steps[-1].notes)
