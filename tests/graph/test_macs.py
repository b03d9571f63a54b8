"""Multiply-accumulates against values counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.graph.macs import macs
from nutlet.graph.trace import trace


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, call: object) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)  # type: ignore[operator]


class Windows(nn.Module):
    """As in window attention: what is a batch for the layer is not one for the model."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(0, 1)).unflatten(0, x.shape[:2]).sum(1)


class TimeFirst(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.rnn = kind(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x.transpose(0, 1))[0][-1]


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x[:, :3], x, x)[0]


def scaled(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


IMAGE = (6, 10, 8)
CASES = {
    "conv": (nn.Conv2d(6, 4, 3), IMAGE, 4 * 8 * 6 * (6 * 9)),
    "strided and padded": (nn.Conv2d(6, 4, 3, stride=2, padding=1), IMAGE, 4 * 5 * 4 * (6 * 9)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), IMAGE, 4 * 8 * 6 * (3 * 9)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), IMAGE, 6 * 8 * 6 * 9),
    "one dimension": (nn.Conv1d(6, 4, 3), (6, 10), 4 * 8 * (6 * 3)),
    "three dimensions": (nn.Conv3d(2, 4, 3), (2, 5, 5, 5), 4 * 27 * (2 * 27)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2), IMAGE, 6 * 80 * (4 * 9)),
    "transposed grouped": (nn.ConvTranspose2d(6, 4, 3, groups=2), IMAGE, 6 * 80 * (2 * 9)),
    "linear": (nn.Linear(8, 5), (8,), 40),
    "linear over positions": (nn.Linear(8, 5), (7, 8), 7 * 40),
    "linear over windows": (Windows(), (7, 8), 7 * 40),
    "matmul": (Call(lambda x: x @ x.transpose(1, 2)), (3, 4), 3 * 3 * 4),
    "bmm": (Call(lambda x: torch.bmm(x, x.transpose(1, 2))), (3, 4), 3 * 3 * 4),
    "mm": (Call(lambda x: torch.mm(x, torch.ones(4, 3))), (4,), 12),
    "weight first": (Call(lambda x: (torch.ones(5, 4) @ x.t()).t()), (4,), 20),
    "addmm": (Call(lambda x: torch.addmm(torch.zeros(3), x, torch.ones(4, 3))), (4,), 12),
    "attention": (Call(scaled), (2, 5, 8), 2 * 2 * 5 * 5 * 8),
    "multi-head attention": (SelfAttention(), (5, 8), 4 * 5 * 64 + 2 * 5 * 5 * 8),
    "cross attention": (CrossAttention(), (5, 8), 2 * 3 * 64 + 2 * 5 * 64 + 2 * 3 * 5 * 8),
    "LSTM": (nn.Sequential(nn.LSTM(4, 5, batch_first=True), Call(lambda r: r[0])), (7, 4), 7 * 4 * (4 * 5 + 5 * 5)),
    "LSTM of two layers": (
        nn.Sequential(nn.LSTM(4, 5, 2, batch_first=True), Call(lambda r: r[0])),
        (7, 4),
        7 * 4 * (4 * 5 + 5 * 5 + 5 * 5 + 5 * 5),
    ),
    "LSTM both ways": (
        nn.Sequential(nn.LSTM(4, 5, bidirectional=True, batch_first=True), Call(lambda r: r[0])),
        (7, 4),
        2 * 7 * 4 * (4 * 5 + 5 * 5),
    ),
    "LSTM time first": (TimeFirst(nn.LSTM), (7, 4), 7 * 4 * (4 * 5 + 5 * 5)),
    "GRU": (TimeFirst(nn.GRU), (7, 4), 7 * 3 * (4 * 5 + 5 * 5)),
    "twice the same": (nn.Sequential(*[nn.Linear(4, 4)] * 2), (4,), 32),
    "nothing": (nn.Sequential(nn.ReLU(), nn.Flatten()), IMAGE, 0),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_macs(name: str, batch: int) -> None:
    model, shape, wanted = CASES[name]
    assert macs(trace(model, torch.zeros(batch, *shape))) == wanted
