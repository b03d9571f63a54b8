"""What a shipped file answers."""

from __future__ import annotations

from pathlib import Path

from nutlet.data.examples import Data
from nutlet.measurement import Runtime, top1


def accuracy_of(file: Path, data: Data) -> float:
    """Return the top-1 accuracy of an ONNX file in ONNX Runtime on all test examples, in percent."""
    test = data.test
    assert test is not None
    return 100 * top1(Runtime(file, threads=1).predict(test), test.y.numpy()).value
