"""Rows of a table for the inputs of a file: one matrix, or one input for each column, of numbers or texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nutlet.data.columns import Columns, Values, as_texts
from nutlet.errors import DataError, nearest, printable
from nutlet.formats.base import TensorSpec

__all__ = ["TableFeed"]

Array = npt.NDArray[Any]


class TableFeed:
    """Turns rows of the matrix that a table became into what a file takes.

    - One input of numbers as wide as the matrix gets the matrix.
    - One input with a place for each column gets the numbers and, of a category, its place in the order of the texts
      (as scikit-learn's OrdinalEncoder); an input of texts gets texts.
    - Several inputs get a column each, by its name; letters and digits decide where no name is the same.

    Args:
        path: of the file, for messages.
        inputs: what it takes, by name.
        columns: what the numbers of the matrix stand for.

    Raises:
        DataError: the file takes other columns.
    """

    def __init__(self, path: Path, inputs: Mapping[str, TensorSpec], columns: Columns) -> None:
        self.path, self.inputs, self.columns = path, dict(inputs), columns
        self.places: dict[str, str] = {}
        only = next(iter(inputs.values()))
        if len(inputs) > 1 or (len(columns.columns) == 1 and _plain(only.name) == _plain(columns.names[0])):
            self._match()
            return
        width = only.shape[1] if len(only.shape) == 2 else None
        known = {len(columns.columns)} if only.is_text else {columns.width, len(columns.columns)}
        if len(only.shape) != 2 or (isinstance(width, int) and width not in known):
            widths = " or ".join(map(str, sorted(known)))
            raise DataError(
                f"the input {printable(only.name)!r} of {path} expects ({', '.join(map(str, only.shape))}), the table "
                f"has {len(columns.columns)} columns, {columns.width} numbers with one for each category; expected "
                f"(N, {widths}): leave columns out that the file was not made with (--drop)"
            )

    def _match(self) -> None:
        plain = {_plain(name): name for name in self.columns.names}
        kinds = {column.name: column for column in self.columns.columns}
        for name, spec in self.inputs.items():
            found = name if name in kinds else plain.get(_plain(name))
            if found is None:
                raise DataError(
                    f"{self.path} takes {printable(name)!r}, which is no column of the table; "
                    f"{nearest(printable(name), self.columns.names)} (columns: "
                    f"{printable(', '.join(map(repr, self.columns.names)), 500)})"
                )
            if not all(not isinstance(size, int) or size == 1 for size in spec.shape[1:]):
                raise DataError(
                    f"the input {printable(name)!r} of {self.path} expects {list(spec.shape)}; expected one number or "
                    "text for each row, (N, 1)"
                )
            texts = kinds[found].categories
            if texts is not None and not spec.is_text:
                raise DataError(
                    f"the input {printable(name)!r} of {self.path} takes {spec.dtype}, the column holds texts, as "
                    f"{printable(texts[-1])!r}; expected numbers: give the table as the file was made with it"
                )
            self.places[name] = found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of one row of each input."""
        return {name: values.shape[1:] for name, values in self.blank().items()}

    def blank(self) -> dict[str, Array]:
        """Return one row of zeros and of texts that the table has: many a file refuses any other text."""
        x = np.zeros((1, self.columns.width), np.float32)
        for column, place in zip(self.columns.columns, self.columns.layout.values(), strict=True):
            if column.categories is not None:
                x[0, place.start] = 1
        return self(x)

    def __call__(self, x: Array) -> dict[str, Array]:
        """Return one batch ``(N, width)`` as the file takes it, by the names of its inputs; texts are objects."""
        if not self.places:
            (only,) = self.inputs.values()
            if only.is_text:
                table = self.columns.decode(x)
                return {only.name: np.stack([_texts(table[name]) for name in self.columns.names], axis=1)}
            codes = isinstance(only.shape[1], int) and only.shape[1] != self.columns.width
            return {only.name: self.columns.codes(x) if codes else x}
        table = self.columns.decode(x)
        return {
            name: (_texts(table[column]) if self.inputs[name].is_text else table[column]).reshape(
                -1, *[1] * (len(self.inputs[name].shape) - 1)
            )
            for name, column in self.places.items()
        }


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _texts(values: Values) -> Array:
    return np.array(as_texts(values), dtype=object)
