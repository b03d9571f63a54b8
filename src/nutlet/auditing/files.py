"""An audit of files: where its work runs and is kept, and the pages it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from nutlet.auditing.protocol import Protocol
from nutlet.auditing.result import Audit
from nutlet.auditing.run import audit, named_output
from nutlet.auditing.setup import evaluation_of
from nutlet.auditing.thief import thief_of
from nutlet.data.examples import Data, Examples
from nutlet.jobs import Workers, layout
from nutlet.locks import locked
from nutlet.measurement import cores
from nutlet.methods.base import Method
from nutlet.oracle import Oracle, Source, source_of
from nutlet.progress import Progress
from nutlet.report import write_audit
from nutlet.storage import write_json

__all__ = ["audit_files"]

_LAYOUT = "layout.json"


def audit_files(
    victim: Path | str | Source,
    data: Data,
    against: Path | str | None,
    folder: Path | str,
    *,
    protocol: Protocol | None = None,
    transfer: Examples | None = None,
    same_task: bool = False,
    output: str | None = None,
    architecture: nn.Module | None = None,
    recipe: Sequence[Method] = (),
    retrained: bool | None = None,
    transfer_name: str = "",
    command: str = "",
    processes: int = 0,
    ray: str | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Audit a shipped file and write ``audit.json`` and ``audit.html`` into ``folder``; see :func:`nutlet.audit`.

    Everything that takes long is kept in ``folder/jobs``: a run that was killed goes on from there. A ``report.json``
    in the folder gets the audit too, and its page a section.

    Args:
        victim: path of the shipped file, or an endpoint.
        data: splits of its task.
        against: the original's file, or None.
        folder: where pages and finished work go.
        protocol: budgets, seeds, attacks.
        transfer: inputs the thief asks with.
        same_task: whether their labels are of the victim's task.
        output: name of the output of ``victim``, a file, that holds the scores, where several may.
        architecture: what the thief trains, where he knows the victim's; one of our own otherwise.
        recipe: how the file was made from the original, where that is known.
        retrained: whether training data were used again after compression; by default what ``recipe`` says.
        transfer_name: how the user named the transfer set.
        command: how to reproduce the audit.
        processes: at a time; 0 for what a short timing finds best.
        ray: address of a Ray cluster.
        progress: shows bars.

    Raises:
        StorageError: ``folder`` cannot be written, or another run is writing there.
        NutletError: see :func:`nutlet.audit`.
    """
    folder, protocol, progress = Path(folder), protocol or Protocol(), progress or Progress(quiet=True)
    examples = (transfer if transfer is not None else data.train).subset(slice(0, 256))
    evaluation = evaluation_of(data)
    columns = evaluation.columns
    source = source_of(victim, columns=columns) if output is None else named_output(victim, output, columns)
    # By the victim's outputs, which may be more than the labels that were seen. The judge asks about this input too.
    answer = Oracle(source, task=evaluation.task).evaluate_uncounted(evaluation.batch(slice(0, 1))[0])
    surrogate = thief_of(data, tuple(answer.shape[1:]), protocol.effort, architecture)

    def step() -> object:
        return surrogate.train(examples, answer.expand(len(examples), *answer.shape[1:]), seed=0, steps=4)

    with locked(folder, progress):
        many, threads = (processes, 1) if processes else _layout(folder / "jobs" / _LAYOUT, step)
        result = audit(
            source,
            data,
            against,
            protocol=protocol,
            transfer=transfer,
            same_task=same_task,
            surrogate=surrogate,
            recipe=recipe,
            retrained=retrained,
            transfer_name=transfer_name,
            command=command,
            workers=Workers(processes=many, threads=threads, folder=folder / "jobs", ray=ray, progress=progress),
        )
        write_audit(result.value, folder)
        if columns is not None:
            columns.write(folder)
    return result


def _layout(path: Path, step: Callable[[], object]) -> tuple[int, int]:
    """Return processes and threads as an earlier run found them: with others its finished work would not be found."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return int(found["processes"]), int(found["threads"])
    except (OSError, ValueError, KeyError, TypeError):
        many, threads = layout(step, cores())
        write_json(path, {"processes": many, "threads": threads})
        return many, threads
