"""From a finished chain to what is handed over: the shipped file, its figures, and the report."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.compression.compressed import Compressed
from nutlet.compression.sanity import look, warn
from nutlet.data.examples import Data
from nutlet.errors import ConfigError, printable
from nutlet.findings import Finding, distinct
from nutlet.formats import DEFAULT, Format, format_named
from nutlet.locks import locked
from nutlet.measurement import Estimate, Goal, Measurement, environment, measure, wilson
from nutlet.measurement.parity import Parity, parity
from nutlet.measurement.results import Metric
from nutlet.measurement.sanity import above_test
from nutlet.methods.base import Method, sentence_of
from nutlet.progress import Progress
from nutlet.report import load_report, write_report
from nutlet.report.verdict import PARITY_EXPECTED, SAME_SIZE, SAME_SPEED
from nutlet.tasks.inputs import Inputs, input_shapes

__all__ = ["export_into", "refuse_other", "ship", "write_figures"]


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
    goal: Goal | None = None,
    expect: float | None = None,
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
        goal: what the file has to reach, for the report; see :func:`nutlet.measure`.
        expect: what you know the metric of ``original`` to be, in its unit (93.1 per cent): said where it is not.
        progress: shows bars; silent by default.

    Raises:
        ConfigError: there is no format ``target``.
        ExportError: a model cannot be exported.
        StorageError: ``folder`` cannot be written, or another run is writing there.
    """
    folder, progress = Path(folder), progress or Progress(quiet=True)
    with locked(folder, progress):
        reference = export_original(original, data, folder, compressed.example, target=target)
        shipped, check = export_into(compressed, data, folder, target=target, packed=packed)
        figures = measure(shipped, data, reference, seconds=seconds, goal=goal, expect=expect, progress=progress)
        doubts = look(original, data)
        findings = write_figures(compressed, doubts, data, check, figures, folder, command=command, names=names)
        warn(findings, progress)
    return figures, check


def export_into(
    compressed: Compressed, data: Data, folder: Path, *, target: str = DEFAULT.name, packed: bool = True
) -> tuple[Path, Parity]:
    """Write the file of a finished chain; return it, and how far it answers as the module."""
    form = format_named(target)
    shipped = compressed.export(folder / f"model{form.suffixes[0]}", packed=packed)
    _describe(form, shipped, data)
    return shipped, parity(compressed.model, shipped, data.calibration)


def export_original(
    original: nn.Module, data: Data, folder: Path, example: Inputs, *, target: str = DEFAULT.name
) -> Path:
    """Write the file of the model that a chain started from, to compare with; return it."""
    form = format_named(target)
    file = form.export(original, folder / f"original{form.suffixes[0]}", example, output=data.task.output)
    _describe(form, file, data)
    return file


def _describe(form: Format, file: Path, data: Data) -> None:
    if form.describe is not None:
        form.describe(file, **_preparation(data))


def write_figures(
    compressed: Compressed,
    doubts: Sequence[Finding],
    data: Data,
    check: Parity,
    figures: Measurement,
    folder: Path,
    *,
    command: str = "",
    names: tuple[str, str] = ("", ""),
) -> list[Finding]:
    """Write report and saved form of a file that was exported and measured; return what is doubtful about the run.

    Args:
        doubts: about the original, see :func:`nutlet.compression.sanity.look`.
    """
    findings = [*doubts, *figures.findings]
    if (seen := _seen(compressed, data, figures)) is not None:
        findings.append(seen)
        compressed = compressed.noted(str(seen))
    findings = list(distinct(findings))
    compressed.save(folder / "saved")
    if data.columns is not None:
        data.columns.write(folder)
    write_report(_report(compressed, data, check, figures, command, names, findings), folder)
    return findings


def refuse_other(folder: Path, recipe: Sequence[Method]) -> None:
    """Refuse a folder that holds the result of another recipe; one of the same recipe goes on from there.

    Raises:
        ConfigError: it does.
        StorageError: its report cannot be read.
    """
    path = folder / "report.json"
    if not path.exists():
        return
    there, asked = load_report(path)["recipe"], json.loads(json.dumps([method.to_dict() for method in recipe]))
    if there != asked:
        names = ", ".join(str(next(iter(step), "")) for step in there)
        raise ConfigError(
            f"{folder} holds the result of another recipe ({printable(names)}), which this run would overwrite; "
            "expected a folder of its own: name another --out, or replace it with --replace"
        )


def _report(
    compressed: Compressed,
    data: Data,
    check: Parity,
    figures: Measurement,
    command: str,
    names: tuple[str, str],
    findings: Sequence[Finding],
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
        "history": _history(compressed),
        "measurement": figures.to_dict(),
        "parity": check.to_dict(),
        "findings": [asdict(finding) for finding in findings],
        "warnings": _warnings(compressed, figures, check, findings),
    }


def _history(compressed: Compressed) -> list[dict[str, Any]]:
    """Return the steps, each with what its method does: whoever lays out a report does not know the methods."""
    first, *others = (step.to_dict() for step in compressed.steps)
    told = zip(others, compressed.recipe, strict=True)
    return [first, *({**step, "sentence": sentence_of(type(method))} for step, method in told)]


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


def _warnings(compressed: Compressed, figures: Measurement, check: Parity, findings: Sequence[Finding]) -> list[str]:
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
    if figures.split == "validation" and all(finding.about != "folder" for finding in findings):
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


def _seen(compressed: Compressed, data: Data, figures: Measurement) -> Finding | None:
    """Return a finding where the original is far better on validation than on test examples."""
    test = figures.original
    if figures.split != "test" or test is None or not data.task.zero_one:
        return None
    count = len(data.validation)
    right = round(compressed.steps[0].accuracy * count)
    validation = Estimate(right / count, *wilson(right, count), count)
    return above_test(validation, Estimate(test.accuracy, test.accuracy_low, test.accuracy_high, test.examples))
