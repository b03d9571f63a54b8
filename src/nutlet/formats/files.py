"""Files of unknown origin: what is opened is a regular file, and no more of it is read than a format can have."""

from __future__ import annotations

import os
from pathlib import Path

from nutlet.errors import StorageError

__all__ = ["BEGINNING", "beginning", "read_file"]

BEGINNING = 64
"""Bytes in which every format can be told."""


def read_file(path: Path | str, expected: str, largest: int) -> bytes:
    """Return the content of a file, whole.

    Args:
        path: of the file.
        expected: what it should be, for messages: ``an ONNX file``.
        largest: bytes that it may have.

    Raises:
        StorageError: there is no such file, it is no regular one, or it is larger.
    """
    size, content = _read(Path(path), expected, largest)
    if size > largest:
        raise StorageError(f"{path} has {size:,} bytes; expected {expected} of at most {largest:,}: none is larger")
    return content


def beginning(path: Path | str, expected: str) -> bytes:
    """Return the first :data:`BEGINNING` bytes of a file.

    Raises:
        StorageError: there is no such file, or it is no regular one.
    """
    return _read(Path(path), expected, BEGINNING)[1]


def _read(path: Path, expected: str, most: int) -> tuple[int, bytes]:
    """Return the size of a file, and the first ``most`` bytes of it."""
    if not path.is_file():  # opening a pipe would wait for ever
        found = "is not a regular file" if path.exists() else "does not exist"
        raise StorageError(f"{path} {found}; expected {expected}: give the path of one")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return size, file.read(min(most, size))
    except OSError as error:
        raise StorageError(f"could not read {path}: {error.strerror}; expected {expected} that can be read") from error
