"""Statistics of batch norms, measured anew."""

from __future__ import annotations

import torch
from torch import nn

import tiny
from nutlet.compression.pipeline import compress
from nutlet.data.examples import Data
from nutlet.methods import PruneWeights, Quantize, ReestimateNorms
from nutlet.tasks.predict import predict


def test_one_norm_gets_the_statistics_of_what_it_sees() -> None:
    data = tiny.tiny_data((10,))
    model = nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 4))
    result = compress(model, ReestimateNorms(), data).model
    seen = model[0](data.train.x).detach()
    torch.testing.assert_close(result[1].running_mean, seen.mean(0))
    torch.testing.assert_close(result[1].running_var, seen.var(0))


def test_it_repairs_what_pruning_shifted() -> None:
    model, data = tiny.tiny("cnn")
    steps = [PruneWeights(sparsity=0.6), ReestimateNorms()]
    answers = predict(compress(model, ReestimateNorms(), data).model, data.validation)
    before, after = (
        float((predict(compress(model, s, data).model, data.validation) - answers).square().mean())
        for s in (steps[:1], steps)
    )
    assert after < 0.7 * before


def test_it_leaves_what_is_out_of_scope_and_says_when_no_norm_is_left() -> None:
    model, data = tiny.tiny("cnn")
    result = compress(model, ReestimateNorms(include=("block1",)), data)
    assert result.steps[1].plan["norms"] == ["block1.bn1", "block1.bn2"]
    assert torch.equal(result.model.norm.running_mean, model.norm.running_mean)
    folded = compress(model, [Quantize(), ReestimateNorms()], data)
    assert any("no batch norm with running statistics is left" in note for note in folded.steps[2].notes)


def test_a_single_example_left_over_is_not_looked_at() -> None:
    model, data = tiny.tiny("cnn")
    odd = Data(train=data.train.subset(slice(0, 33)), validation=data.validation, calibration=data.calibration)
    even = Data(train=data.train.subset(slice(0, 33)), validation=data.validation, calibration=data.calibration)
    first = compress(model, ReestimateNorms(batch_size=32), odd)
    second = compress(model, ReestimateNorms(batch_size=32, examples=32), even)
    assert torch.equal(first.model.norm.running_var, second.model.norm.running_var)
