"""Equalising changes ranges and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from nutlet.compression.pipeline import compress
from nutlet.constraints import WeightQuantizer
from nutlet.constraints.stack import Mask, constrain, constrained_weight, constraints, raw_weight
from nutlet.graph.channels import scale_inputs, scale_outputs
from nutlet.graph.equivalent_scaling import Link
from nutlet.graph.fold import fold, foldable
from nutlet.graph.trace import InstrumentedModel, trace
from nutlet.methods import Cluster, Equalize, PruneWeights, Quantize
from nutlet.methods.base import Plan
from nutlet.training.context import Context


def equalized(model: nn.Module, x: Tensor) -> tuple[nn.Module, Plan]:
    """Return the model after the method, the original untouched, and the plan."""
    data = tiny.tiny_data(tuple(x.shape[1:]))
    plan = Equalize().plan(model, Context(data=data, teacher=model))
    return Equalize.apply(copy.deepcopy(model), plan, x), plan


CHAINS = {
    "dense": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (6,)),
    "factors": (nn.Sequential(nn.Linear(6, 3, bias=False), nn.Linear(3, 8)), (6,)),
    "three": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), (6,)),
    "norm": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.Conv2d(4, 5, 3)), (3, 8, 8)),
    "depthwise": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 5, 1)), (3, 8, 8)),
    "grouped": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2)), (3, 8, 8)),
    "flattened": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)), (3, 8, 8)),
    "transposed": (
        nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.ConvTranspose1d(4, 6, 3, groups=2), nn.Conv1d(6, 2, 1)),
        (3, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_the_function_stays_and_the_ranges_become_equal(name: str) -> None:
    model, shape = CHAINS[name]
    x = torch.randn(9, *shape, generator=torch.Generator().manual_seed(0))
    model = tiny.settled(nn.Sequential(*model, nn.Flatten()), x)
    with torch.no_grad():
        raw_weight(model[0])[1] *= 30
    expected = model(x)
    result, plan = equalized(model, x)
    assert len(plan["links"]) == sum(isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)) for m in model) - 1
    torch.testing.assert_close(result(x), expected, atol=1e-5 * float(expected.detach().abs().max()), rtol=1e-5)
    fold(result, foldable(result, trace(result, x)))
    torch.testing.assert_close(result(x), expected, atol=1e-5 * float(expected.detach().abs().max()), rtol=1e-5)
    for layer, _, readers in plan["links"]:
        link = Link(layer, None, tuple(readers))
        torch.testing.assert_close(link.made(result), link.read(result), rtol=1e-3, atol=0)


class Net(nn.Module):
    """Two layers, and what is between them and around them as told."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.way = nn.Linear(6, 8), nn.Linear(8, 8), way

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.way == "also read by a sum":
            return self.b(y) + y
        if self.way == "clipped":
            return self.b(F.relu6(y))
        if self.way == "not homogeneous":
            return self.b(torch.tanh(y))
        if self.way == "runs twice":
            return self.b(self.b(y))
        if self.way == "mixed up":
            return self.b(y.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8))
        return self.b(y)


@pytest.mark.parametrize("way", ["also read by a sum", "clipped", "not homogeneous", "runs twice", "mixed up"])
def test_layers_that_cannot_be_scaled_exactly_are_left_alone(way: str) -> None:
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    model = tiny.settled(Net(way), x)
    result, plan = equalized(model, x)
    assert plan["links"] == []
    assert any("nothing equalized" in note for note in plan["notes"])
    assert torch.equal(result(x), model(x))
    if way == "clipped":
        assert any("relu6 clips" in note for note in plan["notes"])
    if way == "mixed up":
        assert any("do not correspond" in note for note in plan["notes"])


def test_masks_are_carried_and_a_removed_channel_is_left_alone() -> None:
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    model = tiny.settled(Net("plain"), x)
    mask = torch.rand(8, 6, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[3] = False
    constrain(model.a, [Mask(mask)])
    with torch.no_grad():
        raw_weight(model.a)[~mask] = 1e6  # what a mask hides has no range
    expected = model(x)
    result, plan = equalized(model, x)
    assert plan["notes"] == []
    torch.testing.assert_close(result(x), expected, atol=1e-5, rtol=1e-5)
    assert not result.a.weight[~mask].any()
    assert torch.equal(result.b.weight[:, 3], model.b.weight[:, 3])


def test_grids_are_fitted_anew_and_ranges_of_activations_taken_anew() -> None:
    torch.manual_seed(0)
    model, data = tiny.tiny("cnn")
    result = compress(model, [PruneWeights(sparsity=0.5), Quantize(), Equalize()], data)
    body = result.model
    assert isinstance(body, InstrumentedModel)
    layer = body.model.block1.conv1
    grid = next(c for c in constraints(layer) if isinstance(c, WeightQuantizer))
    assert bool((grid.codes(constrained_weight(layer)).abs().flatten(1).amax(1) > 60).all())
    assert any("block1.conv1: its quantizer was fitted" in note for note in result.steps[3].notes)
    assert result.steps[3].plan["activations"] != result.steps[2].plan["activations"]
    assert abs(result.steps[3].accuracy - result.steps[2].accuracy) < 0.1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 6),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.Conv1d(4, 4, 3, groups=4),
    ],
)
def test_scaling_of_channels(layer: nn.Module) -> None:
    shape = (5, 4, 7, 7)[: raw_weight(layer).ndim]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(layer)
    outputs = plain(x)
    factor = torch.rand(outputs.shape[1], generator=torch.Generator().manual_seed(1)) + 0.5
    wide = factor.view(-1, *[1] * (x.ndim - 2))
    scale_outputs(layer, factor)
    layer.get_parameter("bias").data *= factor
    torch.testing.assert_close(layer(x), outputs * wide)
    narrow = torch.rand(4, generator=torch.Generator().manual_seed(2)) + 0.5
    scale_inputs(layer, 1 / narrow)
    torch.testing.assert_close(layer(x * narrow.view(-1, *[1] * (x.ndim - 2))), outputs * wide)


def test_shared_values_are_left_alone() -> None:
    model, data = tiny.tiny("mlp")
    step = compress(model, [Cluster(values=8, include=("block1.fc2",)), Equalize()], data).steps[2]
    assert [link[0] for link in step.plan["links"]] == ["block2.fc1"]
    assert any("block1.fc2: no factor may move the values it shares" in note for note in step.notes)
