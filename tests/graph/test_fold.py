"""Batch norms folded exactly where nothing else depends on them, and nowhere else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from nutlet.constraints import WeightQuantizer
from nutlet.constraints.stack import Mask, constrain, constrained_weight, constraints, raw_weight
from nutlet.graph.fold import fold, foldable
from nutlet.graph.trace import trace
from tiny import settled

PAIRS = {
    "conv1d": (nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4), (6, 9)),
    "conv2d": (nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), (6, 9, 9)),
    "conv3d": (nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), (2, 4, 4, 4)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), nn.BatchNorm2d(4), (6, 9, 9)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), (6, 9, 9)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2), nn.BatchNorm2d(4), (6, 5, 5)),
    "transposed grouped": (nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4), (6, 5, 5)),
    "transposed 1d": (nn.ConvTranspose1d(6, 4, 3, groups=2), nn.BatchNorm1d(4), (6, 5)),
    "linear": (nn.Linear(6, 4), nn.BatchNorm1d(4), (6,)),
    "no affine": (nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4, affine=False), (6,)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_folding_is_exact(name: str) -> None:
    layer, norm, shape = PAIRS[name]
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    model = settled(nn.Sequential(layer, norm), x)
    wanted = model(x)
    pairs = foldable(model, trace(model, x))
    assert pairs == [("0", "1")]
    fold(model, pairs)
    assert isinstance(model[1], nn.Identity)
    torch.testing.assert_close(model(x), wanted, atol=1e-5, rtol=1e-5)


def test_a_negative_gain_is_folded() -> None:
    x = torch.randn(5, 3, 6, 6)
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), x)
    with torch.no_grad():
        model[1].weight.neg_()
    wanted = model(x)
    fold(model, [("0", "1")])
    torch.testing.assert_close(model(x), wanted, atol=1e-5, rtol=1e-5)


class Net(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second = nn.BatchNorm2d(3)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        match self.way:
            case "output read twice":
                return self.norm(y) + y
            case "conv runs twice":
                return self.norm(y) + self.conv(x + 1)
            case "conv runs twice in a row":
                return self.norm(self.conv(y))
            case "norm runs twice":
                return self.norm(y) + self.norm(x)
            case "two norms":
                return self.norm(y) + self.second(y)
            case "relu between":
                return self.norm(y.relu())
            case "also an output":
                return torch.cat([self.norm(y), y])
            case "norm in front":
                return self.conv(self.norm(x))
            case "view changed":
                y += 1.0
                return self.norm(y)
        raise AssertionError(self.way)


WAYS = (
    "output read twice",
    "conv runs twice",
    "conv runs twice in a row",
    "norm runs twice",
    "two norms",
    "relu between",
    "also an output",
    "norm in front",
    "view changed",
)


@pytest.mark.parametrize("way", WAYS)
def test_not_folded_where_it_would_change_something(way: str) -> None:
    x = torch.randn(2, 3, 5, 5)
    model = settled(Net(way), x)
    assert foldable(model, trace(model, x)) == []


def test_a_shared_weight_or_bias_is_not_folded() -> None:
    """Folding writes to the weight, which the other layer uses as well."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.norm(self.one(x)))

    x = torch.randn(3, 4)
    model = settled(Tied(), x)
    assert foldable(model, trace(model, x)) == []


def test_norms_of_the_batch_itself_are_not_folded() -> None:
    x = torch.randn(4, 3)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    assert foldable(model, trace(model, x)) == []


def test_masks_are_carried_and_scales_recomputed() -> None:
    x = torch.randn(4, 3, 6, 6)
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), x)
    mask = torch.rand(4, 3, 3, 3) < 0.5
    constrain(model[0], [Mask(mask)])
    wanted = copy.deepcopy(model)(x)
    constrain(model[0], [WeightQuantizer.fit(constrained_weight(model[0]))])
    fold(model, foldable(model, trace(model, x)))
    assert not bool(constrained_weight(model[0])[~mask].any())
    quantizer = constraints(model[0])[0]
    assert isinstance(quantizer, WeightQuantizer)
    fresh = WeightQuantizer.fit(raw_weight(model[0]).detach() * mask)
    torch.testing.assert_close(quantizer.scale, fresh.scale)
    torch.testing.assert_close(model(x), wanted, atol=0.1, rtol=0.1)
