"""How a table became numbers: the columns, the categories of each, the classes of the label; kept with the data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nutlet.errors import DataError, StorageError, printable
from nutlet.reading import read_bytes
from nutlet.storage import digest, write_json

__all__ = ["COLUMNS_FILE", "Column", "Columns"]

COLUMNS_FILE = "columns.json"
"""Name of the file with the encoding of a table, beside what was made with it."""
_LARGEST = 16 * 2**20
_SCHEMA = 1

Values = npt.NDArray[Any]
"""One column ``(N,)``: float64 with NaN where a value is missing, or texts (dtype object)."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: in the header.
        categories: its texts in order, each of which is one number of the matrix; None for a column of numbers.
        fill: stands for a missing number: the median of the training set.
        whole: whether all its numbers are whole ones.
    """

    name: str
    categories: tuple[str, ...] | None = None
    fill: float = 0.0
    whole: bool = False

    @property
    def width(self) -> int:
        """Numbers in a row of the matrix."""
        return 1 if self.categories is None else len(self.categories)


@dataclass(frozen=True)
class Columns:
    """How rows of a table are numbers, and numbers a row again.

    A row of the matrix has the columns of numbers first, as they are, and then one number for each category, 1 where
    it is that and else 0: the order of ``pandas.get_dummies``. Categories and classes are in the order of their texts
    (whole numbers: by value), as scikit-learn orders them.

    Args:
        columns: all but the label, in the order of the table.
        label: name of the column of the targets.
        classes: texts of the classes, by their index; empty where the targets are numbers.

    >>> made = Columns((Column("job", ("clerk", "cook")), Column("age", whole=True)), "rich", ("no", "yes"))
    >>> x = made.encode({"age": np.array([39.0, 50.0]), "job": np.array(["cook", "clerk"], object)})
    >>> x.tolist()
    [[39.0, 0.0, 1.0], [50.0, 1.0, 0.0]]
    >>> made.decode(x)["job"].tolist()
    ['cook', 'clerk']
    """

    columns: tuple[Column, ...]
    label: str
    classes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Numbers in a row of the matrix."""
        return sum(column.width for column in self.columns)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns, without the label."""
        return tuple(column.name for column in self.columns)

    @property
    def layout(self) -> dict[str, slice]:
        """Where each column stands in the matrix, in the order of the table."""
        ordered = sorted(self.columns, key=lambda column: column.categories is not None)
        places, start = {}, 0
        for column in ordered:
            places[column.name] = slice(start, start + column.width)
            start += column.width
        return {name: places[name] for name in self.names}

    def encode(self, table: Mapping[str, Values]) -> npt.NDArray[np.float32]:
        """Return rows as a matrix ``(N, width)``; a text that is no known category is 0 in each place of its column.

        Raises:
            DataError: a column is missing, or has texts where numbers are expected.
        """
        if absent := [name for name in self.names if name not in table]:
            raise DataError(
                f"the table has no column {printable(absent[0])!r}; expected the columns of the training set: "
                f"{printable(', '.join(self.names), 500)}"
            )
        rows = len(next(iter(table.values())))
        matrix = np.zeros((rows, self.width), np.float32)
        places = self.layout
        for column in self.columns:
            values, place = table[column.name], places[column.name]
            if column.categories is None:
                if values.dtype == object:
                    raise DataError(
                        f"the column {printable(column.name)!r} holds texts, in the training set it holds numbers; "
                        "expected numbers: mend those cells"
                    )
                matrix[:, place.start] = np.where(np.isnan(values), column.fill, values)
            else:
                codes = {text: k for k, text in enumerate(column.categories)}
                found = np.array([codes.get(text, -1) for text in as_texts(values)], np.int64)
                known = np.flatnonzero(found >= 0)
                matrix[known, place.start + found[known]] = 1
        return matrix

    def decode(self, x: npt.NDArray[np.float32]) -> dict[str, Values]:
        """Return the columns that a matrix ``(N, width)`` stands for: float32 ``(N,)``, or texts ``(N,)`` object.

        Whatever numbers an attack makes up are a row: whole columns are rounded, of the categories the largest counts.
        """
        table: dict[str, Values] = {}
        places = self.layout
        for column in self.columns:
            part = x[:, places[column.name]]
            if column.categories is None:
                table[column.name] = np.rint(part[:, 0]) if column.whole else part[:, 0]
            else:
                texts = np.array([*column.categories, ""], dtype=object)
                none = ~part.any(axis=1)
                table[column.name] = texts[np.where(none, len(column.categories), part.argmax(axis=1))]
        return table

    def codes(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return one number for each column ``(N, columns)``, of a category its place, as an ordinal encoder does."""
        places = self.layout
        found = [
            x[:, places[column.name].start] if column.categories is None else x[:, places[column.name]].argmax(axis=1)
            for column in self.columns
        ]
        return np.stack(found, axis=1).astype(np.float32)

    def targets(self, values: Values) -> npt.NDArray[Any]:
        """Return labels as class indices ``(N,)``, or as float32 where the targets are numbers.

        Raises:
            DataError: a label is missing, or is none of the classes.
        """
        name = printable(self.label)
        texts = as_texts(values)
        if missing := sum(text.strip() == "" for text in texts):
            raise DataError(
                f"{missing:,} of {len(texts):,} rows have nothing in the label column {name!r}; expected a label in "
                "each: leave those rows out"
            )
        if not self.classes:
            if values.dtype == object:
                raise DataError(f"the label column {name!r} holds texts; expected numbers to predict")
            return values.astype(np.float32)
        index = {text: k for k, text in enumerate(self.classes)}
        unknown = next((text for text in texts if text.strip() not in index), None)
        if unknown is not None:
            raise DataError(
                f"the label column {name!r} holds {printable(unknown)!r}, which is no class of the training set; "
                f"expected one of {printable(', '.join(map(repr, self.classes)), 300)}"
            )
        return np.array([index[text.strip()] for text in texts], np.int64)

    def fingerprint(self) -> str:
        """Return a hash of the encoding."""
        return digest(json.dumps(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        columns = [
            {"name": c.name, "fill": c.fill, "whole": c.whole}
            if c.categories is None
            else {"name": c.name, "categories": list(c.categories)}
            for c in self.columns
        ]
        return {"schema": _SCHEMA, "columns": columns, "label": self.label, "classes": list(self.classes)}

    @staticmethod
    def from_dict(content: Any) -> Columns:
        """Return the encoding that :meth:`to_dict` gave.

        Raises:
            DataError: it is none.
        """
        try:
            if content["schema"] != _SCHEMA:
                raise ValueError(f"schema {content['schema']!r}")
            columns = tuple(_column(entry) for entry in content["columns"])
            found = Columns(columns, _text(content["label"]), tuple(map(_text, content["classes"])))
            if not columns or len(set(found.names)) < len(columns):
                raise ValueError("no columns, or two of one name")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"found no encoding of a table ({printable(str(error), 200)}); expected one") from error
        return found

    def write(self, folder: Path | str) -> Path:
        """Write the encoding beside what was made with it, as :data:`COLUMNS_FILE`, and return its path."""
        path = Path(folder) / COLUMNS_FILE
        write_json(path, self.to_dict())
        return path

    @staticmethod
    def read(path: Path | str) -> Columns:
        """Read what :meth:`write` wrote.

        Raises:
            StorageError: it cannot be read, or is too large.
            DataError: it holds something else.
        """
        try:
            content = read_bytes(Path(path), _LARGEST)
        except OSError as error:
            raise StorageError(f"could not read {path}: {error.strerror}; expected {COLUMNS_FILE}") from error
        if len(content) > _LARGEST:
            raise StorageError(f"{path} has more than {_LARGEST:,} bytes; expected {COLUMNS_FILE}")
        try:
            return Columns.from_dict(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON; expected the encoding of a table, written by nutlet") from error


def as_texts(values: Values) -> list[str]:
    """Return the cells as texts, whole numbers without a point; missing ones are empty.

    >>> as_texts(np.array([1.0, 2.5, np.nan]))
    ['1', '2.5', '']
    """
    if values.dtype == object:
        return list(values)
    return ["" if math.isnan(v) else str(int(v)) if v == int(v) else repr(v) for v in values.tolist()]


def _column(entry: Any) -> Column:
    name = _text(entry["name"])
    if "categories" in entry:
        categories = tuple(map(_text, entry["categories"]))
        if not categories or len(set(categories)) < len(categories):
            raise ValueError(f"the categories of {name}")
        return Column(name, categories)
    fill, whole = float(entry["fill"]), entry["whole"]
    if not math.isfinite(fill) or type(whole) is not bool:
        raise ValueError(f"the numbers of {name}")
    return Column(name, None, fill, whole)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} where a text should be")
    return value
