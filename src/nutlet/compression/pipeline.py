"""The chain: steps run one after the other, each measured, kept and resumable."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nutlet.compression.compressed import MANIFEST, Compressed
from nutlet.compression.gate import admit
from nutlet.compression.history import Size, Step
from nutlet.compression.order_rules import advise
from nutlet.compression.recipe import read_steps
from nutlet.compression.sanity import look, warn
from nutlet.compression.size import size_of
from nutlet.compression.teacher import Teacher, as_teacher, labelled_by, teacher_of
from nutlet.compression.verify import plan_and_apply, probe, trained
from nutlet.constraints import formats
from nutlet.content_hash import fingerprint, source_code
from nutlet.data.examples import Data, Examples, check_seed
from nutlet.errors import StorageError
from nutlet.formats import DEFAULT, format_named
from nutlet.functions import find
from nutlet.graph.kernels import KERNELS, KernelProfile
from nutlet.graph.trace import InstrumentedModel, body_of
from nutlet.locks import locked
from nutlet.methods.base import Method
from nutlet.progress import Progress
from nutlet.storage import digest
from nutlet.tasks import Task, metric_text
from nutlet.tasks.inputs import Inputs, as_tensors
from nutlet.tasks.predict import evaluate
from nutlet.training.context import BlackBoxTeacher, Context
from nutlet.training.loop import CHECKPOINTS

__all__ = ["compress", "step_folders"]


def compress(
    model: nn.Module,
    recipe: Method | Sequence[Method | dict[str, Any] | str] | Path | str,
    data: Data,
    *,
    recover: Method | dict[str, Any] | str | None = None,
    teacher: Teacher | None = None,
    target: str = DEFAULT.name,
    seed: int = 0,
    workdir: Path | str | None = None,
    expect: float | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Apply the steps of ``recipe`` to a copy of ``model``.

    Args:
        model: a module that takes the inputs of ``data``, one tensor or several by name, and gives the outputs of its
            task: one tensor, or several of which the task names one. It is not changed; the result gives that one.
        recipe: methods in order, or the path of a YAML recipe.
        data: splits, see :func:`nutlet.split`; the test split is not looked at.
        recover: training inserted after every run of steps that it can repair.
        teacher: whom distillation follows, in place of ``model``: another module, the path of a shipped file, or an
            :class:`~nutlet.Oracle` or :class:`~nutlet.Endpoint`, of which only answers are known.
        target: name of the format that the result is for: where activations are quantized, and whether weights are kept
            from saturating, follows the integer kernels of its runtime.
        seed: the only source of randomness.
        workdir: keeps every intermediate by a hash of what made it, and the checkpoints of long training; a second
            run, or one with other last steps, goes on from there. ``None`` keeps nothing.
        expect: what you know the metric of ``model`` to be, in its unit (93.1 per cent): said where it is not.
        progress: shows bars; silent by default.

    Raises:
        ConfigError: a step or the format is unknown, or a step has a bad option.
        DataError: the data have labels the model has no output for.
        ModelError: the model has NaN weights or does not take the data, the teacher has another number of classes, or a
            method finds nothing it can work on.
        StorageError: ``workdir`` cannot be written, or another run is writing there.
    """
    check_seed(seed)
    form = format_named(target)
    steps = read_steps(recipe, recover)
    progress = progress or Progress(quiet=True)
    admitted = admit(model, data, steps, form)
    original = admitted.model
    example = data.calibration.batch(slice(0, 2))[0]
    for note in admitted.notes:
        progress.say(f"model: {note}")
    warn(look(original, data, expect=expect), progress)
    advice = advise(steps)
    for found in advice:
        progress.say(f"order: {found.text}")
    with locked(workdir, progress), tempfile.TemporaryDirectory() as passing:
        if teacher is None:
            guide = as_teacher(original, admitted.outputs)
        else:
            answers = Path(passing if workdir is None else workdir) / "answers"
            guide = teacher_of(teacher, answers, data, admitted.classes)
        guest = guide if teacher is not None else None
        folders: Sequence[Path | None] = [None] * (len(steps) + 1)
        if workdir is not None:
            folders = step_folders(original, data, steps, workdir, seed=seed, teacher=guest, target=target)
        result = _latest(folders, original, data, progress)
        if result is None and workdir is not None and (threads := _other_threads(Path(workdir))) is not None:
            progress.say(
                f"steps kept in {workdir} were made with {threads} threads, which round otherwise than "
                f"{torch.get_num_threads()} do: begun anew; to go on from them set OMP_NUM_THREADS={threads}"
            )
        data, notes = labelled_by(data, guide)
        notes = [*admitted.notes, *notes]
        if result is None:
            first = _measured({}, {}, original, data, example, time.perf_counter(), notes)
            result = Compressed(copy.deepcopy(original), (first,), seed, example, data.task)
        for number in range(len(result.steps), len(steps) + 1):
            folder = folders[number]
            context = Context(
                data=data,
                teacher=guide,
                seed=seed,
                workdir=folder,
                progress=progress,
                outputs=admitted.outputs,
                kernels=form.kernels,
            )
            with torch.random.fork_rng():  # the caller's stream of random numbers is the caller's
                told = [found.text for found in advice if found.step == number]
                result = _step(result, steps[number - 1], context, told)
            if folder is not None:
                result.save(folder)
                for checkpoint in folder.glob(CHECKPOINTS):
                    checkpoint.unlink()
            progress.say(f"{number}/{len(steps)} {_summary(result.steps[-1], result.steps[-2], data.task)}")
    return result


def step_folders(
    model: nn.Module,
    data: Data,
    steps: Sequence[Method],
    workdir: Path | str,
    *,
    seed: int = 0,
    teacher: nn.Module | None = None,
    target: str = DEFAULT.name,
) -> list[Path]:
    """Return where each intermediate of a chain is kept, the original first: one that is there already is gone on from.

    Args:
        model: as :func:`nutlet.compression.gate.admit` returns it.
        data: as for :func:`compress`, and so are the others.
        steps: recovery included.
        workdir: that of the run.
        seed: that of the run.
        teacher: of the user, if there is one.
        target: name of the format.
    """
    keys = _keys(model, data, steps, seed, teacher, format_named(target).kernels)
    return [Path(workdir) / key[:24] for key in keys]


def _step(before: Compressed, method: Method, context: Context, advice: Sequence[str]) -> Compressed:
    start = time.perf_counter()
    torch.manual_seed(context.seed)
    quantized = len(before.model.by_site) if isinstance(before.model, InstrumentedModel) else None
    model, plan, notes = plan_and_apply(method, before.model, context)
    notes = [*advice, *notes]
    kept = len(model.by_site) if isinstance(model, InstrumentedModel) else 0
    if quantized is not None and "activations" not in plan and kept < quantized:
        lost = quantized - kept
        notes.append(f"{lost} activations are in floating point again: no integer kernel takes the weights there")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    notes += method.train(model, context)
    trained(method, shapes, model, probe(model, context))
    step = _measured(method.to_dict(), plan, model, context.data, before.example, start, notes)
    step = dataclasses.replace(step, notes=(*step.notes, *_stored_as_floats(model, step.size)))
    promised = method.effect != "values" and type(method).train is Method.train
    faster = isinstance(model, InstrumentedModel) and quantized is None  # integer kernels take its activations now
    if promised and not faster and not _smaller(step.size, before.steps[-1].size):
        step = dataclasses.replace(step, notes=(*step.notes, "this step made the model neither smaller nor faster"))
    return Compressed(model, (*before.steps, step), before.seed, before.example, before.task)


def _measured(
    method: dict[str, Any],
    plan: dict[str, Any],
    model: nn.Module,
    data: Data,
    example: Inputs,
    start: float,
    notes: Sequence[str] = (),
) -> Step:
    accuracy = evaluate(model, data.validation)
    size = size_of(model, example)
    # Through JSON, so that a plan is the same whether it was just made or read back.
    plan = json.loads(json.dumps(plan))
    return Step(method, plan, accuracy, size, time.perf_counter() - start, tuple(notes), torch.get_num_threads())


def _stored_as_floats(model: nn.Module, size: Size) -> list[str]:
    """Say which layers are on few values that a file cannot keep as codes: what restores codes makes other weights."""
    modules = dict(body_of(model).named_modules())
    return [
        f"{layer.name}: its {len(few[-1].levels)} values are stored as 32-bit floats, for codes do not give them back "
        "exactly (a mask over values without zero, or a constraint of somebody else)"
        for layer in size.layers
        if layer.bits == 32 and (few := formats(modules[layer.name]))
    ]


def _smaller(now: Size, before: Size) -> bool:
    return (
        now.bytes < before.bytes
        or now.bytes_packed < before.bytes_packed
        or now.macs < before.macs
        or now.effective_macs < before.effective_macs
    )


def _summary(now: Step, before: Step, task: Task) -> str:
    return (
        f"{now.name}: validation {metric_text(task, before.accuracy)} → {metric_text(task, now.accuracy)}, "
        f"{before.size.bytes:,} → {now.size.bytes:,} bytes, "
        f"{before.size.macs / 1e6:.2f} → {now.size.macs / 1e6:.2f} M MACs, {now.seconds:.1f} s"
    )


def _keys(
    model: nn.Module,
    data: Data,
    steps: Sequence[Method],
    seed: int,
    teacher: nn.Module | None = None,
    kernels: KernelProfile = KERNELS,
) -> list[str]:
    """Return one key per intermediate: a hash of everything that it came from, the user's own code included."""
    sha = hashlib.sha256(fingerprint(model).encode())
    for examples in (data.train, data.validation, data.calibration):
        _hash_examples(sha, examples)
    augment = data.augment
    sha.update((repr(augment) if dataclasses.is_dataclass(augment) else source_code(augment)).encode())
    if teacher is not None:
        sha.update(fingerprint(teacher.source if isinstance(teacher, BlackBoxTeacher) else teacher).encode())
    sha.update(json.dumps(kernels.to_dict()).encode())
    versions = importlib.metadata.version("nutlet"), torch.__version__
    # Other numbers of threads add up in another order: another result, in the last digits at first.
    keys = [digest(sha.hexdigest(), str(seed), *versions, str(torch.get_num_threads()))]
    for step in steps:
        # All options, not only those that differ from defaults: a changed default is another step.
        options = {name: _content(value) for name, value in dataclasses.asdict(step).items()}
        keys.append(digest(keys[-1], type(step).__name__, json.dumps(options, sort_keys=True), source_code(type(step))))
    return keys


def _content(value: Any) -> Any:
    """Return the value of an option, of a function of the user its code, by name or itself."""
    function = find(value) if isinstance(value, str) else value
    return fingerprint(function) if callable(function) else value


def _hash_examples(sha: Any, examples: Examples) -> None:
    sha.update(repr((examples.mean, examples.std, examples.task)).encode())
    for x, y in examples.batches():  # those of a data set may not fit into memory
        for name, tensor in (*as_tensors(x).items(), ("", y)):
            sha.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
            sha.update(tensor.contiguous().numpy().tobytes())


def _latest(folders: Sequence[Path | None], original: nn.Module, data: Data, progress: Progress) -> Compressed | None:
    """Return the furthest whole intermediate that an earlier run left behind; one that is damaged is made anew."""
    for number in range(len(folders) - 1, 0, -1):
        folder = folders[number]
        if folder is not None and (folder / MANIFEST).exists():
            try:
                result = Compressed.load(folder, original)
            except StorageError as error:
                progress.say(f"step {number} was done before and is done again: {error}")
                continue
            progress.say(f"steps 1 to {number} were done before, going on from {folder}")
            return result
    return None


def _other_threads(workdir: Path) -> int | None:
    """Return the number of threads that steps kept in ``workdir`` were made with, where it is another one than now."""
    for manifest in sorted(workdir.glob(f"*/{MANIFEST}")):
        with contextlib.suppress(
            OSError, ValueError, LookupError, TypeError
        ):  # damaged ones are told when they are read
            threads = json.loads(manifest.read_text(encoding="utf-8"))["steps"][-1]["threads"]
            if type(threads) is int and threads != torch.get_num_threads():
                return threads
    return None
