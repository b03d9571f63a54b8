"""Files written aside and renamed, so that a killed or failed write leaves the old file or none."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nutlet.errors import StorageError

__all__ = [
    "LARGEST_ONNX",
    "ZSTD_LEVEL",
    "digest",
    "packed_size",
    "prepare_folder",
    "write_atomic",
    "write_json",
    "write_text",
]

LARGEST_ONNX = 2**31 - 1
"""Bytes; a protobuf message, hence an ONNX file without external data, cannot be larger."""
ZSTD_LEVEL = 19

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your share of the disk is used up",
    errno.EFBIG: "it would be larger than a file may be here",
}


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then rename it to ``path``.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(aside, 0o666 & ~_umask())  # some writers make files for the owner alone
        os.replace(aside, path)
    except Exception as error:
        causes = list(_causes(error))
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
            raise KeyboardInterrupt from error
        reason = _storage_reason(causes)
        if reason is None:
            raise
        raise StorageError(f"could not write {path}: {reason}; nothing was left half-written") from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written holds nothing to remove either
            aside.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def prepare_folder(folder: Path) -> None:
    """Make ``folder`` and try to write in it, before hours are spent on what is to go there.

    Raises:
        StorageError: it cannot be made or written.
    """
    write_atomic(folder / ".nutlet", lambda aside: aside.write_bytes(b""))
    (folder / ".nutlet").unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, aside and renamed."""
    write_atomic(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON in the order it has, aside and renamed."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def packed_size(content: bytes) -> int:
    """Return the number of bytes after zstd at :data:`ZSTD_LEVEL`, as a download would be packed.

    >>> packed_size(bytes(1000)) < 30
    True
    """
    import zstandard

    return len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(content))


def digest(*parts: bytes | str) -> str:
    """Return a hexadecimal SHA-256 over ``parts``, each preceded by its length.

    >>> digest("ab", "c") == digest("a", "bc")
    False
    """
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "big"))
        sha.update(data)
    return sha.hexdigest()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield ``error`` and what it was raised over: torch hides what the system said, and Ctrl-C, behind its own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _storage_reason(causes: Sequence[BaseException]) -> str | None:
    """Say in words why the file system refused, or None where it is another kind of error."""
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno is not None:
            if cause.errno in _FULL:
                return f"{_FULL[cause.errno]}; free some space or choose another folder"
            return f"{cause.strerror}; choose a folder that can be written"
    return None
