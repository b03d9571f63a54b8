"""Files written aside and renamed, so that a killed or failed write leaves the old file or none.

What a killed process had begun stays under a name that says whose it is: ``.NAME.HOST-PID-START-TOKEN.part``. The next
run in that folder removes it, once that process is gone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nutlet.errors import StorageError

__all__ = [
    "LARGEST_ONNX",
    "ZSTD_LEVEL",
    "digest",
    "host_name",
    "packed_size",
    "prepare_folder",
    "process_start",
    "sweep",
    "write_atomic",
    "write_json",
    "write_text",
]

LARGEST_ONNX = 2**31 - 1
"""Bytes; a protobuf message, hence an ONNX file without external data, cannot be larger."""
ZSTD_LEVEL = 19

_PART = re.compile(r"\..*\.([0-9a-f]{12})-(\d{1,10})-(\d{1,20})-[0-9a-f]{8}\.part", re.DOTALL | re.ASCII)
_ABANDONED = 24 * 3600
"""Seconds. A file that a process of another machine has not touched for so long is nobody's any more."""
_LONGEST_NAME = 100
"""Characters of a file's name that the one aside repeats: a file system allows 255 bytes in all."""

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
    aside = _aside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(aside, 0o666 & ~_umask())  # some writers make files for the owner alone
        os.replace(aside, path)
    except Exception as error:
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, KeyboardInterrupt):
                raise cause from None
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


def _aside(path: Path) -> Path:
    """Return the name under which this process writes ``path``: of no other process, thread or attempt."""
    pid = os.getpid()
    owner = f"{_host()}-{pid}-{process_start(pid) or 0}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name[:_LONGEST_NAME]}.{owner}.part")


def prepare_folder(folder: Path) -> None:
    """Make ``folder``, clean it of what killed runs had begun, and try to write in it, before hours are spent.

    Raises:
        StorageError: it cannot be made or written.
    """
    probe = _aside(folder / "nutlet")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, *(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())):
            sweep(place)
        probe.write_bytes(b"")
    except OSError as error:
        raise StorageError(f"could not write {folder}: {_storage_reason([error])}") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def sweep(folder: Path) -> None:
    """Remove the files that killed processes had begun in ``folder``; what a living one writes stays."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:  # what cannot be read holds nothing to clean
        for entry in entries:
            owner = _PART.fullmatch(entry.name)
            if owner is not None and _is_orphan(entry, owner[1], int(owner[2]), int(owner[3])):
                with contextlib.suppress(OSError):  # another run swept it a moment ago, or its folder is read-only
                    os.unlink(entry.path)


def _is_orphan(entry: os.DirEntry[str], host: str, pid: int, start: int) -> bool:
    about = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(about.st_mode):
        return False
    if host == _host():
        return not _lives(pid, start)
    # Its process cannot be seen from here: another machine or container, or this one before it was started anew.
    return time.time() - about.st_mtime > _ABANDONED


def _lives(pid: int, start: int) -> bool:
    """Whether the process ``pid`` that began at ``start`` is there; another one may have got its number since."""
    now = process_start(pid)
    if now is not None:
        return start in (0, now)
    if Path("/proc/self/stat").exists() or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        pass
    return True


def process_start(pid: int) -> int | None:
    """Return when a process began, in ticks since the system did; None where it is gone or the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    # proc(5): state is field 3, starttime field 22. A zombie writes nothing any more.
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def host_name() -> str:
    """Return how this machine is called, for a message."""
    return socket.gethostname()


def _host() -> str:
    """Return 12 digits for what a process number is unique in: this machine since it was started, this container."""
    marks = [host_name()]
    with contextlib.suppress(OSError):
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        marks.append(os.readlink("/proc/self/ns/pid"))
    return digest(*marks)[:12]


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
