"""Labelled examples in memory, and how a training set is split so that the test set stays untouched.

Images stay ``uint8`` as they were read; a batch is turned into normalised ``float32`` when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nutlet.errors import ConfigError, DataError, shown
from nutlet.tasks import CLASSIFICATION, Task

__all__ = ["MOST_CLASSES", "Augment", "Data", "Examples", "check_seed", "flip_and_crop", "split"]

MOST_CLASSES = 1_000_000
"""Classes that labels may tell apart: memory is taken for each of them."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""A hook ``(batch, generator) -> batch`` applied to training batches; all randomness comes from the generator."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and integer labels, indexable in batches.

    Args:
        x: inputs, ``(N, ...)``; ``uint8`` images are ``(N, C, H, W)`` and are scaled to [0, 1] on the way out.
        y: labels, ``(N,)`` int64; -1 throughout where there are none.
        mean: subtracted per channel after scaling; empty for none.
        std: divides per channel after scaling; empty for none.
        task: what the targets mean.
    """

    x: Tensor
    y: Tensor
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    task: Task = CLASSIFICATION

    @staticmethod
    def from_arrays(
        x: np.ndarray | Tensor,
        y: np.ndarray | Tensor | None = None,
        *,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
    ) -> Examples:
        """Check arrays as users have them and bring them into the layout of a model.

        ``uint8`` arrays ``(N, H, W)`` and ``(N, H, W, C)`` with 1, 3 or 4 channels become ``(N, C, H, W)``;
        floating inputs are taken as they are. Without ``y`` the examples have no labels: for distillation alone.

        Raises:
            DataError: the numbers of inputs and labels differ, a dtype is not understood, labels are negative,
                inputs hold NaN or infinity, or ``mean`` and ``std`` do not fit the channels.

        >>> Examples.from_arrays(np.zeros((5, 28, 28), "uint8"), np.arange(5)).batch([0, 1])[0].shape
        torch.Size([2, 1, 28, 28])
        """
        inputs = _tensor(x, "inputs")
        labels = (
            CLASSIFICATION.as_targets(_tensor(y, "labels"))
            if y is not None
            else torch.zeros(inputs.shape[:1], dtype=torch.int64)
        )
        if inputs.ndim < 2 or len(inputs) != len(labels):
            raise DataError(
                f"inputs have shape {tuple(inputs.shape)} and there are {len(labels)} labels; "
                "expected inputs (N, ...) with as many rows as labels"
            )
        if len(labels) == 0:
            raise DataError("found no examples; expected at least one")
        if int(labels.min()) < 0:
            raise DataError(f"the smallest label is {int(labels.min())}; expected class indices from 0 up")
        if int(labels.max()) >= MOST_CLASSES:
            raise DataError(
                f"the largest label is {int(labels.max()):,}, which would ask for as many outputs; expected class "
                f"indices below {MOST_CLASSES:,}: number the classes from 0 up without gaps (numpy.unique(y, "
                "return_inverse=True)[1])"
            )
        if inputs.dtype == torch.uint8:
            if inputs.ndim == 3:
                inputs = inputs.unsqueeze(1)
            elif inputs.ndim == 4 and inputs.shape[-1] in (1, 3, 4):
                inputs = inputs.permute(0, 3, 1, 2).contiguous()
            elif inputs.ndim != 4 or inputs.shape[1] not in (1, 3, 4):
                raise DataError(
                    f"uint8 inputs have shape {tuple(inputs.shape)}; expected images (N, H, W) or (N, H, W, C) "
                    "with 1, 3 or 4 channels; convert other data to float32"
                )
        elif inputs.is_floating_point():
            inputs = inputs.float()
            if not bool(torch.isfinite(inputs).all()):
                raise DataError("the inputs hold NaN or infinity; expected finite numbers: clean or impute them first")
        else:
            raise DataError(f"inputs have dtype {inputs.dtype}; expected uint8 images or floating point")
        if y is None:
            labels = labels - 1
        examples = Examples(inputs, labels, tuple(mean), tuple(std))
        channels = inputs.shape[1]
        for name, values in (("mean", examples.mean), ("std", examples.std)):
            if len(values) not in (0, 1, channels):
                raise DataError(f"{name} has {len(values)} values; expected 1 or {channels}, one per channel")
            if not all(math.isfinite(value) for value in values):
                raise DataError(f"{name} is {shown(values)}; expected finite numbers")
        if not all(value > 0 for value in examples.std):
            raise DataError(f"std is {shown(examples.std)}; expected positive numbers")
        return examples

    def __len__(self) -> int:
        return len(self.y)

    @property
    def labelled(self) -> bool:
        """Whether every example has a label."""
        return bool((self.y >= 0).all())

    @property
    def classes(self) -> int:
        """One more than the largest label; 0 without labels."""
        return int(self.y.max()) + 1

    def batch(self, indices: list[int] | Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return inputs ``(B, ...)`` as normalised float32 and labels ``(B,)``."""
        x = self.x[indices]
        x = x.float().div_(255) if x.dtype == torch.uint8 else x.clone()
        shape = (1, -1) + (1,) * (x.ndim - 2)
        if self.mean:
            x -= torch.tensor(self.mean).view(shape)
        if self.std:
            x /= torch.tensor(self.std).view(shape)
        return x, self.y[indices]

    def batches(self, size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all examples in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def subset(self, indices: Tensor | slice) -> Examples:
        """Return the examples at ``indices``."""
        return replace(self, x=self.x[indices], y=self.y[indices])


def _tensor(values: np.ndarray | Tensor, what: str) -> Tensor:
    """Return an array as a tensor, in the byte order of this machine.

    Raises:
        DataError: it holds what a tensor cannot (text, records, dates, objects, long doubles).
    """
    try:
        if isinstance(values, np.ndarray) and not values.dtype.isnative:
            values = values.astype(values.dtype.newbyteorder("="))
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        kind = f"dtype {shown(values.dtype)}" if isinstance(values, np.ndarray) else f"type {type(values).__name__}"
        raise DataError(f"{what} have {kind}; expected numbers of up to 64 bits: convert them first") from error
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        raise DataError(f"{what} are a sparse, quantized, nested or empty (meta) tensor; expected a dense one")
    return tensor


@dataclass(frozen=True, eq=False)
class Data:
    """What a compression run may look at; made by :func:`split`.

    ``train`` is fitted, ``calibration`` (a part of ``train``) sets ranges and scores what may be removed,
    ``validation`` decides between checkpoints and fills the history, ``test`` is for the final report alone.

    Raises:
        DataError: the training, validation or calibration set is empty.
    """

    train: Examples
    validation: Examples
    calibration: Examples
    test: Examples | None = None
    augment: Augment | None = None

    def __post_init__(self) -> None:
        for name in ("train", "validation", "calibration"):
            if len(getattr(self, name)) == 0:
                raise DataError(f"the {name} set is empty; expected at least one example: put some into it")

    @property
    def task(self) -> Task:
        """What the targets mean."""
        return self.train.task

    @property
    def classes(self) -> int:
        """Number of classes seen in the training data."""
        return max(self.train.classes, self.validation.classes)


def check_seed(seed: int) -> None:
    """Raise ConfigError unless ``seed`` can seed every generator: NumPy takes no negative one."""
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"the seed is {seed!r}; expected a whole number, 0 or positive, below 2**32")


def split(
    train: Examples,
    test: Examples | None = None,
    *,
    validation: float = 0.1,
    calibration: int = 512,
    augment: Augment | None = None,
    seed: int = 0,
) -> Data:
    """Take validation and calibration examples from the training set.

    Args:
        validation: share of the training set held out, at most 5,000 examples.
        calibration: number of training examples used for ranges and scores; all where there are fewer.

    Raises:
        ConfigError: ``seed`` is negative.
        DataError: the training set is too small for the asked split, or shapes of train and test differ.

    >>> data = split(Examples.from_arrays(np.zeros((100, 4), "float32"), np.arange(100) % 3), calibration=10)
    >>> len(data.train), len(data.validation), len(data.calibration)
    (90, 10, 10)
    """
    check_seed(seed)
    if not 0 < validation < 1:
        raise DataError(f"validation is {validation}; expected a share between 0 and 1")
    held = min(max(int(len(train) * validation), 1), 5000)
    if calibration < 1 or len(train) - held < 1:
        raise DataError(
            f"found {len(train)} training examples, of which {held} go to validation, and {calibration} asked for "
            "calibration; expected at least one calibration example: raise `calibration`, or add data"
        )
    if len(train) > 1 and train.labelled and int(train.y.min()) == int(train.y.max()):
        raise DataError(
            f"all training labels are {int(train.y[0])}; expected at least two classes: "
            "check which column holds the label"
        )
    if test is not None and test.x.shape[1:] != train.x.shape[1:]:
        raise DataError(
            f"test inputs have shape {tuple(test.x.shape[1:])}, training inputs {tuple(train.x.shape[1:])}; "
            "expected the same shape"
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    fitted = train.subset(order[held:])
    return Data(
        train=fitted,
        validation=train.subset(order[:held]),
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
