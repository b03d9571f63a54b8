"""From a finished chain to what is handed over: the shipped file, its figures, and the report."""

from __future__ import annotations

import datetime
import importlib.metadata
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.compression.compressed import Compressed
from nutlet.data.examples import Data
from nutlet.formats import DEFAULT, format_named
from nutlet.locks import locked
from nutlet.measurement import Measurement, environment, measure
from nutlet.measurement.parity import Parity, parity
from nutlet.measurement.results import Metric
from nutlet.progress import Progress
from nutlet.report import write_report
from nutlet.report.verdict import PARITY_EXPECTED, SAME_SIZE, SAME_SPEED
from nutlet.tasks.inputs import Inputs, input_shapes

__all__ = ["ship"]


def ship(
    compressed: Compressed,
    original: nn.Module,
    data: Data,
    folder: Path | str,
    *,
    command: str = "",
    names: tuple[str, str] = ("", ""),
    seconds: float = 2.0,
    target: str = DEFAULT.name,
    packed: bool = True,
    progress: Progress | None = None,
) -> tuple[Measurement, Parity]:
    """Export both models, measure the files, and write everything with a report into ``folder``.

    Args:
        compressed: what the chain returned.
        original: the model it started from.
        data: its test split is looked at here, once; validation where there is none.
        folder: gets ``model.onnx`` and ``original.onnx`` (or as files of the ``target`` end), ``saved/``,
            ``report.html`` and ``report.json``.
        command: how to reproduce the run, for the report.
        names: how the user named model and data, for the report.
        seconds: time for each latency setting.
        target: name of the format of both files.
        packed: whether weights of the compressed file take as few bits as they need; see :func:`nutlet.export_onnx`.
        progress: shows bars; silent by default.

    Raises:
        ConfigError: there is no format ``target``.
        ExportError: a model cannot be exported.
        StorageError: ``folder`` cannot be written, or another run is writing there.
    """
    folder, progress, form = Path(folder), progress or Progress(quiet=True), format_named(target)
    suffix = form.suffixes[0]
    with locked(folder, progress):
        shipped = compressed.export(folder / f"model{suffix}", packed=packed)
        reference = form.export(original, folder / f"original{suffix}", compressed.example, output=data.task.output)
        if form.describe is not None:
            for file in (shipped, reference):
                form.describe(file, **_preparation(data))
        compressed.save(folder / "saved")
        check = parity(compressed.model, shipped, data.calibration)
        figures = measure(shipped, data, reference, seconds=seconds, progress=progress)
        write_report(_report(compressed, data, check, figures, command, names), folder)
    return figures, check


def _report(
    compressed: Compressed, data: Data, check: Parity, figures: Measurement, command: str, names: tuple[str, str]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "nutlet": importlib.metadata.version("nutlet"),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "environment": environment(),
        "model": {
            "name": names[0] or type(compressed.model).__name__,
            "classes": data.classes,
            **_shapes(compressed.example),
        },
        "task": asdict(Metric.of(compressed.task)),
        "data": {
            "name": names[1],
            "train": len(data.train),
            "validation": len(data.validation),
            "calibration": len(data.calibration),
            "test": None if data.test is None else len(data.test),
        },
        "recipe": [method.to_dict() for method in compressed.recipe],
        "seed": compressed.seed,
        "history": [step.to_dict() for step in compressed.steps],
        "measurement": figures.to_dict(),
        "parity": check.to_dict(),
        "warnings": _warnings(compressed, figures, check, data.classes),
    }


def _preparation(data: Data) -> dict[str, Any]:
    """Return what is known of how inputs are prepared: nothing where users do it themselves."""
    train = data.train
    x = getattr(train, "x", None)
    images = isinstance(x, Tensor) and x.ndim == 4
    bytes_in = images and x is not None and x.dtype == torch.uint8
    mean, std = getattr(train, "mean", ()), getattr(train, "std", ())
    known = {"mean": mean, "std": std, "scale": 1 / 255 if bytes_in else None}
    return known | {"layout": "NCHW" if images and any(known.values()) else ""}


def _shapes(example: Inputs) -> dict[str, Any]:
    shapes = {name: list(shape) for name, shape in input_shapes(example).items()}
    return {"input_shape": shapes["x"]} if isinstance(example, Tensor) else {"input_shapes": shapes}


def _warnings(compressed: Compressed, figures: Measurement, check: Parity, classes: int) -> list[str]:
    """Say what a user should not have to find out alone."""
    warnings = []
    if figures.size_ratio is not None and 1 / figures.size_ratio >= 1 - SAME_SIZE:
        warnings.append("The compressed file is not smaller than the original.")
    slower = [speedup for speedup in figures.speedups if speedup.ratio < 1 - SAME_SPEED]
    if slower:
        warnings.append(
            "The compressed file is slower than the original at "
            + ", ".join(f"batch {s.batch} on {s.threads} threads ({s.ratio:.2f}x)" for s in slower)
            + "."
        )
    if check.agreement < PARITY_EXPECTED:
        warnings.append(
            f"The file agrees with its PyTorch simulation on only {check.agreement:.1%} of {check.examples} inputs."
        )
    original = figures.original
    if original is not None and classes > 1 and _near_chance(original.accuracy, classes):
        warnings.append(
            f"The original itself is right on only {original.accuracy:.1%} of the examples, near chance. Were its "
            "weights given, and are mean, std and labels those it was trained with? Changes measured here mean little."
        )
    if figures.split == "validation":
        warnings.append(
            "There is no test set: accuracy was measured on held-out training examples, which the original may have "
            "been trained on. Name a test set for an honest figure."
        )
    final = compressed.steps[-1].size
    if final.effective_macs < 0.9 * final.macs:
        warnings.append(
            f"{1 - final.effective_macs / final.macs:.0%} of the multiplications are with zeros that no common runtime "
            "skips: sparsity makes the file smaller and nothing faster."
        )
    return warnings


def _near_chance(accuracy: float, classes: int) -> bool:
    """Whether an accuracy is less than a tenth of the way from guessing to perfect.

    >>> [_near_chance(*case) for case in ((0.85, 2), (0.54, 2), (0.18, 10), (0.3, 10))]
    [False, True, True, False]
    """
    return accuracy < 1 / classes + 0.1 * (1 - 1 / classes)
