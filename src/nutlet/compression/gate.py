"""What is made sure of in seconds, before anything long: a clean copy of the model, tried on the data.

``check`` tells everything that it finds; ``compress`` goes through the same gate and stops at the first problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nutlet.data.examples import Data
from nutlet.errors import ModelError
from nutlet.formats import DEFAULT, Format
from nutlet.graph.trace import trace
from nutlet.graph.training_path import training_path
from nutlet.loading.copies import clean_copy
from nutlet.loading.models import check_kinds, check_model
from nutlet.loading.weights import check_finite_weights
from nutlet.methods.base import Method
from nutlet.tasks.forward import adapt
from nutlet.tasks.inputs import Inputs
from nutlet.tasks.outputs import OutputKind, kind_of

__all__ = ["Admitted", "admit", "examine", "output_kind", "ready_copy"]

_LOOKED_AT = 64
"""Calibration examples on which it is told what the outputs hold."""


@dataclass(frozen=True, eq=False)
class Admitted:
    """A model that work can begin on.

    Args:
        model: a copy of the user's, float32, on the CPU, in evaluation mode.
        classes: number of its outputs; of values for an example where these are no classes.
        outputs: what these hold.
        notes: what was changed on the copy, and what a user has to know before the run.
    """

    model: nn.Module
    classes: int
    outputs: OutputKind
    notes: tuple[str, ...] = ()


def admit(model: nn.Module, data: Data, steps: Sequence[Method] = (), target: Format = DEFAULT) -> Admitted:
    """Return a clean copy of ``model`` for a run of ``steps`` on ``data``; the model itself is not changed.

    Where a step trains, a trial export says at once what else would be found out after the training: as a note, since
    a result can be used without a file.

    Args:
        model: any module that takes the inputs of ``data`` and gives the outputs of its task.
        data: whose calibration examples it is tried on.
        steps: what will be done; where one trains, a forward in training mode is tried as well.
        target: the format that the result is for.

    Raises:
        ConfigError: ``data`` is no :class:`nutlet.Data`.
        ModelError: the model cannot be copied, does not take the data, holds NaN, or does not run in training mode.
        DataError: the data have labels that the model has no output for, or targets of another task.
    """
    check_kinds(model, data)
    ready, notes = ready_copy(model, data)
    admitted = examine(ready, data, steps)
    notes += admitted.notes
    if any(_trains(step) for step in steps):
        problem = target.export_problem(ready, _example(data))
        notes += [f"the result could not be exported: {problem}"] if problem else []
    return Admitted(ready, admitted.classes, admitted.outputs, tuple(notes))


def ready_copy(model: nn.Module, data: Data) -> tuple[nn.Module, list[str]]:
    """Return a clean copy that takes the inputs of ``data`` and gives the output of its task, and notes on it."""
    example = _example(data)
    ready, notes = clean_copy(model, example)
    adapt(ready, example, data.task.output)
    return ready, notes


def examine(model: nn.Module, data: Data, steps: Sequence[Method] = ()) -> Admitted:
    """Try a clean copy on the data; see :func:`admit`."""
    check_finite_weights(model)
    for step in steps:
        step.check_task(data.task)
    example, targets = data.calibration.batch(slice(0, 2))
    classes = check_model(model, example, data.classes, data.task, targets)
    classifies = data.task.name == "classification"
    kind = output_kind(model, data.calibration.batch(slice(0, _LOOKED_AT))[0]) if classifies else "logits"
    notes = []
    if kind != "logits":
        notes.append(f"the outputs are {kind}: losses are computed on the logits that they stand for")
    training = [step for step in steps if _trains(step)]
    if training:
        names = ", ".join(dict.fromkeys(type(step).__name__ for step in training))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ModelError(
                f"{names} found no parameter to train: none requires gradients; expected some that do: "
                "model.requires_grad_(True), or leave out the steps that train"
            )
        notes += training_path(model, data.train.batch(slice(0, 2))[0]).notes
    return Admitted(model, classes, kind, tuple(notes))


def output_kind(model: nn.Module, x: Inputs) -> OutputKind:
    """Return what the outputs of ``model`` on real inputs ``(B, ...)`` hold."""
    record = trace(model, x[:2])
    last = {record.sites[name].op for name in record.outputs}
    with torch.no_grad():
        return kind_of(model(x), *last) if len(last) == 1 else kind_of(model(x))


def _trains(step: Method) -> bool:
    return type(step).train is not Method.train


def _example(data: Data) -> Inputs:
    x: Inputs = data.calibration.batch(slice(0, 2))[0]
    return x
