"""Which blocks `DropBlocks` may remove: residual units before what is inside of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import nutlet as nl
from nutlet.methods.pruning.drop_blocks import blocks_in_scope, droppable


def convolution(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6())


class Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3))).sigmoid()[:, :, None, None]


class Inverted(nn.Module):
    """That of MobileNetV2, with a gate: its depthwise convolution keeps the shape as well."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual, inner = inputs == outputs, 2 * inputs
        self.conv = nn.Sequential(
            convolution(inputs, inner, 1),
            convolution(inner, inner, 3, inner),
            Gate(inner),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


@pytest.fixture
def mobile() -> nn.Module:
    torch.manual_seed(0)
    stages = nn.Sequential(Inverted(4, 6), nn.Sequential(Inverted(6, 6), Inverted(6, 6)))
    net = nn.Sequential(nn.Conv2d(3, 4, 1), stages, nn.Flatten(), nn.Linear(6 * 16, 3))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after a training: a silent layer must not look like a shifted one
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.bias, -1, 1)
    return net.eval()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"drop": 1}, ["1.1.0", "1.1.1"]),
        ({"drop": 3}, ["1.0.conv.1", "1.0.conv.2", "1.1.0", "1.1.1"]),
        ({"drop": 1, "include": ("1.1.0.conv.1",)}, ["1.1.0.conv.1"]),
        ({"drop": 1, "include": ("1.1.1*",)}, ["1.1.1"]),
        ({"drop": 1, "include": ("1.1", "1.1.*")}, ["1.1.0", "1.1.1"]),
        ({"drop": 5}, [f"{unit}.conv.{part}" for unit in ("1.0", "1.1.0", "1.1.1") for part in (1, 2)]),
    ],
)
def test_residual_units_before_what_is_inside(mobile, options, expected):
    step = nl.DropBlocks(**options)
    assert blocks_in_scope(mobile, torch.randn(2, 3, 4, 4), step, step.drop) == expected


def test_transformers_and_looking_changes_nothing(mobile):
    x = torch.randn(2, 3, 4, 4)
    before = mobile(x)
    assert droppable(mobile, x)[1] == {"1.1", "1.1.0", "1.1.1"}
    assert torch.equal(mobile(x), before)
    layers = (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(2))
    model = nn.Sequential(nn.Linear(8, 8), *layers).eval()
    assert droppable(model, torch.randn(2, 5, 8))[1] == {"1", "2"}
