"""AdaRound and GPTQ against rounding to the nearest."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from conformance.examples import check_constraints
from nutlet.compression.compressed import Compressed
from nutlet.compression.pipeline import compress
from nutlet.constraints import WeightQuantizer
from nutlet.constraints.stack import Mask, constrained_weight, constraints, raw_weight
from nutlet.graph.statistics import input_moments
from nutlet.graph.trace import InstrumentedModel
from nutlet.methods import GPTQ, AdaRound, Cluster, PruneWeights, Quantize
from nutlet.methods.base import Method
from nutlet.methods.quantization.rounding import Rounding
from nutlet.tasks.predict import predict

BOTH: list[Method] = [AdaRound(steps=200), GPTQ(group_size=0)]
both = pytest.mark.parametrize("method", BOTH, ids=lambda method: type(method).__name__)


def grid_of(layer: nn.Module) -> WeightQuantizer:
    (grid,) = (c for c in constraints(layer) if isinstance(c, WeightQuantizer))
    return grid


@both
@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_four_bits_answer_far_better_than_rounded_to_the_nearest(method: Method, kind: str) -> None:
    model, data = tiny.tiny(kind)
    answers = predict(model, data.validation)
    rounded = Quantize(bits=4, activations=False)
    before, after = (compress(model, steps, data) for steps in ([rounded], [method]))
    errors = [float((predict(r.model, data.validation) - answers).square().mean()) for r in (before, after)]
    assert errors[1] < 0.5 * errors[0]
    assert any("of those of rounding to nearest" in note for note in after.steps[1].notes)


@both
def test_no_output_of_a_layer_becomes_worse_and_masks_stay(method: Method) -> None:
    model, data = tiny.tiny("mlp")
    pruned = compress(model, PruneWeights(sparsity=0.3), data).model
    nearest = compress(model, [PruneWeights(sparsity=0.3), Quantize(bits=4, activations=False)], data).model
    result = compress(model, [PruneWeights(sparsity=0.3), method], data)
    names = result.steps[2].plan["rounded"]
    assert len(names) == 6
    moments = input_moments(nearest, names, data.calibration.batches())
    for name in names:
        old, new = nearest.get_submodule(name), result.model.get_submodule(name)
        assert torch.equal(grid_of(old).scale, grid_of(new).scale)
        (mask,) = (c for c in constraints(new) if isinstance(c, Mask))
        assert not bool(raw_weight(new)[~mask.mask].any())
        assert torch.equal(raw_weight(new), constrained_weight(new)), "the raw weight lies on the grid"
        target = constrained_weight(pruned.get_submodule(name))
        errors = []
        for layer in (old, new):
            difference = (constrained_weight(layer) - target).double()
            errors.append(((difference @ moments[name][0]) * difference).sum(-1))
        assert bool((errors[1] <= errors[0] * (1 + 1e-4) + 1e-9).all()), name
        assert not torch.equal(constrained_weight(new), constrained_weight(old))
    check_constraints(result.model)


@both
def test_activations_are_quantized_after_it(method: Method) -> None:
    model, data = tiny.tiny("cnn")
    weights = compress(model, method, data).model
    result = compress(model, [method, Quantize()], data).model
    assert isinstance(result, InstrumentedModel)
    for name in ("block1.conv1", "fc"):
        one, other = (constrained_weight(m.get_submodule(name)) for m in (weights, result.model))
        assert torch.equal(one, other)


def test_activations_before_grouped_weights_are_floating_point_again(tmp_path: Path) -> None:
    model, data = tiny.tiny("mlp")
    both = compress(model, [Quantize(), GPTQ(group_size=8)], data)
    assert isinstance(both.model, InstrumentedModel), "8 does not divide the 10 inputs of fc1, which stays on integers"
    assert list(both.model.by_site) == ["/input/0"]
    assert any("are in floating point again" in note for note in both.steps[-1].notes)
    loaded = Compressed.load(both.save(tmp_path), model)
    assert torch.equal(predict(loaded.model, data.validation), predict(both.model, data.validation))
    assert not isinstance(compress(model, [Quantize(), GPTQ(group_size=2)], data).model, InstrumentedModel)


@both
def test_layers_without_a_grid_get_one(method: Method) -> None:
    model, data = tiny.tiny("mlp")
    step = compress(model, method, data)
    assert all(len(grid_of(layer).levels) == 15 for layer in step.model.modules() if isinstance(layer, nn.Linear))
    grouped = compress(model, GPTQ(group_size=8), data).model
    assert grid_of(grouped.block1.fc1).grid.granularity == "group"
    assert len(grid_of(grouped.block1.fc1).scale) == 32
    assert grid_of(grouped.fc1).grid.granularity == "channel", "8 does not divide 10"


@both
def test_eight_portable_bits_stay_portable(method: Method) -> None:
    model, data = tiny.tiny("cnn")
    result = compress(model, [dataclasses.replace(method, bits=8)], data)
    assert len(result.steps[1].plan["rounded"]) == 9
    check_constraints(result.model)


@both
@pytest.mark.parametrize("first", [Cluster(values=8), Quantize(bits=4, activations=False)], ids=["shared", "grid"])
def test_as_few_values_are_kept(first: Method, method: Method) -> None:
    model, data = tiny.tiny("mlp")
    before = compress(model, first, data).model
    result = compress(model, [first, method], data)
    assert result.steps[2].plan["rounded"] == []
    assert any("block1.fc1: has" in note for note in result.steps[2].notes)
    assert any("nothing rounded" in note for note in result.steps[2].notes)
    assert torch.equal(constrained_weight(before.block1.fc1), constrained_weight(result.model.block1.fc1))


def problem(n: int = 6, m: int = 20) -> Rounding:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, n, generator=generator) @ torch.randn(n, n, generator=generator)
    weight = torch.randn(1, m, n, generator=generator)
    zeros, ones = torch.zeros_like(weight), torch.ones_like(weight)
    return Rounding(weight, (x.T @ x / 200)[None], zeros, 0.4 * ones, range(-7, 8), ones.bool())


def test_adaround_comes_near_the_best_of_all_roundings() -> None:
    rounding = problem()
    below = (rounding.weight / 0.4).floor()
    up = torch.tensor([*itertools.product([0.0, 1.0], repeat=6)])
    best = torch.stack([rounding.error(0.4 * (below + choice)) for choice in up]).amin(0)
    found = rounding.error(rounding.values(AdaRound()._learned(rounding)))
    nearest = rounding.error(0.4 * (rounding.weight / 0.4).round())
    assert float(found.sum()) < 1.5 * float(best.sum())
    assert float(nearest.sum()) > 2 * float(best.sum())


def test_gptq_feeds_errors_on_as_optimal_brain_surgery_says() -> None:
    rounding = problem()
    method = GPTQ(damping=1e-6)
    # Column by column, each time with the inverse of what is left, as in equation 2 of the paper.
    order = rounding.moments[0].diagonal().argsort(descending=True).tolist()
    weight = rounding.weight[0].double().clone()
    for place, k in enumerate(order):
        left = order[place:]
        inverse = torch.linalg.inv(rounding.moments[0].double()[left][:, left])
        rounded = 0.4 * (weight[:, k] / 0.4).round().clamp(-7, 7)
        update = (weight[:, k] - rounded)[:, None] / inverse[0, 0] * inverse[0]
        weight[:, left] -= update
        weight[:, k] = rounded
    found = rounding.values(method._eliminated(rounding))
    torch.testing.assert_close(found[0].double(), weight, atol=1e-4, rtol=1e-4)
