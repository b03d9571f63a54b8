"""The main job on real trained models: compress, export, and measure the shipped file in ONNX Runtime.

    python bench/main_job.py [CASE ...]

Ratios are original over compressed; the original's file is its fp32 ONNX from the same exporter. Latency: one thread,
original and compressed interleaved in one run. Files and intermediates stay under NUTLET_BENCH_WORK, so that a second
run measures anew but does not train anew.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import rich

import nutlet as nl
from nutlet.data.examples import Data
from nutlet.loading import load_data, load_model
from nutlet.measurement import FileFigures, Measurement, measure
from rows import DATA, WORK, Rows


@dataclass(frozen=True)
class Case:
    architecture: str
    weights: str
    data: Callable[[int], Data]
    recipe: list[nl.Method]
    bars: dict[str, float]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    zstd: bool = False


def cifar10(seed: int) -> Data:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return load_data(str(DATA / "cifar10"), mean=mean, std=std, augment="flip-crop", validation=0.04, seed=seed)


def mnist(seed: int) -> Data:
    return load_data(str(DATA / "mnist.npz"), mean=(0.1307,), std=(0.3081,), validation=0.05, seed=seed)


def distill_mnist(epochs: int) -> nl.Method:
    # No batch norm in these networks: SGD at the rates that suit a ResNet diverges.
    return nl.Distill(epochs=epochs, lr=2e-3, optimizer="adamw", weight_decay=0.01)


CASES = {
    "resnet20-int8": Case(
        "CifarResNet(20)",
        "resnet20_cifar10.pt",
        cifar10,
        [nl.Quantize()],
        {"accuracy_drop_pp": 0.15, "size_ratio": 3.7, "latency_ratio_b1": 2.0, "latency_ratio_b32": 2.3},
    ),
    "resnet20-small": Case(
        "CifarResNet(20)",
        "resnet20_cifar10.pt",
        cifar10,
        [nl.DropBlocks(drop=4), nl.Distill(epochs=30, lr=0.1), nl.Quantize()],
        {"accuracy_drop_pp": 1.0, "size_ratio": 6.0, "latency_ratio_b1": 3.4, "latency_ratio_b32": 4.0},
        seeds=[0],  # more than an hour each on two cores
    ),
    "lenet5-small": Case(
        "LeNet5()",
        "lenet5.pt",
        mnist,
        [
            nl.PruneChannels(ratio=0.75),
            distill_mnist(8),
            nl.Factorize(rank=16, include=("fc1",)),
            distill_mnist(4),
            # Integers where the bytes are. Layers this small run faster in floating point where int8 has no dot product
            # of its own (VNNI), and restoring the few weights of the others would cost more time than it saves bytes.
            nl.Quantize(activations=False, include=("fc1.*",)),
        ],
        {"test_error_pct": 0.9, "size_ratio": 20.0, "latency_ratio_b1": 3.0},
    ),
    "lenet300-sparse": Case(
        "LeNet300()",
        "lenet300.pt",
        mnist,
        [
            nl.PruneWeights(sparsity=0.8),
            distill_mnist(5),
            nl.PruneWeights(sparsity=0.92),
            distill_mnist(5),
            nl.PruneWeights(sparsity=0.96),
            distill_mnist(20),
            nl.Quantize(),
        ],
        {"test_error_pct": 1.8, "size_ratio": 40.0},
        zstd=True,
    ),
}


def run(name: str) -> None:
    case = CASES[name]
    rows = Rows("main_job", name, case.seeds)
    for seed in case.seeds:
        run_seed(name, case, seed, rows)
    rows.write()


def run_seed(name: str, case: Case, seed: int, rows: Rows) -> None:
    data, out = case.data(seed), WORK / name / f"seed{seed}"
    model = load_model(f"{DATA / 'models' / 'arch.py'}:{case.architecture}", DATA / "models" / case.weights)
    begun = time.perf_counter()
    result = nl.compress(
        model, case.recipe, data, seed=seed, workdir=WORK / name / "steps", progress=nl.Progress(quiet=False)
    )
    # What the steps took when they were made: a second run only reads them back.
    rows.seconds += sum(step.seconds for step in result.steps) - (time.perf_counter() - begun)
    figures, check = nl.ship(
        result, model, data, out, command=f"python bench/main_job.py {name}", names=(case.architecture, name)
    )
    rich.print(f"seed {seed}", result, figures, str(check))
    add_rows(rows, figures, case)
    rows.add("parity_agreement", check.agreement, "share")
    if name == "resnet20-int8":
        peer = ort_quantizer(out / "original.onnx", data)
        theirs = measure(peer, data, out / "original.onnx", seconds=4.0)
        rich.print("ONNX Runtime's own quantizer", theirs)
        add_rows(rows, theirs, case, "ort_")
        # The two quantized files side by side, for "no slower than".
        side_by_side = measure(out / "model.onnx", data, peer, seconds=4.0)
        rich.print("Ours (new) against ONNX Runtime's quantizer (old)", side_by_side)
        for batch in (1, 32):
            rows.add(f"speed_over_ort_b{batch}", side_by_side.speedup(batch, 1) or 0.0, "x", 1.0)


def add_rows(rows: Rows, figures: Measurement, case: Case, prefix: str = "") -> None:
    bars = {} if prefix else case.bars
    size = figures.size_ratio
    if case.zstd:  # what is downloaded, against the original as it lies on disk
        assert isinstance(figures.original, FileFigures)
        size = figures.original.bytes / figures.compressed.bytes_zstd
    values = {
        "accuracy_drop_pp": (figures.accuracy_drop_pp, "pp"),
        "test_error_pct": (100 * (1 - figures.compressed.accuracy), "%"),
        "size_ratio": (size, "x"),
        "latency_ratio_b1": (figures.speedup(1, 1), "x"),
        "latency_ratio_b32": (figures.speedup(32, 1), "x"),
        "size_ratio_zstd": (figures.size_ratio_zstd, "x"),
        "bytes": (figures.compressed.bytes_zstd if case.zstd else figures.compressed.bytes, "B"),
    }
    for metric, (value, unit) in values.items():
        assert value is not None
        rows.add(prefix + metric, value, unit, bars.get(metric))


def ort_quantizer(original: Path, data: Data) -> Path:
    """Quantize with ONNX Runtime's own tool: static, per channel, u8s8, on the same calibration examples."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": x.numpy()} for x, _ in data.calibration.batches(64)])

        def get_next(self) -> dict[str, object] | None:
            return next(self.batches, None)

    prepared, quantized = original.with_name("ort_prepared.onnx"), original.with_name("ort_int8.onnx")
    quant_pre_process(str(original), str(prepared))
    quantize_static(
        str(prepared),
        str(quantized),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return quantized


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        run(name)
