"""Plain ONNX files that take the bits a method left, beside the same files unpacked.

    python bench/packed.py [CASE ...]

The recipes are those of ``bench/families.py`` and ``bench/main_job.py``, with their training cut short: every
``Distill`` is one epoch, on ResNet-20 on a tenth of the training images. That costs accuracy, which is not measured
here, and leaves the bytes: widths, ranks, bits and the share of zeros are in the recipe. Of the ternary network the
share of zeros is not; its codes take two bits whatever it is, or less. Both files are of one network, run in turn in
one process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from torch import nn

import families
import main_job
import nutlet as nl
from nutlet.data.examples import Data
from nutlet.formats import Runtime
from nutlet.loading import load_model
from nutlet.measurement import latencies
from rows import DATA, WORK, Rows

FOLDER = WORK / "packed"
SEED = 0
COMPARED = 2_000
"""Test images on which the outputs of both files are compared."""
LOADS = 9
"""How often each file is opened, in turn."""
SECONDS = 12.0
"""For the latency of both files."""


@dataclass(frozen=True)
class Case:
    """A network, a recipe, and how much smaller than the original's file the packed file has to be."""

    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    recipe: Sequence[nl.Method]
    size_ratio: float | None


def short(recipe: Sequence[nl.Method]) -> list[nl.Method]:
    """Return a recipe with every training cut to one epoch."""
    return [replace(step, epochs=1) if isinstance(step, nl.Distill) else step for step in recipe]


def cifar10() -> Data:
    data = families.cifar10()
    return replace(data, train=data.train.subset(slice(0, len(data.train) // 10)))


def of_main_job(name: str, size_ratio: float) -> Case:
    case = main_job.CASES[name]
    weights = DATA / "models" / case.weights
    model = partial(load_model, f"{DATA / 'models' / 'arch.py'}:{case.architecture}", weights)
    return Case(model, partial(case.data, SEED), short(case.recipe), size_ratio)


def resnet20(recipe: Sequence[nl.Method], size_ratio: float | None) -> Case:
    return Case(families.original, cifar10, short(recipe), size_ratio)


CASES = {
    "resnet20-4bit": resnet20(families.CASES["qat4"].recipe, 6.9),
    # With integer activations, as a runtime likes it: the codes of the weights stay as they are.
    "resnet20-ternary": resnet20([*families.CASES["ternary"].recipe, nl.Quantize()], 13.0),
    "resnet20-sparse60-4bit": resnet20([*families.CASES["obs60"].recipe, nl.Quantize(bits=4, edge_bits=8)], None),
    "lenet300-sparse": of_main_job("lenet300-sparse", 38.0),
    "lenet5-small": of_main_job("lenet5-small", 20.0),
}


def run(name: str) -> None:
    case, folder = CASES[name], FOLDER / name
    rows = Rows("packed", name, [SEED])
    model, data, begun = case.model(), case.data(), time.perf_counter()
    small = nl.compress(
        model, case.recipe, data, seed=SEED, workdir=folder / "steps", progress=nl.Progress(quiet=False)
    )
    # What the steps took when they were made: a second run only reads them back.
    rows.seconds += sum(step.seconds for step in small.steps) - (time.perf_counter() - begun)
    original = nl.export_onnx(model, folder / "original.onnx", small.example)
    packed = small.export(folder / "packed.onnx")
    unpacked = small.export(folder / "unpacked.onnx", packed=False)
    size, plain = packed.stat().st_size, unpacked.stat().st_size
    rows.add("size_ratio", original.stat().st_size / size, "x", case.size_ratio)
    rows.add("bytes", size, "B")
    rows.add("bytes_unpacked", plain, "B")

    assert data.test is not None
    files = [Runtime(file, threads=1) for file in (packed, unpacked)]
    some = data.test.subset(slice(0, COMPARED))
    first, second = (file.predict(some) for file in files)
    rows.add("outputs_equal", float((first == second).all(1).mean()), "share", 1.0)
    _, ((speed,),) = latencies(files, some, batches=(1,), threads=(1,), seconds=SECONDS)
    rows.add("latency_ratio_b1", speed.paired, "x", 0.97)
    rows.add("load_ms", extra_to_load(packed, unpacked), "ms")
    rows.write()
    print(name, {metric: values[0] for metric, values in rows.values.items()}, flush=True)


def extra_to_load(packed: Path, unpacked: Path) -> float:
    """Return how many milliseconds longer the packed file takes to open, in the median."""
    extra = []
    for _ in range(LOADS):
        took = []
        for file in (packed, unpacked):
            content = file.read_bytes()
            start = time.perf_counter()
            Runtime.from_bytes(content, file, threads=1)
            took.append(time.perf_counter() - start)
        extra.append(1000 * float(np.subtract(*took)))
    return median(extra)


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        run(name)
