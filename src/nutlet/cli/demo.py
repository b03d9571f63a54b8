"""The demonstration: a small network trained in seconds on scikit-learn's digits, and the whole chain on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.auditing import Audit, Protocol, audit_files
from nutlet.compression.compressed import Compressed
from nutlet.compression.pipeline import compress
from nutlet.compression.ship import ship
from nutlet.data.examples import Data, Examples, check_seed, flip_and_crop, split
from nutlet.errors import MissingExtra
from nutlet.locks import locked
from nutlet.measurement import Measurement
from nutlet.measurement.parity import Parity
from nutlet.methods import Distill, DropBlocks, Factorize, FineTune, PruneChannels, Quantize
from nutlet.methods.base import Method
from nutlet.progress import Progress
from nutlet.training.context import Context

__all__ = ["DigitsNet", "digits", "run_demo"]

RECIPE: list[Method] = [
    DropBlocks(drop=1),
    PruneChannels(ratio=0.25, multiple_of=8),
    Distill(epochs=12, lr=0.05),
    Factorize(energy=0.9, include=("hidden",)),
    Distill(epochs=4, lr=0.01),
    Quantize(),
]


AUDIT = Protocol(
    queries=(100, 400), seeds=3, effort=0.2, shadow_models=4, attacks=("Knockoff", "BaVarIA", "FileLeaks", "Reuse")
)
"""A short one: what it is about, not the last word."""


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class DigitsNet(nn.Module):
    """A residual network for 8x8 grey images, 10 classes."""

    def __init__(self, width: int = 32, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.hidden = nn.Linear(width * 16, 128)
        self.out = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, 10)`` of images ``(B, 1, 8, 8)``."""
        x = F.max_pool2d(self.blocks(F.relu(self.stem(x))), 2)
        return self.out(F.relu(self.hidden(x.flatten(1))))  # type: ignore[no-any-return]


def digits(seed: int = 0) -> Data:
    """Return scikit-learn's 1,797 handwritten digits, a quarter of them for testing.

    Raises:
        ConfigError: ``seed`` is negative.
        MissingExtra: scikit-learn is not installed.
    """
    check_seed(seed)
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("scikit-learn", "demo", "the demonstration") from None
    images, labels = load_digits(return_X_y=True)
    # The pixels are 0 to 16.
    images = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype("uint8")
    order = np.random.default_rng(seed).permutation(len(labels))
    test, train = order[: len(labels) // 4], order[len(labels) // 4 :]
    return split(
        Examples.from_arrays(images[train], labels[train], mean=(0.3,), std=(0.35,)),
        Examples.from_arrays(images[test], labels[test], mean=(0.3,), std=(0.35,)),
        calibration=256,
        augment=flip_and_crop(padding=1, flip=False),
        seed=seed,
    )


def run_demo(
    out: Path, *, seed: int = 0, command: str = "nutlet demo", progress: Progress | None = None
) -> tuple[Compressed, Measurement, Parity, Audit]:
    """Train, compress, export, measure, and audit briefly; files and report go to ``out``.

    Raises:
        StorageError: ``out`` cannot be written, or another run is writing there.
    """
    progress = progress or Progress(quiet=True)
    with locked(out, progress):
        return _run(out, seed, command, progress)


def _run(out: Path, seed: int, command: str, progress: Progress) -> tuple[Compressed, Measurement, Parity, Audit]:
    data = digits(seed)
    torch.manual_seed(seed)
    model = DigitsNet()
    progress.say("training a small residual network on scikit-learn's digits")
    FineTune(epochs=12, lr=0.1, batch_size=64).train(
        model, Context(data=data, teacher=model, seed=seed, progress=progress)
    )
    result = compress(model, RECIPE, data, seed=seed, workdir=out / "steps", progress=progress)
    figures, parity = ship(
        result, model, data, out, command=command, names=("DigitsNet", "digits"), seconds=1.0, progress=progress
    )
    progress.say("auditing both files, briefly: a full audit is nutlet audit")
    audit = audit_files(
        out / "model.onnx", data, out / "original.onnx", out, protocol=AUDIT, retrained=True,
        command=command, progress=progress,
    )  # fmt: skip
    return result, figures, parity, audit
