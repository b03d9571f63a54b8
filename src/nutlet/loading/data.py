"""The data a user names: a file, a folder, a data set or a function, brought into splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nutlet.data.columns import Columns
from nutlet.data.examples import Augment, Data, Examples, flip_and_crop
from nutlet.data.examples import split as split_examples
from nutlet.data.streamed import Streamed
from nutlet.errors import ConfigError, DataError, nearest, shown
from nutlet.loading.factory import build, is_factory
from nutlet.loading.hf_datasets import read_hub
from nutlet.loading.images import read_image_folder
from nutlet.loading.npz import Arrays, cached, read_npz, read_npz_folder
from nutlet.loading.table_files import TABLE_SUFFIXES, is_frame, read_frame, read_table
from nutlet.tasks import CLASSIFICATION, Task, as_task

__all__ = ["AUGMENTATIONS", "load_data", "load_examples", "load_inputs", "split"]

Source = Any
"""Data as people have them: a text that names some, ``(x, y)``, a pandas DataFrame, a Dataset or a DataLoader."""
AUGMENTATIONS = ("none", "crop", "flip-crop")
"""What ``augment`` may be: nothing, random shifts, or random shifts and mirror images."""

_EXPECTED = (
    "expected an .npz, .csv or .parquet file, a folder of train*.npz, a folder of images by class, `hf:NAME`, or "
    "`package.module:factory`"
)


@dataclass(frozen=True)
class _Wanted:
    """What is to be made of data, whatever their form.

    Args:
        task: what the targets mean.
        mean: subtracted per channel.
        std: divides per channel.
        label: of a table, the column of the targets.
        drop: of a table, columns to leave out.
        columns: of a table, the encoding to use.
    """

    task: Task
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    label: str | None = None
    drop: tuple[str, ...] = ()
    columns: Columns | None = None

    @property
    def given(self) -> dict[str, bool]:
        """Which options were given that ready-made examples do not take."""
        return {"mean": bool(self.mean), "std": bool(self.std)}


def load_data(
    spec: Source,
    test: Source | None = None,
    *,
    task: Task | str = CLASSIFICATION,
    label: str | None = None,
    drop: Iterable[str] = (),
    columns: Columns | None = None,
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
            - a ``.csv`` or ``.parquet`` file, or a pandas DataFrame, one column of which is the ``label``; see
              :class:`nutlet.data.columns.Columns` for how texts become numbers (needs pandas and pyarrow);
            - a folder of images, ``train/CLASS/*.png`` and ``test/CLASS/*.png``, or ``CLASS/*.png``, or ``*.png``
              alone where no labels are needed; a folder ``val``, ``valid`` or ``validation`` beside ``train`` is the
              validation set;
            - ``hf:NAME``, a Hugging Face data set by the name of a local folder or on the hub (the hub goes through
              the same code after the download; only local folders are tested);
            - ``package.module:factory``, a function that returns :class:`nutlet.Data`, ``(x, y)``, or
              ``(x_train, y_train, x_test, y_test)``, each an array or a dict of them, or a
              :class:`torch.utils.data.Dataset` or DataLoader;
            - such a data set itself, which is streamed, see :class:`nutlet.Streamed`, or such a tuple.
        test: where the test set comes from, in one of these forms; it replaces the one in ``spec``. Without either
            there is none.
        task: what the targets mean.
        label: of a table, the name of the column of the targets.
        drop: of a table, names of columns to leave out.
        columns: of a table, the encoding of an earlier one (``data.columns``) instead of one of its own.
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
        MissingExtra: reading images needs Pillow, Hugging Face data sets ``datasets``, tables pandas and pyarrow.
    """
    wanted = _Wanted(as_task(task), mean, std, label, tuple(drop), columns)
    found = _read(spec, wanted)
    if isinstance(found, Data):
        _refuse_options(
            spec,
            task=wanted.task not in (CLASSIFICATION, found.task),
            test=test is not None,
            **wanted.given,
            augment=augment not in (None, "none"),
            calibration=calibration != 512,
            validation=validation != 0.1,
        )
        return found
    train = _examples(found, spec, wanted)
    held = _held_out(found, test, replace(wanted, columns=train.columns))
    if held is not None and held.classes > train.classes:
        raise DataError(
            f"the test set has labels up to {held.classes - 1}, the training set up to {train.classes - 1}; "
            "expected the same classes: check that both number them alike"
        )
    chosen_by = _validation(found, replace(wanted, columns=train.columns))
    if chosen_by is not None and validation != 0.1:
        raise ConfigError(
            f"{spec!r} has a validation set, and a share of {validation} for it was given; expected one of the two: "
            "leave the share out"
        )
    found_out = found.findings if isinstance(found, Arrays) else ()
    data = split_examples(
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
    label: str | None = None,
    drop: Iterable[str] = (),
    columns: Columns | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Data | Examples:
    """Read what a file is to be measured on: the test set, else the validation set, else all examples, never split.

    Args:
        spec: as in :func:`load_data`; a function that returns ready-made splits has them returned.
        test: where the test set comes from instead.
        task: what the targets mean.
        label: of a table, the name of the column of the targets.
        drop: of a table, names of columns to leave out.
        columns: of a table, the encoding of the training set.
        mean: subtracted per channel.
        std: divides per channel.

    Raises:
        DataError, StorageError, ConfigError, MissingExtra: as in :func:`load_data`.
    """
    wanted = _Wanted(as_task(task), mean, std, label, tuple(drop), columns)
    found = _read(spec, wanted)
    if isinstance(found, Data):
        _refuse_options(spec, test=test is not None, **wanted.given)
        return found
    train = _examples(found, spec, wanted)
    wanted = replace(wanted, columns=train.columns)
    held = _held_out(found, test, wanted) or _validation(found, wanted)
    return train if held is None else held


def load_inputs(
    spec: str,
    *,
    label: str | None = None,
    drop: Iterable[str] = (),
    columns: Columns | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Examples:
    """Read inputs to ask a victim with: the training set where there are two, never split.

    Args:
        spec: as in :func:`load_data`.
        label: of a table, the name of the column of the targets.
        drop: of a table, names of columns to leave out.
        columns: of a table, the encoding of the victim's data.
        mean: subtracted per channel.
        std: divides per channel.

    Raises:
        DataError, StorageError, ConfigError, MissingExtra: as in :func:`load_data`.
    """
    wanted = _Wanted(CLASSIFICATION, mean, std, label, tuple(drop), columns)
    found = _read(spec, wanted)
    if isinstance(found, Data):
        _refuse_options(spec, **wanted.given)
        return found.train
    return _examples(found, spec, wanted)


def split(
    train: Source,
    test: Source | None = None,
    *,
    task: Task | str = CLASSIFICATION,
    label: str | None = None,
    validation: float | Examples = 0.1,
    calibration: int = 512,
    augment: Augment | None = None,
    seed: int = 0,
) -> Data:
    """Take validation and calibration examples from the training set.

    Args:
        train: :class:`nutlet.Examples`, ``(x, y)``, a pandas DataFrame, or a map-style
            :class:`torch.utils.data.Dataset` or DataLoader, which is streamed.
        test: what the final report is about, in one of these forms.
        task: what the targets mean; examples know it.
        label: of a DataFrame, the name of the column of the targets.
        validation: share of the training set held out, at most 5,000 examples; or the validation set itself.
        calibration: number of training examples used for ranges and scores; all where there are fewer.
        augment: ``(batch, generator) -> batch`` for training batches, of the same shape and dtype; it is tried at once.
        seed: decides which examples are held out.

    Raises:
        ConfigError: ``seed`` is negative, ``augment`` does not give back a batch, or the data set gives no example by
            its number.
        DataError: the training set is too small for the asked split, or shapes of train and test differ.

    >>> data = split((np.zeros((100, 4), "float32"), np.arange(100) % 3), calibration=10)
    >>> len(data.train), len(data.validation), len(data.calibration)
    (90, 10, 10)
    """
    wanted = _Wanted(as_task(task), label=label)
    fitted = _given(train, wanted)
    held = None if test is None else _given(test, replace(wanted, columns=fitted.columns))
    return split_examples(fitted, held, validation=validation, calibration=calibration, augment=augment, seed=seed)


def _given(value: Source, wanted: _Wanted) -> Examples:
    """Return examples as they were given, or made of what else may be given."""
    if isinstance(value, Examples):
        return value
    found = _read(value, wanted)
    if isinstance(found, Data):
        raise DataError("the data are split already; expected what is to be split: use them as they are")
    return _examples(found, value, wanted)


def _examples(found: Arrays | Source, spec: Source, wanted: _Wanted) -> Examples:
    """Return the examples of a data set, streamed, or the training set of arrays."""
    if isinstance(found, Arrays):
        return _made(found.x, found.y, wanted, found.columns)
    _refuse_options(spec, **wanted.given)
    return Streamed(found, wanted.task)


def _made(x: np.ndarray, y: np.ndarray | None, wanted: _Wanted, columns: Columns | None) -> Examples:
    made = Examples.from_arrays(x, y, mean=wanted.mean, std=wanted.std, task=wanted.task)
    return replace(made, columns=columns)


def _refuse_options(spec: Source, **given: bool) -> None:
    """Raise ConfigError for an option that was given though the data come ready-made."""
    for name, is_given in given.items():
        if is_given:
            what = repr(spec) if isinstance(spec, str) else f"the {type(spec).__name__}"
            raise ConfigError(
                f"{what} returns ready-made splits, to which {name!r} cannot be applied; set it inside the "
                "factory, or return arrays from it"
            )


def _held_out(found: Arrays | Source, test: Source | None, wanted: _Wanted) -> Examples | None:
    """Return the test set, from ``test`` where that is given."""
    test_x, test_y = (found.test_x, found.test_y) if isinstance(found, Arrays) else (None, None)
    columns = found.columns if isinstance(found, Arrays) else None
    if test is not None:
        other = _read(test, wanted)
        if isinstance(other, Data):
            raise DataError(f"{test!r} returns ready-made splits; expected arrays (x, y) for the test set")
        if not isinstance(other, Arrays):
            return _examples(other, test, wanted)
        # A source with both splits means its test set here.
        test_x = other.x if other.test_x is None else other.test_x
        test_y = other.y if other.test_y is None else other.test_y
        columns = other.columns
        if test_y is None:
            raise DataError(f"the test set {test!r} has no labels; expected some: accuracy is counted by them")
    if test_x is None or test_y is None:
        return None
    return _made(test_x, test_y, wanted, columns)


def _validation(found: Arrays | Source, wanted: _Wanted) -> Examples | None:
    """Return the validation set that the source has of its own."""
    if not isinstance(found, Arrays) or found.validation_x is None:
        return None
    return _made(found.validation_x, found.validation_y, wanted, found.columns)


def _read(spec: Source, wanted: _Wanted) -> Arrays | Data | Source:
    if is_frame(spec):
        return read_frame(spec, wanted.label, wanted.task, wanted.columns, wanted.drop)
    path = Path(spec) if isinstance(spec, (str, Path)) else None
    if path is not None and path.suffix in TABLE_SUFFIXES:
        if not path.is_file():
            raise DataError(f"found no file {spec}; expected a table with a header")
        return read_table(path, wanted.label, wanted.task, wanted.columns, wanted.drop)
    for name in ("label", "drop"):
        if getattr(wanted, name):
            raise ConfigError(
                f"{name} is {shown(getattr(wanted, name))}, but the data are no table; expected a .csv or .parquet "
                "file or a DataFrame, which have columns by name: leave it out"
            )
    return _from_value(spec, "the data are") if path is None else _from_path(str(spec), path)


def _from_path(spec: str, path: Path) -> Arrays | Data | Source:
    if spec.startswith("hf:"):
        return read_hub(spec.removeprefix("hf:"))
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        return cached(path, files, lambda: read_npz_folder(path)) if files else read_image_folder(path)
    if path.suffix == ".npz":
        return cached(path, [path], lambda: read_npz(path))
    if path.is_file():
        raise DataError(f"found the file {spec}, of a kind that is not read; {_EXPECTED}")
    if is_factory(spec):
        return _from_value(build(spec, DataError), f"{spec!r} returned")
    raise DataError(f"found nothing under {spec!r}; {_EXPECTED}")


def _from_value(value: Any, what: str) -> Arrays | Data | Source:
    """Return the data that a factory returned, or that were given as such; ``what`` begins a message."""
    if isinstance(value, (Data, Dataset, DataLoader)):
        return value
    if isinstance(value, (tuple, list)) and len(value) in (2, 4):
        arrays = [_array(part) for part in value]
        if all(isinstance(part, (np.ndarray, Mapping)) for part in arrays):
            return Arrays(*arrays)
    found = f"{len(value)} values" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
    raise DataError(
        f"{what} {found}; expected arrays (x, y), (x_train, y_train, x_test, y_test), "
        "a torch.utils.data.Dataset, a pandas DataFrame, or nutlet.Data"
    )


def _array(value: Any) -> Any:
    """Return an array, whatever holds its numbers: a tensor, a list, a pandas Series or DataFrame."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if hasattr(value, "to_numpy"):
        return value.to_numpy(copy=True)  # pandas gives a view that nobody may write to
    try:
        return np.asarray(value) if isinstance(value, list) else value
    except ValueError:  # lists of several lengths
        return value


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
