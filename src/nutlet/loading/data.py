"""The data a user names: a file, a folder, a data set or a function, brought into splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nutlet.data.examples import Augment, Data, Examples, flip_and_crop, split
from nutlet.data.streamed import Streamed
from nutlet.errors import ConfigError, DataError, nearest
from nutlet.loading.factory import build, is_factory
from nutlet.loading.hf_datasets import read_hub
from nutlet.loading.images import read_image_folder
from nutlet.loading.npz import Arrays, cached, read_npz, read_npz_folder
from nutlet.tasks import CLASSIFICATION, Task, as_task

__all__ = ["AUGMENTATIONS", "load_data", "load_examples", "load_inputs"]

Source = Dataset[Any] | DataLoader[Any]
"""Examples that stay where they are."""
AUGMENTATIONS = ("none", "crop", "flip-crop")
"""What ``augment`` may be: nothing, random shifts, or random shifts and mirror images."""

_EXPECTED = (
    "expected an .npz file, a folder of train*.npz, a folder of images by class, `hf:NAME`, or `package.module:factory`"
)


def load_data(
    spec: str | Source,
    test: str | Source | None = None,
    *,
    task: Task | str = CLASSIFICATION,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    augment: str | None = None,
    calibration: int = 512,
    validation: float = 0.1,
    seed: int = 0,
) -> Data:
    """Read the data that ``spec`` names and split them.

    Args:
        spec: one of

            - an ``.npz`` file with ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test`` and ``y_test``;
            - a folder with ``train*.npz`` (joined in natural order) and ``test*.npz``;
            - a folder of images, ``train/CLASS/*.png`` and ``test/CLASS/*.png``, or ``CLASS/*.png``; a folder ``val``,
              ``valid`` or ``validation`` beside ``train`` is the validation set;
            - ``hf:NAME``, a Hugging Face data set by the name of a local folder or on the hub (the hub goes through
              the same code after the download; only local folders are tested);
            - ``package.module:factory``, a function that returns :class:`nutlet.Data`, ``(x, y)``, or
              ``(x_train, y_train, x_test, y_test)``, each an array or a dict of them, or a
              :class:`torch.utils.data.Dataset` or DataLoader;
            - such a data set itself, which is streamed, see :class:`nutlet.Streamed`.
        test: where the test set comes from, in one of these forms; it replaces the one in ``spec``. Without either
            there is none.
        task: what the targets mean.
        mean: subtracted per channel, after ``uint8`` images were scaled to [0, 1].
        std: divides per channel.
        augment: one of :data:`AUGMENTATIONS`, applied to training batches.
        calibration: number of training examples used for ranges and scores.
        validation: share of the training set held out.
        seed: decides which examples are held out.

    Raises:
        DataError: nothing is found under ``spec``, or shapes, dtypes, labels or numbers are wrong.
        StorageError: a file is damaged, or would have to be unpickled.
        ConfigError: an option is unknown or does not apply.
        MissingExtra: reading images needs Pillow, Hugging Face data sets need ``datasets``.
    """
    found = _read(spec)
    if isinstance(found, Data):
        _refuse_options(
            spec,
            task=as_task(task) not in (CLASSIFICATION, found.task),
            test=test is not None,
            mean=bool(mean),
            std=bool(std),
            augment=augment not in (None, "none"),
            calibration=calibration != 512,
            validation=validation != 0.1,
        )
        return found
    train = _examples(found, spec, mean, std, task)
    held = _held_out(found, test, mean, std, task)
    if held is not None and held.classes > train.classes:
        raise DataError(
            f"the test set has labels up to {held.classes - 1}, the training set up to {train.classes - 1}; "
            "expected the same classes: check that both number them alike"
        )
    chosen_by = _validation(found, mean, std, task)
    if chosen_by is not None and validation != 0.1:
        raise ConfigError(
            f"{spec!r} has a validation set, and a share of {validation} for it was given; expected one of the two: "
            "leave the share out"
        )
    found_out = found.findings if isinstance(found, Arrays) else ()
    data = split(
        train,
        held,
        validation=validation if chosen_by is None else chosen_by,
        calibration=calibration,
        augment=_augmentation(augment, train),
        seed=seed,
    )
    return replace(data, findings=tuple(about for about in found_out if not (test and about.about == "folder")))


def load_examples(
    spec: str,
    test: str | None = None,
    *,
    task: Task | str = CLASSIFICATION,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Data | Examples:
    """Read what a file is to be measured on: the test set, else the validation set, else all examples, never split.

    Args:
        spec: as in :func:`load_data`; a function that returns ready-made splits has them returned.
        test: where the test set comes from instead.
        task: what the targets mean.
        mean: subtracted per channel.
        std: divides per channel.

    Raises:
        DataError, StorageError, ConfigError, MissingExtra: as in :func:`load_data`.
    """
    found = _read(spec)
    if isinstance(found, Data):
        _refuse_options(spec, test=test is not None, mean=bool(mean), std=bool(std))
        return found
    held = _held_out(found, test, mean, std, task) or _validation(found, mean, std, task)
    return _examples(found, spec, mean, std, task) if held is None else held


def load_inputs(spec: str, *, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()) -> Examples:
    """Read inputs to ask a victim with: the training set where there are two, never split.

    Args:
        spec: as in :func:`load_data`.
        mean: subtracted per channel.
        std: divides per channel.

    Raises:
        DataError, StorageError, ConfigError, MissingExtra: as in :func:`load_data`.
    """
    found = _read(spec)
    if isinstance(found, Data):
        _refuse_options(spec, mean=bool(mean), std=bool(std))
        return found.train
    return _examples(found, spec, mean, std, CLASSIFICATION)


def _examples(
    found: Arrays | Source, spec: str | Source, mean: tuple[float, ...], std: tuple[float, ...], task: Task | str
) -> Examples:
    """Return the examples of a data set, streamed, or the training set of arrays."""
    if isinstance(found, Arrays):
        return Examples.from_arrays(found.x, found.y, mean=mean, std=std, task=task)
    _refuse_options(spec, mean=bool(mean), std=bool(std))
    return Streamed(found, task)


def _refuse_options(spec: str | Source, **given: bool) -> None:
    """Raise ConfigError for an option that was given though the data come ready-made."""
    for name, is_given in given.items():
        if is_given:
            raise ConfigError(
                f"{spec!r} returns ready-made splits, to which {name!r} cannot be applied; set it inside the "
                "factory, or return arrays from it"
            )


def _held_out(
    found: Arrays | Source,
    test: str | Source | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    task: Task | str,
) -> Examples | None:
    """Return the test set, from ``test`` where that is given."""
    test_x, test_y = (found.test_x, found.test_y) if isinstance(found, Arrays) else (None, None)
    if test is not None:
        other = _read(test)
        if isinstance(other, Data):
            raise DataError(f"{test!r} returns ready-made splits; expected arrays (x, y) for the test set")
        if not isinstance(other, Arrays):
            return _examples(other, test, mean, std, task)
        # A source with both splits means its test set here.
        test_x = other.x if other.test_x is None else other.test_x
        test_y = other.y if other.test_y is None else other.test_y
    if test_x is None or test_y is None:
        return None
    return Examples.from_arrays(test_x, test_y, mean=mean, std=std, task=task)


def _validation(
    found: Arrays | Source, mean: tuple[float, ...], std: tuple[float, ...], task: Task | str
) -> Examples | None:
    """Return the validation set that the source has of its own."""
    if not isinstance(found, Arrays) or found.validation_x is None:
        return None
    return Examples.from_arrays(found.validation_x, found.validation_y, mean=mean, std=std, task=task)


def _read(spec: str | Source) -> Arrays | Data | Source:
    if not isinstance(spec, str):
        return spec
    if spec.startswith("hf:"):
        return read_hub(spec.removeprefix("hf:"))
    path = Path(spec)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        return cached(path, files, lambda: read_npz_folder(path)) if files else read_image_folder(path)
    if path.suffix == ".npz":
        return cached(path, [path], lambda: read_npz(path))
    if path.is_file():
        raise DataError(f"found the file {spec}, of a kind that is not read; {_EXPECTED}")
    if is_factory(spec):
        return _from_factory(build(spec, DataError), spec)
    raise DataError(f"found nothing under {spec!r}; {_EXPECTED}")


def _from_factory(value: Any, spec: str) -> Arrays | Data | Source:
    if isinstance(value, (Data, Dataset, DataLoader)):
        return value
    if (
        isinstance(value, (tuple, list))
        and len(value) in (2, 4)
        and all(isinstance(v, (np.ndarray, Tensor, Mapping)) for v in value)
    ):
        return Arrays(*(v.detach().cpu().numpy() if isinstance(v, Tensor) else v for v in value))
    found = f"{len(value)} values" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
    raise DataError(
        f"{spec!r} returned {found}; expected arrays (x, y), (x_train, y_train, x_test, y_test), "
        "a torch.utils.data.Dataset, or nutlet.Data"
    )


def _augmentation(name: str | None, examples: Examples) -> Augment | None:
    if name is None or name == "none":
        return None
    if name not in AUGMENTATIONS:
        raise ConfigError(f"found the augmentation {name!r}; {nearest(name, AUGMENTATIONS)}")
    shape = examples.shapes.get("x", ())
    if len(shape) != 3:
        raise DataError(
            f"the inputs have shape {', '.join(map(str, examples.shapes.values()))}, which {name!r} cannot augment; "
            "expected images: use 'none'"
        )
    return flip_and_crop(max(1, min(4, min(shape[-2:]) // 8)), flip=name == "flip-crop")
