"""What a shipped file answers."""

from __future__ import annotations

from pathlib import Path

from nutlet.data import Examples
from nutlet.measurement import Runtime, top1


def accuracy_of(file: Path, test: Examples) -> float:
    """Return the top-1 accuracy of an ONNX file in ONNX Runtime, in percent."""
    return 100 * top1(Runtime(file, threads=1).predict(test), test.y.numpy()).value
