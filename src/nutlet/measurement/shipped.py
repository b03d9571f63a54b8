"""``measure``: everything about a shipped file, in the runtime that will run it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nutlet.data.examples import Data, Examples
from nutlet.errors import ConfigError, DataError
from nutlet.findings import Finding
from nutlet.formats.runtime import Runtime
from nutlet.machine import environment
from nutlet.measurement.goal import Goal, judge
from nutlet.measurement.intervals import Estimate, module_answers
from nutlet.measurement.latency import Latency, check_settings, latencies
from nutlet.measurement.memory import peak_memory
from nutlet.measurement.results import Figures, FileFigures, Measurement, Metric
from nutlet.measurement.sanity import check_expected, far_from_expected, near_chance, wrong_scale
from nutlet.measurement.scores import lost_score, mean_agreement, mean_score
from nutlet.progress import Progress
from nutlet.storage import packed_size
from nutlet.tasks.base import Scores

__all__ = ["measure", "measure_all"]

_BATCHES = (1, 32)
_PREDICTED = 64
"""Examples that are predicted at once."""


def measure(
    path: str | Path,
    data: Data | Examples,
    against: str | Path | nn.Module | None = None,
    *,
    batches: Sequence[int] | None = None,
    threads: Sequence[int] = (1, 0),
    seconds: float = 2.0,
    output: str | None = None,
    goal: Goal | None = None,
    expect: float | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Measure a shipped file in the runtime of its format: bytes, the metric of the task, latency and peak memory.

    Args:
        path: the file; its format is told by its name or its first bytes.
        data: examples to predict; of a :class:`~nutlet.Data` its test split, or validation where it has none.
        against: the original. Of a file everything is measured too, and both are timed in turn in one run;
            of a module only the metric and agreement.
        batches: batch sizes for latency and memory; by default 1 and 32, or the only size that a file takes.
        threads: numbers of threads for latency; 0 for all cores. Those that come to the same are timed once.
        seconds: time for one latency setting, all files together.
        output: name of the output that holds the scores, where ``path`` has several that may.
        goal: what the file has to reach; the result says of each part whether it is met.
        expect: what you know the metric of the original to be, in its unit (93.1 per cent): said where it is not.
            Without an original it is that of the file.
        progress: shows bars; nothing by default.

    Raises:
        StorageError: a file is missing, too large, of no known format, or needs other files.
        ModelError: a file or the module does not run, or gives anything but finite outputs as the task has them.
        DataError: the examples do not fit.
        ConfigError: a setting is out of range, or the goal needs an original that is not given.
    """
    (found,) = measure_all(
        [path],
        data,
        against,
        batches=batches,
        threads=threads,
        seconds=seconds,
        output=output,
        goal=goal,
        expect=expect,
        progress=progress,
    )
    return found


def measure_all(
    paths: Sequence[str | Path],
    data: Data | Examples,
    against: str | Path | nn.Module | None = None,
    *,
    batches: Sequence[int] | None = None,
    threads: Sequence[int] = (1, 0),
    seconds: float = 2.0,
    output: str | None = None,
    goal: Goal | None = None,
    expect: float | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measure several files beside one original, which is predicted with and timed once, in turn with all of them.

    Args:
        paths: the files.
        data: as for :func:`measure`, and so are the others; ``seconds`` are for each two files.

    Returns:
        One measurement for each file.

    Raises:
        ConfigError, DataError, ModelError, StorageError: as :func:`measure`.
    """
    check_expected(expect)
    check_settings(_BATCHES if batches is None else batches, threads, seconds)
    progress = progress or Progress(quiet=True)
    examples, split = _examples(data)
    if not examples.labelled:
        raise DataError("the examples to measure with have no labels; expected some: accuracy is counted by them")
    if against is not None and not isinstance(against, (str, Path, nn.Module)):
        raise ConfigError(f"against is {type(against).__name__}; expected the path of a file, a module or None")
    if goal is not None and goal.compares and against is None:
        raise ConfigError("the goal is about an original (max_loss, min_speedup), and none is given; expected against=")
    if goal is not None and goal.min_speedup is not None and isinstance(against, nn.Module):
        raise ConfigError("min_speedup needs the original's file; found a module as against: export it first")
    runtimes = [Runtime(path, output=output, columns=examples.columns) for path in paths]
    if isinstance(against, (str, Path)):
        runtimes.append(Runtime(against, columns=examples.columns))
    batches = _batches(runtimes) if batches is None else batches
    for runtime in runtimes:  # what does not fit is said before any long work
        for size in batches:
            runtime.batch_of(examples, size)

    zero_one = examples.task.zero_one
    module = against if isinstance(against, nn.Module) else None
    scores, agreements, targets = _scored(runtimes, module, examples, progress, compared=against is not None)
    means = [mean_score(row, zero_one=zero_one) for row in scores]
    timed, speedups = latencies(
        runtimes,
        examples,
        batches=batches,
        threads=threads,
        seconds=seconds * max(len(runtimes) / 2, 1),
        progress=progress,
    )
    files = [_file(*row, examples, batches) for row in zip(runtimes, means, timed, strict=False)]
    original: Figures | None = None
    if against is not None:
        last = means[-1]
        original = Figures(last.value, last.low, last.high, last.examples) if module is not None else files[-1]
    who = "The file" if len(means) == 1 else "The original"
    findings = _findings(who, scores[-1], targets, means[-1], examples, expect, split)
    here = environment()
    measured = []
    for place in range(len(paths)):
        same = lost = None
        if against is not None:
            same = mean_agreement(agreements[place], zero_one=zero_one)
            lost = lost_score(scores[place], scores[-1], zero_one=zero_one)
        found = Measurement(
            compressed=files[place],
            original=original,
            agreement=same.value if same else None,
            agreement_low=same.low if same else None,
            agreement_high=same.high if same else None,
            score_drop=lost.value if lost else None,
            score_drop_low=lost.low if lost else None,
            score_drop_high=lost.high if lost else None,
            task=Metric.of(examples.task),
            speedups=speedups[place] if isinstance(original, FileFigures) else (),
            split=split,
            environment=here,
            findings=findings,
        )
        measured.append(found if goal is None else dataclasses.replace(found, goal=judge(goal, found)))
    return measured


def _scored(
    runtimes: Sequence[Runtime], model: nn.Module | None, examples: Examples, progress: Progress, *, compared: bool
) -> tuple[list[Scores], list[Scores], Tensor]:
    """Return the scores of the files, and of the module beside them, and how far each agrees with the last of them.

    Outputs are let go batch by batch: those of all examples may not fit into memory. Targets are those of classifiers.
    """
    task = examples.task
    seen: list[Tensor] = []
    batch = next((r.fixed_batch for r in runtimes if r.fixed_batch is not None), _PREDICTED)
    running = [runtime.answers(examples, batch=batch) for runtime in runtimes]
    if model is not None:
        running.append(module_answers(model, examples, batch=batch))
    scores: list[list[Scores]] = [[] for _ in running]
    agreements: list[list[Scores]] = [[] for _ in running[1:]] if compared else []
    with progress.task(f"predicting with {runtimes[0].path.name}", total=-(-len(examples) // batch)) as bar:
        for rows in zip(*running, strict=True):
            outputs = [torch.from_numpy(np.ascontiguousarray(values)) for values, _ in rows]
            targets = rows[0][1]
            if task.name == "classification":
                seen.append(targets)
            for values, kept in zip(outputs, scores, strict=True):
                task.check(values, targets)
                kept.append(task.score(values, targets))
            for values, agreed in zip(outputs, agreements, strict=False):
                if values.shape != outputs[-1].shape:
                    raise DataError(
                        f"the outputs have shapes {tuple(values.shape)} and {tuple(outputs[-1].shape)}; expected "
                        "the same examples and classes: compare models of one task on one data set"
                    )
                agreed.append(task.agree(values, outputs[-1]))
            bar.advance()
    found = [np.concatenate(kept) for kept in scores]
    return found, [np.concatenate(agreed) for agreed in agreements], torch.cat(seen) if seen else torch.zeros(0)


def _findings(
    who: str, scores: Scores, targets: Tensor, mean: Estimate, examples: Examples, expect: float | None, split: str
) -> tuple[Finding, ...]:
    """Return what is probably wrong with how the last of the models is used: the original, where there are two."""
    found = [*wrong_scale(examples)]
    if len(targets):
        found += [chance] if (chance := near_chance(scores, targets, who)) is not None else []
    far = far_from_expected(mean, Metric.of(examples.task), expect, split, who)
    return (*found, *([] if far is None else [far]))


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
        runtime=runtime.format.runtime(),
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
