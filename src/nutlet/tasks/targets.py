"""Checks of targets and outputs that several tasks share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nutlet.errors import DataError, ModelError
from nutlet.tasks.base import Scores

__all__ = [
    "as_integers",
    "as_numbers",
    "check_classes",
    "check_like",
    "check_ranks",
    "has_target",
    "mean_where",
    "per_example",
]


def as_integers(values: Tensor, task: str, expected: str) -> Tensor:
    """Return targets as int64, whatever integers (or booleans) they were.

    Raises:
        DataError: they are no integers.
    """
    if values.is_floating_point() or values.is_complex():
        raise DataError(f"targets have dtype {values.dtype}; {task} expects {expected}, integers: {_others(task)}")
    return values.long()


def as_numbers(values: Tensor, task: str, expected: str, *, ndim: tuple[int, ...]) -> Tensor:
    """Return targets as float32.

    Raises:
        DataError: they have another number of dimensions, are complex, or hold infinity.
    """
    if values.ndim not in ndim or values.is_complex():
        raise DataError(
            f"targets have shape {tuple(values.shape)} and dtype {values.dtype}; {task} expects {expected}: "
            f"{_others(task)}"
        )
    numbers = values.float()
    if bool(torch.isinf(numbers).any()):
        raise DataError("targets hold infinity; expected finite numbers, or NaN where an example has no target")
    return numbers


def _others(task: str) -> str:
    return f"give the data their own task instead of {task} (nutlet.Examples.from_arrays(x, y, task=...))"


def check_ranks(outputs: Tensor, task: str, *, ndim: int, expected: str) -> None:
    """Raise ModelError unless outputs are floating point with ``ndim`` dimensions."""
    if outputs.ndim != ndim or not outputs.is_floating_point():
        raise ModelError(
            f"the model gives outputs of shape {tuple(outputs.shape)} and dtype {outputs.dtype}; {task} expects "
            f"{expected}, floating point: wrap the model in a module that returns those, or choose another task"
        )


def check_like(shape: tuple[int, ...], targets: Tensor, task: str) -> None:
    """Raise DataError unless targets have the shape that the outputs ask for."""
    if tuple(targets.shape) != shape:
        raise DataError(
            f"targets have shape {tuple(targets.shape)}; {task} with these outputs expects {shape}: check the shape of "
            "the targets and the task of the data"
        )


def check_classes(targets: Tensor, classes: int) -> None:
    """Raise DataError where a target asks for a class that the outputs have no place for."""
    if targets.numel() and int(targets.max()) >= classes:
        raise DataError(
            f"the largest label is {int(targets.max())}, but the model gives {classes} classes; expected labels from 0 "
            f"to {classes - 1}: use the data the model was trained on"
        )


def mean_where(values: Tensor, present: Tensor) -> Tensor:
    """Return the mean of ``values`` where ``present``, over the whole batch; 0 where nothing is.

    Zero with a gradient, so that a batch without any target trains nothing instead of ending the training.
    """
    return torch.where(present, values, 0).sum() / present.sum().clamp_min(1)


def per_example(values: Tensor, present: Tensor) -> Scores:
    """Return the mean of ``values`` ``(N, ...)`` where ``present``, for each example; NaN where nothing is.

    >>> per_example(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[True, True], [True, False]]))
    array([2., 5.])
    """
    rows = torch.where(present, values.double(), 0).flatten(1).sum(1)
    counts = present.flatten(1).sum(1)
    return np.asarray(torch.where(counts > 0, rows / counts, torch.nan).cpu())


def has_target(targets: Tensor) -> Tensor:
    """Return which examples have a target, ``(N,)`` bool: integers are negative where there is none, floats NaN.

    >>> has_target(torch.tensor([[3, -1], [-1, -1]]))
    tensor([ True, False])
    """
    present = ~targets.isnan() if targets.is_floating_point() else targets >= 0
    return present.reshape(len(targets), -1).any(1)
