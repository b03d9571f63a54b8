"""Tables: ``.csv`` and ``.parquet`` files and pandas DataFrames, of which one column is the label."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nutlet.data.columns import Column, Columns, Values, as_texts
from nutlet.errors import DataError, MissingExtra, NutletError, StorageError, first_line, nearest, printable
from nutlet.loading.npz import MAX_BYTES, Arrays
from nutlet.tasks import Task

__all__ = ["TABLE_SUFFIXES", "is_frame", "read_frame", "read_table"]

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
_LARGEST = 2 * 2**30
_MOST_COLUMNS = 10_000
_MOST_CATEGORIES = 1_000
_MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
"""What stands in a column of numbers for a missing one, in small letters."""


def is_frame(value: object) -> bool:
    """Whether it is a pandas DataFrame; pandas is not imported for that."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def read_table(
    path: Path, label: str | None, task: Task, columns: Columns | None = None, drop: Iterable[str] = ()
) -> Arrays:
    """Read a file with a header; see :func:`read_frame`.

    Raises:
        StorageError: it is damaged, or larger than :data:`~nutlet.loading.npz.MAX_BYTES` in memory.
        MissingExtra: pandas is not installed.
    """
    try:
        import pandas as pd
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pandas and pyarrow", "tables", f"reading {path}") from error
    if path.stat().st_size > _LARGEST:
        raise StorageError(f"{path} has more than {_LARGEST:,} bytes; expected a smaller table: take a sample of rows")
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                unpacked = sum(file.metadata.row_group(k).total_byte_size for k in range(file.num_row_groups))
                if unpacked > MAX_BYTES or file.metadata.num_rows * file.metadata.num_columns > MAX_BYTES // 8:
                    raise StorageError(f"{path} unpacks to {unpacked:,} bytes; expected at most {MAX_BYTES:,}")
                frame = file.read().to_pandas()
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # of rows that are cut off
                frame = pd.read_csv(
                    path, sep=_separator(path), dtype=str, keep_default_na=False, na_filter=False,
                    encoding="utf-8-sig", index_col=False, low_memory=False,
                )  # fmt: skip
    except NutletError:
        raise
    except Exception as error:  # the readers raise many kinds on damaged files
        raise StorageError(
            f"{path} cannot be read as a table ({type(error).__name__}: {first_line(error)}); expected a file with a "
            "header and as many cells in each row, in UTF-8"
        ) from error
    return read_frame(frame, label, task, columns, drop, str(path))


def _separator(path: Path) -> str:
    """Return what stands between the cells: a comma, a semicolon or a tab, whichever the header has most of."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline(2**20)
    return max(",;\t", key=header.count)


def read_frame(
    frame: Any,
    label: str | None,
    task: Task,
    columns: Columns | None = None,
    drop: Iterable[str] = (),
    what: str = "the DataFrame",
) -> Arrays:
    """Return a pandas DataFrame as inputs ``(N, width)`` float32 and targets ``(N,)``, with their encoding.

    Args:
        frame: the table.
        label: name of the column of the targets.
        task: what the targets mean: classes or numbers.
        columns: the encoding of another table to use; a new one is made where there is none.
        drop: columns to leave out.
        what: the table, for messages.

    Raises:
        DataError: there is no such label, or a column cannot be numbers.
    """
    frame = frame.rename(columns=lambda name: str(name).strip())
    names = [str(name) for name in frame.columns]
    listed = printable(", ".join(map(repr, names)), 1_000)
    if twice := {name for name in names if names.count(name) > 1} if len(names) <= _MOST_COLUMNS else {"…"}:
        raise DataError(
            f"{what} has {len(names):,} columns, {printable(min(twice))!r} more than once; expected names of their own"
        )
    if task.name not in ("classification", "regression"):
        raise DataError(f"{what} is a table, with one target a row; expected classification or regression, not {task}")
    if label is None:
        label = columns.label if columns is not None else None
    if label is None:
        raise DataError(
            f"{what} is a table, and nobody said which column is the label; expected label= (--label) with one of "
            f"{listed}"
        )
    for name in (label, *drop):
        if name not in names:
            raise DataError(f"{what} has no column {printable(name)!r}; {nearest(name, names)} (columns: {listed})")
    if len(frame) == 0:
        raise DataError(f"{what} has no rows; expected at least one")
    table = {name: _cells(frame[name], name) for name in names if name not in drop}
    targets = table.pop(label)
    if not table:
        raise DataError(f"{what} has no column beside the label {label!r}; expected inputs")
    if columns is None:
        columns = Columns(tuple(_described(*item) for item in table.items()), label, _classes(targets, task, label))
    if 4 * len(frame) * columns.width > MAX_BYTES:
        raise DataError(
            f"{what} would be {len(frame):,} rows of {columns.width:,} numbers; expected at most {MAX_BYTES:,} bytes: "
            "take a sample of rows, or leave columns with many categories out (drop=, --drop)"
        )
    return Arrays(columns.encode(table), columns.targets(targets), columns=columns)


def _cells(series: Any, name: str) -> Values:
    """Return one column as float64 with NaN for what is missing, or as texts.

    Raises:
        DataError: it holds lists, dates or other things that are neither.
    """
    import pandas as pd

    if pd.api.types.is_bool_dtype(series.dtype):
        return np.array([str(value) for value in series], dtype=object)
    if pd.api.types.is_numeric_dtype(series.dtype):
        numbers: Values = series.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isinf(numbers).any():
            raise DataError(f"the column {printable(name)!r} holds infinity; expected finite numbers: clean it first")
        return numbers
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        raise DataError(
            f"the column {printable(name)!r} holds dates; expected numbers or texts: leave it out (drop=, --drop), or "
            "turn it into numbers"
        )
    texts = ["" if value is None or value is pd.NA or value != value else value for value in series]
    odd = next((value for value in texts if not isinstance(value, (str, int, float, bool))), None)
    if odd is not None:
        raise DataError(
            f"the column {printable(name)!r} holds a {type(odd).__name__}; expected numbers or texts: leave it out "
            "(drop=, --drop)"
        )
    texts = [str(value) for value in texts]
    as_numbers = _numbers(texts)
    return np.array(texts, dtype=object) if as_numbers is None else as_numbers


def _numbers(texts: list[str]) -> Values | None:
    """Return texts as numbers, NaN for what is missing; None where one is no number, or all are missing."""
    found = np.full(len(texts), np.nan)
    for k, text in enumerate(texts):
        plain = text.strip()
        if plain.lower() in _MISSING:
            continue
        try:
            found[k] = float(plain) if plain.isascii() and "_" not in plain else math.inf
        except ValueError:
            return None
        if not math.isfinite(found[k]):
            return None
    return None if np.isnan(found).all() else found


def _described(name: str, values: Values) -> Column:
    """Return a column as its training values have it."""
    if values.dtype != object and not np.isnan(values).all():
        known = values[~np.isnan(values)]
        return Column(name, None, float(np.median(known)), bool((known == np.rint(known)).all()))
    categories = tuple(sorted(set(as_texts(values))))
    if len(categories) > _MOST_CATEGORIES:
        raise DataError(
            f"the column {printable(name)!r} holds {len(categories):,} different texts, as "
            f"{printable(categories[-1])!r}; expected numbers, or at most {_MOST_CATEGORIES:,} categories: mend cells "
            "that are no numbers, or leave it out where it is a name or an identifier (drop=, --drop)"
        )
    return Column(name, categories)


def _classes(values: Values, task: Task, label: str) -> tuple[str, ...]:
    """Return the texts of the classes in order, none for a task of numbers."""
    if task.name != "classification":
        return ()
    found = {text.strip() for text in as_texts(values)} - {""}
    if len(found) > _MOST_CATEGORIES:
        raise DataError(
            f"the label column {printable(label)!r} holds {len(found):,} different values; expected at most "
            f"{_MOST_CATEGORIES:,} classes: a number to predict is task='regression'"
        )
    if values.dtype == object:
        return tuple(sorted(found))
    return tuple(sorted(found, key=float))
