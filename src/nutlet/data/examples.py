"""Examples in memory, and how a training set is split so that the test set stays untouched.

Images stay ``uint8`` as they were read; a batch is turned into normalised ``float32`` when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nutlet.data.arrays import as_tensor
from nutlet.data.augment import check_augment
from nutlet.data.columns import Columns
from nutlet.errors import ConfigError, DataError, shown
from nutlet.findings import Finding
from nutlet.tasks import CLASSIFICATION, Task, as_task
from nutlet.tasks.inputs import Inputs, NamedInputs, input_shapes, shapes_of
from nutlet.tasks.targets import has_target

__all__ = ["MOST_CLASSES", "Augment", "Data", "Examples", "check_seed", "flip_and_crop", "split"]

MOST_CLASSES = 1_000_000
"""Classes that labels may tell apart: memory is taken for each of them."""

Array = np.ndarray | Tensor

_TWO_TASKS = "the {} set is for {}, the training set for {}; expected one task: make both with the same task="

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""A hook ``(batch, generator) -> batch`` applied to training batches, inputs as the model takes them.

It returns a tensor of the same shape and dtype, and is tried at once; all randomness comes from the generator."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and targets, indexable in batches.

    Args:
        x: inputs, ``(N, ...)``, or several by name; ``uint8`` images are ``(N, C, H, W)`` and are scaled to [0, 1] on
            the way out.
        y: targets, ``(N, ...)`` as the task has them: class indices ``(N,)`` int64, -1 throughout where there are none.
        mean: subtracted per channel after scaling; empty for none.
        std: divides per channel after scaling; empty for none.
        task: what the targets mean.
        columns: of a table, what the numbers of ``x`` stand for.
    """

    x: Inputs
    y: Tensor
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    task: Task = CLASSIFICATION
    columns: Columns | None = None

    @staticmethod
    def from_arrays(
        x: Array | Mapping[str, Array],
        y: Array | Mapping[str, Array] | None = None,
        *,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        task: Task | str = CLASSIFICATION,
    ) -> Examples:
        """Check arrays as users have them and bring them into the layout of a model.

        ``uint8`` arrays ``(N, H, W)`` and ``(N, H, W, C)`` with 1, 3 or 4 channels become ``(N, C, H, W)``;
        other inputs are taken as they are, integers (tokens) as int64. A dict holds several inputs, by the names of the
        arguments of ``forward``, or several targets, of which the task reads that with the name of its output. Without
        ``y`` the examples have no labels: for distillation of classifiers alone.

        Raises:
            DataError: the numbers of inputs and targets differ, a dtype is not understood, targets are of another task,
                inputs hold NaN or infinity, or ``mean`` and ``std`` do not fit the channels.
            ConfigError: there is no such task.

        >>> Examples.from_arrays(np.zeros((5, 28, 28), "uint8"), np.arange(5)).batch([0, 1])[0].shape
        torch.Size([2, 1, 28, 28])
        >>> Examples.from_arrays({"ids": np.zeros((5, 7), int)}, np.zeros((5, 7), int), task="language_modeling").x
        NamedInputs(ids: (5, 7) torch.int64)
        """
        task = as_task(task)
        inputs = _inputs(x)
        if y is None and task.name != "classification":
            raise DataError(f"found no targets; {task.name} expects some: only a classifier can learn without")
        targets = (
            torch.full((len(inputs),), -1)
            if y is None
            else task.as_targets(as_tensor(chosen_target(y, task), "labels"))
        )
        check_numbers(inputs, targets)
        if y is not None and task.name == "classification":
            _check_labels(targets)
        examples = Examples(inputs, targets, tuple(mean), tuple(std), task)
        examples._check_normalisation()
        return examples

    def __len__(self) -> int:
        return len(self.y)

    @property
    def tensor(self) -> Tensor:
        """The inputs where there is one tensor of them.

        Raises:
            DataError: there are several.
        """
        if isinstance(self.x, NamedInputs):
            raise DataError(
                f"found the inputs {', '.join(self.x)}; expected one tensor: what was asked for takes no more"
            )
        return self.x

    @property
    def labelled(self) -> bool:
        """Whether every example has a target."""
        return bool(has_target(self.y).all())

    @property
    def classes(self) -> int:
        """One more than the largest label; 0 without labels, and for tasks whose targets are no class indices."""
        return 0 if self.y.is_floating_point() else int(self.y.max()) + 1

    def only_label(self) -> int | None:
        """Return the class of all examples where there are several of one class."""
        one = len(self) > 1 and self.labelled and int(self.y.min()) == int(self.y.max())
        return int(self.y[0]) if one else None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one example of each input; one alone is called ``x``."""
        return input_shapes(self.x)

    def batch(self, indices: list[int] | Tensor | slice) -> tuple[Any, Tensor]:
        """Return inputs ``(B, ...)``, images as normalised float32, and targets ``(B, ...)``."""
        return self._normalised(self.x[indices]), self.y[indices]

    def batches(self, size: int = 500) -> Iterator[tuple[Any, Tensor]]:
        """Yield all examples in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def subset(self, indices: Tensor | slice) -> Examples:
        """Return the examples at ``indices``."""
        return replace(self, x=self.x[indices], y=self.y[indices])

    def with_targets(self, y: Tensor) -> Examples:
        """Return the same inputs with other targets."""
        return replace(self, y=y)

    def _normalised(self, x: Inputs) -> Inputs:
        if isinstance(x, NamedInputs):
            return x.clone()
        x = x.float().div_(255) if x.dtype == torch.uint8 else x.clone()
        shape = (1, -1) + (1,) * (x.ndim - 2)
        if self.mean:
            x -= torch.tensor(self.mean).view(shape)
        if self.std:
            x /= torch.tensor(self.std).view(shape)
        return x

    def _check_normalisation(self) -> None:
        if (self.mean or self.std) and not (
            isinstance(self.x, Tensor) and (self.x.dtype == torch.uint8 or self.x.is_floating_point())
        ):
            raise DataError("mean and std were given for inputs that are no images or features; leave them out")
        channels = self.x.shape[1] if isinstance(self.x, Tensor) else 0
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, channels):
                raise DataError(f"{name} has {len(values)} values; expected 1 or {channels}, one per channel")
            if not all(math.isfinite(value) for value in values):
                raise DataError(f"{name} is {shown(values)}; expected finite numbers")
        if not all(value > 0 for value in self.std):
            raise DataError(f"std is {shown(self.std)}; expected positive numbers")


def _inputs(x: Array | Mapping[str, Array]) -> Inputs:
    """Return inputs as users have them in the layout of a model."""
    if not isinstance(x, Mapping):
        return as_input(as_tensor(x, "inputs"))
    return NamedInputs({name: as_input(as_tensor(values, f"inputs {name!r}"), name) for name, values in x.items()})


def as_input(x: Tensor, name: str = "") -> Tensor:
    """Return one input of a batch in the layout of a model.

    Args:
        x: batch first.
        name: of one of several, among which ``uint8`` is not taken for images.

    Raises:
        DataError: it holds NaN or infinity, or a dtype that is not understood.
    """
    what = f"the inputs {name!r}" if name else "the inputs"
    if x.dtype == torch.uint8 and not name:
        if x.ndim == 3:
            return x.unsqueeze(1)
        if x.ndim == 4 and x.shape[-1] in (1, 3, 4):
            return x.permute(0, 3, 1, 2).contiguous()
        if x.ndim != 4 or x.shape[1] not in (1, 3, 4):
            raise DataError(
                f"uint8 inputs have shape {tuple(x.shape)}; expected images (N, H, W) or (N, H, W, C) "
                "with 1, 3 or 4 channels; convert other data to float32"
            )
        return x
    if x.is_floating_point():
        x = x.float()
        if not bool(torch.isfinite(x).all()):
            raise DataError(
                f"{what} hold NaN or infinity; expected finite numbers: clean or impute them first; a mask is boolean"
            )
        return x
    if x.dtype == torch.bool or (x.dtype in (torch.int16, torch.int32, torch.int64) and 1 < x.ndim < 4):
        return x if x.dtype == torch.bool else x.long()
    raise DataError(
        f"{what} have dtype {x.dtype}; expected uint8 images, floating point, integers (tokens, int16 to int64) or "
        "boolean masks"
    )


def chosen_target(y: Array | Mapping[str, Array], task: Task) -> Array:
    """Return the targets that a task reads: those with the name of its output, or the only ones.

    Raises:
        DataError: there are none of that name, or several and the task names no output.
    """
    if not isinstance(y, Mapping):
        return y
    if len(y) == 1:
        return next(iter(y.values()))
    if task.output in y:
        return y[str(task.output)]
    raise DataError(
        f"the targets are {', '.join(map(repr, y)) or 'an empty dict'}, and {task.name} reads the output "
        f"{task.output!r}; expected one of them: name it, as in Classification(output={next(iter(y), 'y')!r})"
    )


def check_numbers(inputs: Inputs, targets: Tensor) -> None:
    """Raise DataError unless there are as many of each input as targets, and any."""
    if isinstance(inputs, NamedInputs):
        inputs.check_rows()
    if (isinstance(inputs, Tensor) and inputs.ndim < 2) or len(inputs) != len(targets):
        raise DataError(
            f"inputs have shape {shapes_of(inputs)} and there are {len(targets)} labels; "
            "expected inputs (N, ...) with as many rows as labels"
        )
    if len(targets) == 0:
        raise DataError("found no examples; expected at least one")


def _check_labels(labels: Tensor) -> None:
    if int(labels.min()) < 0:
        raise DataError(f"the smallest label is {int(labels.min())}; expected class indices from 0 up")
    if int(labels.max()) >= MOST_CLASSES:
        raise DataError(
            f"the largest label is {int(labels.max()):,}, which would ask for as many outputs; expected class "
            f"indices below {MOST_CLASSES:,}: number the classes from 0 up without gaps (numpy.unique(y, "
            "return_inverse=True)[1])"
        )


@dataclass(frozen=True, eq=False)
class Data:
    """What a compression run may look at; made by :func:`split`.

    ``train`` is fitted, ``calibration`` (a part of ``train``) sets ranges and scores what may be removed,
    ``validation`` decides between checkpoints and fills the history, ``test`` is for the final report alone;
    ``findings`` are what was noticed while they were read.

    Raises:
        DataError: the training, validation or calibration set is empty.
        ConfigError: ``augment`` fails on a batch, or changes its shape or dtype.
    """

    train: Examples
    validation: Examples
    calibration: Examples
    test: Examples | None = None
    augment: Augment | None = None
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        for name in ("train", "validation", "calibration"):
            part: Examples = getattr(self, name)
            if len(part) == 0:
                raise DataError(f"the {name} set is empty; expected at least one example: put some into it")
            if part.task != self.task:
                raise DataError(_TWO_TASKS.format(name, part.task, self.task))
        if self.test is not None and self.test.task != self.task:
            raise DataError(_TWO_TASKS.format("test", self.test.task, self.task))

        if self.augment is not None:
            check_augment(self.augment, self.train.batch(slice(0, 2))[0])

    @property
    def columns(self) -> Columns | None:
        """Of a table, what the numbers of the inputs stand for."""
        return self.train.columns

    @property
    def task(self) -> Task:
        """What the targets mean."""
        return self.train.task

    @property
    def classes(self) -> int:
        """Number of classes seen in the training data; 0 for other tasks than classification."""
        return max(self.train.classes, self.validation.classes) if self.task.name == "classification" else 0


def check_seed(seed: int) -> None:
    """Raise ConfigError unless ``seed`` can seed every generator: NumPy takes no negative one."""
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"the seed is {seed!r}; expected a whole number, 0 or positive, below 2**32")


def split(
    train: Examples,
    test: Examples | None = None,
    *,
    validation: float | Examples = 0.1,
    calibration: int = 512,
    augment: Augment | None = None,
    seed: int = 0,
) -> Data:
    """Take validation and calibration examples from the training set; see :func:`nutlet.split`.

    Raises:
        ConfigError: ``seed`` is negative.
        DataError: the training set is too small for the asked split, or shapes differ from those of another set.
    """
    check_seed(seed)
    if isinstance(validation, Examples):
        held = 0
    elif 0 < validation < 1:
        held = min(max(int(len(train) * validation), 1), 5000)
    else:
        raise DataError(f"validation is {validation}; expected a share between 0 and 1")
    if calibration < 1 or len(train) - held < 1:
        raise DataError(
            f"found {len(train)} training examples, of which {held} go to validation, and {calibration} asked for "
            "calibration; expected at least one calibration example: raise `calibration`, or add data"
        )
    if train.task.name == "classification" and (only := train.only_label()) is not None:
        raise DataError(
            f"all training labels are {only}; expected at least two classes: check which column holds the label"
        )
    for name, other in (("test", test), ("validation", validation)):
        if isinstance(other, Examples) and other.shapes != train.shapes:
            found, expected = (", ".join(map(str, part.shapes.values())) for part in (other, train))
            raise DataError(f"{name} inputs have shape {found}, training inputs {expected}; expected the same shape")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    fitted = train.subset(order[held:])
    return Data(
        train=fitted,
        validation=validation if isinstance(validation, Examples) else train.subset(order[:held]),
        calibration=fitted.subset(slice(0, calibration)),
        test=test,
        augment=augment,
    )


@dataclass(frozen=True)
class flip_and_crop:  # noqa: N801  reads as the function it is used as; a dataclass, so that it can be told apart by value
    """The usual augmentation of small images: a random shift within zero padding, and a mirror image.

    Args:
        padding: largest shift in pixels.
        flip: mirror half of the images left to right (leave it out for digits and text).
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``x`` ``(B, C, H, W)`` with every image shifted and perhaps mirrored by itself."""
        n, channels, height, width = x.shape
        if self.flip:
            mirrored = torch.rand(n, generator=generator) < 0.5
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
        shift = torch.randint(0, 2 * self.padding + 1, (2, n, 1), generator=generator)
        padded = torch.nn.functional.pad(x, (self.padding,) * 4)
        rows = (shift[0] + torch.arange(height))[:, None, :, None]
        columns = (shift[1] + torch.arange(width))[:, None, None, :]
        return padded[torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None], rows, columns]
