"""Which blocks go first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nutlet as nl
import tiny
from nutlet.graph.residual import residual_units


class InvertedResidual(nn.Module):
    """As in MobileNetV2: the depthwise convolution inside keeps its shape as well, and so does the whole body."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width), nn.ReLU())
        self.project = nn.Conv2d(2 * width, out, 1)
        self.shortcut = width == out

    def forward(self, x: Tensor) -> Tensor:
        inner = self.project(self.depthwise(self.expand(x)))
        return x + inner if self.shortcut else inner


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.features = nn.Sequential(InvertedResidual(4, 8), InvertedResidual(8, 8), InvertedResidual(8, 8))
        self.head = nn.Linear(8, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self.stem(x)).mean((2, 3)))


def mobile() -> tuple[nn.Module, nl.Data, nl.Context]:
    torch.manual_seed(0)
    data = tiny.tiny_data((3, 8, 8))
    model = tiny.settled(Mobile(), data.calibration.x)
    return model, data, nl.Context(data=data, teacher=model)


def test_residual_units_go_before_what_lies_inside_of_others() -> None:
    model, data, context = mobile()
    plan = nl.DropBlocks(drop=3).plan(model, context)
    assert sorted(plan["dropped"][:2]) == ["features.1", "features.2"]
    assert plan["dropped"][2] == "features.0.depthwise"
    assert "dropped features.0.depthwise, which is no residual unit (all are gone)" in plan["notes"][2]
    with pytest.raises(nl.ConfigError, match=r"only 3 blocks can go: features\.0\.depthwise, features\.1, "):
        nl.compress(model, [nl.DropBlocks(drop=4)], data)
    assert nl.DropBlocks(drop=3).calibration_passes(model, data.calibration.x[:2]) == (4, 4)


@pytest.mark.parametrize(
    ("pattern", "dropped"),
    [
        ("features.*", {"features.1", "features.2"}),
        ("features.[12].depthwise", {"features.1.depthwise", "features.2.depthwise"}),
    ],
)
def test_a_pattern_chooses_what_it_says(pattern: str, dropped: set[str]) -> None:
    model, data, _ = mobile()
    result = nl.compress(model, [nl.DropBlocks(drop=2, pattern=pattern)], data)
    assert set(result.steps[1].plan["dropped"]) == dropped
    assert result.recipe == [nl.DropBlocks(drop=2, pattern=pattern)]


def test_a_pattern_of_nothing_is_told() -> None:
    model, _, context = mobile()
    with pytest.raises(nl.ConfigError, match=r"pattern is 'featurs\.1', .* did you mean 'features\.1'"):
        nl.DropBlocks(drop=1, pattern="featurs.1").plan(model, context)


class Odd(nn.Module):
    """``x`` is added before the last layer: what leaves is no longer what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x + self.a(x))


class PostNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(10, 10), nn.LayerNorm(10)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.norm(self.a(x).relu() + x), training=self.training)


class Gated(PostNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.a(x).sigmoid()


@pytest.mark.parametrize(("unit", "residual"), [(Odd, False), (PostNorm, True), (Gated, False)])
def test_what_a_residual_unit_is(unit: type[nn.Module], residual: bool) -> None:
    model = nn.Sequential(nn.Linear(10, 10), unit(), nn.Linear(10, 4)).eval()
    assert residual_units(model, torch.zeros(2, 10), ["1"]) == ["1"] * residual
    attention, data = tiny.tiny("attention")
    blocks = [name for name, module in attention.named_modules() if type(module).__name__ == "AttentionBlock"]
    assert blocks
    assert residual_units(attention, data.calibration.x[:2], blocks) == blocks
