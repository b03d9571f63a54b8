"""``measure``: everything about a shipped file, in the runtime that will run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from nutlet.data.examples import Data, Examples
from nutlet.errors import ConfigError, DataError
from nutlet.formats.onnx.session import Runtime
from nutlet.machine import environment
from nutlet.measurement.intervals import Estimate, agreement, difference, predict_module, top1
from nutlet.measurement.latency import Latency, check_settings, latencies
from nutlet.measurement.memory import peak_memory
from nutlet.measurement.results import Figures, FileFigures, Measurement
from nutlet.progress import Progress
from nutlet.storage import packed_size

__all__ = ["measure"]

_BATCHES = (1, 32)


def measure(
    path: str | Path,
    data: Data | Examples,
    against: str | Path | nn.Module | None = None,
    *,
    batches: Sequence[int] | None = None,
    threads: Sequence[int] = (1, 0),
    seconds: float = 2.0,
    output: str | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Measure a shipped ONNX file in ONNX Runtime: bytes, accuracy, latency and peak memory.

    Args:
        path: the ONNX file.
        data: examples to predict; of a :class:`~nutlet.Data` its test split, or validation where it has none.
        against: the original. Of an ONNX file everything is measured too, and both are timed in turn in one run;
            of a module only accuracy and agreement.
        batches: batch sizes for latency and memory; by default 1 and 32, or the only size that a file takes.
        threads: numbers of threads for latency; 0 for all cores. Those that come to the same are timed once.
        seconds: time for one latency setting, all files together.
        output: name of the output that holds the scores, where ``path`` has several that may.
        progress: shows bars; nothing by default.

    Raises:
        StorageError: a file is missing, too large, not ONNX, or needs other files.
        ModelError: a file or the module does not run, or gives anything but finite scores ``(N, classes)``.
        DataError: the examples do not fit.
        ConfigError: a setting is out of range.
    """
    check_settings(_BATCHES if batches is None else batches, threads, seconds)
    progress = progress or Progress(quiet=True)
    examples, split = _examples(data)
    if not examples.labelled:
        raise DataError("the examples to measure with have no labels; expected some: accuracy is counted by them")
    if against is not None and not isinstance(against, (str, Path, nn.Module)):
        raise ConfigError(f"against is {type(against).__name__}; expected the path of an ONNX file, a module or None")
    runtimes = [Runtime(path, output=output)]
    if isinstance(against, (str, Path)):
        runtimes.append(Runtime(against))
    batches = _batches(runtimes) if batches is None else batches
    for runtime in runtimes:  # what does not fit is said before any long work
        for size in batches:
            runtime.batch_of(examples, size)

    labels = examples.y.numpy()
    outputs = [runtime.predict(examples, progress=progress) for runtime in runtimes]
    if isinstance(against, nn.Module):
        outputs.append(predict_module(against, examples))
    accuracies = [top1(output, labels) for output in outputs]
    same = lost = None
    if len(outputs) == 2:
        same = agreement(*outputs)
        right, others_right = (output.argmax(1) == labels for output in outputs)
        lost = difference(right, others_right)

    timed, speedups = latencies(
        runtimes, examples, batches=batches, threads=threads, seconds=seconds, progress=progress
    )
    files = [_file(*row, examples, batches) for row in zip(runtimes, accuracies, timed, strict=False)]
    original: Figures | None = files[1] if len(files) == 2 else None
    if isinstance(against, nn.Module):
        a = accuracies[1]
        original = Figures(a.value, a.low, a.high, a.examples)
    return Measurement(
        compressed=files[0],
        original=original,
        agreement=same.value if same else None,
        agreement_low=same.low if same else None,
        agreement_high=same.high if same else None,
        accuracy_drop_pp=100 * lost.value if lost else None,
        accuracy_drop_pp_low=100 * lost.low if lost else None,
        accuracy_drop_pp_high=100 * lost.high if lost else None,
        speedups=speedups,
        split=split,
        environment=environment(),
    )


def _batches(runtimes: Sequence[Runtime]) -> tuple[int, ...]:
    """Return the sizes to time: the usual ones, or the one that the files are fixed at."""
    fixed = sorted({runtime.fixed_batch for runtime in runtimes if runtime.fixed_batch is not None})
    if len(fixed) > 1:
        raise DataError(
            f"one file takes batches of {fixed[0]} only, the other of {fixed[1]}; expected a size that both take: "
            "export one of them with a dynamic batch dimension, or measure them apart"
        )
    return tuple(fixed) or _BATCHES


def _file(
    runtime: Runtime, accuracy: Estimate, timed: tuple[Latency, ...], examples: Examples, batches: Sequence[int]
) -> FileFigures:
    memory = peak_memory(runtime, examples.shapes, batches=batches)
    return FileFigures(
        accuracy=accuracy.value,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        examples=accuracy.examples,
        path=runtime.path.name,
        bytes=len(runtime.content),
        bytes_zstd=packed_size(runtime.content),
        latency=timed,
        peak_memory_mib=memory.file_mib if memory else None,
        peak_process_mib=memory.process_mib if memory else None,
    )


def _examples(data: Data | Examples) -> tuple[Examples, str]:
    if isinstance(data, Examples):
        return data, "given"
    return (data.validation, "validation") if data.test is None else (data.test, "test")
