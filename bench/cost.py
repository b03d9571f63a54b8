"""What `compress([Quantize()])` and export cost as models grow: seconds on one thread, and the most memory at once.

    python bench/cost.py                    # every case, each in a process of its own
    python bench/cost.py vit-tiny

Weights are random: cost does not depend on their values. Needs timm (`python bench/zoo.py --setup`) for two of the
cases. `cpu_seconds` is processor time of both together, which a busy machine stretches less than time on the clock.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor, nn

import nutlet as nl
import torchvision_standin
from nutlet.data.examples import Data, Examples
from rows import Rows

CLASSES = 10
EXAMPLES = 32
BARS = {"vit-tiny": {"compress_seconds": 25.0, "export_seconds": 40.0}, "encoder-100m": {"peak_gib": 4.0}}
ENCODER_SECONDS = 600.0
"""Bar on the compression and the export of the encoder together."""


class Tiny(nn.Sequential):
    """A convolution and a dense layer."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, CLASSES))


class Block(nn.Module):
    """Two convolutions around a shortcut that pads with zero channels (He et al. 2015, arXiv:1512.03385, option A)."""

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.added:
            half = self.added // 2
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return torch.relu(y + x)


def resnet20() -> nn.Module:
    blocks: list[nn.Module] = []
    inner = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for number in range(3):
            blocks.append(Block(inner, width, stride if number == 0 else 1))
            inner = width
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


class Encoder(nn.Module):
    """Rows of 64 tokens of 768 values through 15 transformer layers, the mean of which is classified."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, batch_first=True) for _ in range(15)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(768, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def of_timm(name: str) -> nn.Module:
    torchvision_standin.install()
    import timm

    model: nn.Module = timm.create_model(name, num_classes=CLASSES)
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tiny": (Tiny, (3, 32, 32)),
    "resnet20": (resnet20, (3, 32, 32)),
    "vit-tiny": (lambda: of_timm("vit_tiny_patch16_224"), (3, 224, 224)),
    "swin-t": (lambda: of_timm("swin_tiny_patch4_window7_224"), (3, 224, 224)),
    "encoder-100m": (Encoder, (64, 768)),
}


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(case: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, shape = CASES[case]
    model = make().eval()
    examples = Examples(torch.randn(EXAMPLES, *shape), torch.arange(EXAMPLES) % CLASSES)
    data = Data(train=examples, validation=examples, calibration=examples)
    bars = BARS.get(case, {})
    rows = Rows("cost", case, seeds=[0])
    rows.add("parameters", sum(p.numel() for p in model.parameters()), "")
    processor, start = time.process_time(), time.perf_counter()
    compressed = nl.compress(model, [nl.Quantize()], data)
    middle = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        compressed.export(Path(scratch) / "model.onnx")
    end = time.perf_counter()
    rows.add("compress_seconds", middle - start, "s", bars.get("compress_seconds"))
    rows.add("export_seconds", end - middle, "s", bars.get("export_seconds"))
    rows.add("total_seconds", end - start, "s", ENCODER_SECONDS if case == "encoder-100m" else None)
    rows.add("cpu_seconds", time.process_time() - processor, "s")
    rows.add("peak_gib", peak_gib(), "GiB", bars.get("peak_gib"))
    rows.write()


def main() -> None:
    named = sys.argv[1:]
    unknown = [case for case in named if case not in CASES]
    if unknown:
        sys.exit(f"found {', '.join(unknown)}; expected cases among {', '.join(CASES)}")
    if len(named) == 1:
        measure(named[0])
        return
    for case in named or CASES:
        subprocess.run([sys.executable, __file__, case], check=True)


if __name__ == "__main__":
    main()
