"""Data sets of Hugging Face ``datasets``: local folders, and names on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nutlet.errors import DataError, MissingExtra
from nutlet.loading.images import decode
from nutlet.loading.npz import Arrays, cache_folder

__all__ = ["read_hub"]

_LABELS = ("label", "labels", "target", "y", "fine_label", "class")


def read_hub(name: str) -> Arrays:
    """Read the splits ``train`` and ``test`` of a data set with a label column and an image or numeric columns.

    Args:
        name: a local folder (written by ``save_to_disk``, or holding ``train*.parquet`` and ``test*.parquet``), or
            a name on the hub. The hub goes through the same code after ``load_dataset`` has fetched the files; only
            the local forms are tested here. Data sets that bring a script of their own are not run.

    Raises:
        DataError: the data set cannot be loaded, or its columns are not understood.
        MissingExtra: ``datasets`` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "huggingface", "reading a Hugging Face data set") from error
    try:
        loaded = _load(datasets, name)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"the data set {name!r} cannot be loaded ({type(error).__name__}: {error}); expected a local folder with "
            "parquet files or from save_to_disk, or a name on the hub and a network connection"
        ) from error
    if not isinstance(loaded, dict):
        return Arrays(*_columns(datasets, loaded, name))
    if "train" not in loaded:
        raise DataError(f"{name!r} has the splits {', '.join(map(str, loaded))}; expected one named train")
    test = _columns(datasets, loaded["test"], f"{name}, test") if "test" in loaded else ()
    return Arrays(*_columns(datasets, loaded["train"], name), *test)


def _load(datasets: Any, name: str) -> Any:
    folder = Path(name)
    if not folder.is_dir():
        return datasets.load_dataset(name)
    if any((folder / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
        return datasets.load_from_disk(str(folder))
    found = sorted(folder.rglob("*.parquet"))
    splits = {
        split: files
        for split in ("train", "test")
        if (files := [str(file) for file in found if file.name.startswith(split) or file.parent.name == split])
    }
    if "train" not in splits:
        raise DataError(
            f"{name} holds {len(found)} parquet files, none named train*; expected train*.parquet (and test*.parquet), "
            "or a folder written by save_to_disk"
        )
    cache = cache_folder()
    return datasets.load_dataset("parquet", data_files=splits, cache_dir=cache and str(cache / "datasets"))


def _columns(datasets: Any, table: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels of one split."""
    features = table.features
    label = next((column for column in _LABELS if column in features), None)
    label = label or next((c for c, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    if label is None:
        raise DataError(
            f"{name} has the columns {', '.join(features)}; expected a label column named {', '.join(_LABELS)}: "
            "rename it"
        )
    labels = np.asarray(table.with_format(None)[label][:])
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{name}: the labels in {label!r} are {labels.dtype}; expected class indices without gaps in the rows: "
            f"encode them with dataset.class_encode_column({label!r})"
        )
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    if images:
        rows = table.cast_column(images[0], datasets.Image(decode=False))[images[0]][:]
        if any(row is None for row in rows):
            raise DataError(
                f"{name}: the column {images[0]!r} has rows without an image; expected none: filter them out"
            )
        sources = [row["bytes"] if row["bytes"] is not None else Path(row["path"]) for row in rows]
        return decode(sources, [f"{name}, row {k}" for k in range(len(sources))]), labels
    return _numbers(table, [column for column in features if column != label], name), labels


def _numbers(table: Any, columns: list[str], name: str) -> np.ndarray:
    """Put all feature columns, numbers or lists of one length, side by side as float32."""
    parts = []
    for column in columns:
        try:
            values = np.asarray(table.with_format(None)[column][:], dtype=np.float32)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{name}: the column {column!r} ({table.features[column]}) is not numeric, or its lists differ in "
                "length; expected numbers: drop the column or encode it"
            ) from error
        parts.append(values[:, None] if values.ndim == 1 else values)
    if not parts:
        raise DataError(f"{name} has no column besides its labels; expected an image or numeric features")
    if len(parts) == 1:
        return parts[0]
    if any(part.ndim != 2 for part in parts):
        raise DataError(f"{name} has several columns of nested lists; expected one such column, or plain numbers")
    return np.concatenate(parts, axis=1)
