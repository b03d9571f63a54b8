"""Which blocks DropBlocks takes from a net like MobileNetV2: parts of residual units, as it did before, or whole units.

python bench/blocks.py [CASE ...]
"""

from __future__ import annotations

import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

import nutlet as nl
from nutlet.training.context import Context
from rows import DATA, Rows

SEEDS = [0]
DROPPED = 3
CASES = {
    # The smallest blocks that keep their shape: what was chosen before units were known.
    "parts": nl.DropBlocks(drop=DROPPED, pattern="features.*.depthwise"),
    "units": nl.DropBlocks(drop=DROPPED),
}


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; a shortcut where the shape stays (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.expand = conv(inputs, 4 * inputs)
        self.depthwise = conv(4 * inputs, 4 * inputs, 3, stride, groups=4 * inputs)
        self.project = nn.Sequential(nn.Conv2d(4 * inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        inner = self.project(self.depthwise(self.expand(x)))
        return x + inner if self.shortcut else inner


class MobileNet(nn.Module):
    """Images ``(B, 1, 28, 28)``: nine inverted residuals, six of them with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 8, 3, 2)
        widths = [(8, 12, 2), (12, 12, 1), (12, 12, 1), (12, 16, 2), (16, 16, 1), (16, 16, 1), (16, 24, 1)]
        widths += [(24, 24, 1), (24, 24, 1)]
        self.features = nn.Sequential(*(InvertedResidual(*width) for width in widths))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self.stem(x)).mean((2, 3)))


@cache
def trained(seed: int) -> tuple[nn.Module, nl.Data]:
    """Return the net, trained on 2,500 images of MNIST, and the data with 1,000 test images."""
    data = nl.load_data(str(DATA / "mnist.npz"), mean=(0.13,), std=(0.31,), seed=seed)
    few = nl.split(data.train.subset(slice(0, 2500)), data.test.subset(slice(0, 1000)), seed=seed)  # type: ignore[union-attr]
    torch.manual_seed(seed)
    model = MobileNet()
    training = nl.FineTune(epochs=4, lr=0.1, batch_size=64)
    training.train(model, Context(data=few, teacher=model, seed=seed))
    return model.eval(), few


def run(case: str) -> None:
    rows = Rows("blocks", case, SEEDS)
    for seed in SEEDS:
        model, data = trained(seed)
        assert data.test is not None
        dropped = nl.compress(model, [CASES[case]], data, seed=seed)
        recovered = nl.compress(model, [CASES[case], nl.FineTune(epochs=1, lr=0.02, batch_size=64)], data, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            original = nl.export_onnx(model, Path(folder) / "original.onnx", dropped.example)
            raw = nl.measure(
                dropped.export(Path(folder) / "dropped.onnx"), data, original, batches=(1,), threads=(1,), seconds=0.1
            )
            found = nl.measure(
                recovered.export(Path(folder) / "model.onnx"), data, original, batches=(1,), threads=(1,)
            )
        assert found.original is not None
        print(case, dropped.steps[1].plan["dropped"], flush=True)
        rows.add("accuracy_original", found.original.accuracy, "share")
        rows.add("accuracy_dropped", raw.compressed.accuracy, "share")
        rows.add("accuracy_recovered", found.compressed.accuracy, "share")
        rows.add("macs", recovered.steps[-1].size.macs / recovered.steps[0].size.macs, "share of the original's")
        rows.add("size_ratio", found.size_ratio or 0.0, "x")
        rows.add("speedup_batch1", found.speedups[0].ratio, "x")
    rows.write()


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        run(case)
