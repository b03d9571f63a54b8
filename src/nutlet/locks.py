"""Locks: one run at a time in a folder, one thread at a time where something is counted or paid for."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from nutlet.errors import StorageError
from nutlet.progress import Progress
from nutlet.storage import host_name, prepare_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "Mutex", "exclusive", "locked"]

LOCK = ".nutlet.lock"
"""Name of the file that a run holds in the folder it writes; it goes with the run, and holds nobody up after a kill."""

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
_held: contextvars.ContextVar[frozenset[Path]] = contextvars.ContextVar("held", default=frozenset())
_turns: dict[Path, threading.Lock] = {}


class Mutex:
    """A lock between threads that does not get in the way of copies: a copy, and what is unpickled, has its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Mutex], tuple[()]]:
        return Mutex, ()


@contextlib.contextmanager
def locked(folder: Path | str | None, progress: Progress | None = None) -> Iterator[None]:
    """Make ``folder`` ready and keep every other run out during the block, those of other threads too.

    The block itself may call this again for the same folder. The system lets go of the lock when the process ends,
    however it does.

    Args:
        folder: where files are written; None locks nothing.
        progress: is told where the file system has no locks, and nothing keeps a second run out.

    Raises:
        StorageError: another run is writing there, or it cannot be written.
    """
    if folder is None or Path(folder).resolve() in _held.get():
        yield
        return
    place = Path(folder).resolve()
    prepare_folder(place)
    file = _taken(place / LOCK, lambda owner: _refuse(Path(folder), owner))
    if file is None and progress is not None:
        progress.say(f"the file system of {folder} has no locks: see to it that no second run writes there")
    token = _held.set(_held.get() | {place})
    try:
        yield
    finally:
        _held.reset(token)
        if file is not None:
            with contextlib.suppress(OSError):  # the folder was deleted under us
                os.unlink(place / LOCK)
            os.close(file)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until no other thread or process is in a block of the same ``path``, which need not exist itself.

    Where the file system has no locks, other processes are not waited for.

    Raises:
        StorageError: the lock cannot be written.
    """
    path = path.resolve()
    with _turns.setdefault(path, threading.Lock()):
        file = _taken(path.with_name(f".{path.name}.lock"), None)
        try:
            yield
        finally:
            if file is not None:
                os.close(file)


def _taken(path: Path, refuse: Callable[[str], None] | None) -> int | None:
    """Return the open lock file, None where there are no locks; wait for it, or call ``refuse`` with who has it."""
    if fcntl is None:
        return None
    while True:
        file = _opened(path)
        with contextlib.ExitStack() as closing:
            closing.callback(os.close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if refuse is None else fcntl.LOCK_NB))
            except BlockingIOError:
                assert refuse is not None
                refuse(os.pread(file, 300, 0).decode("utf-8", "replace"))
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    return None
                raise StorageError(f"could not lock {path}: {error.strerror}; choose another folder") from error
            if _is_at(file, path):
                with contextlib.suppress(OSError):  # who it is only goes into a message; the disk may be full
                    os.ftruncate(file, 0)
                    os.pwrite(file, f"{os.getpid()} {host_name()}\n".encode(), 0)
                closing.pop_all()
                return file


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise StorageError(
            f"could not write {path}: {error.strerror}; choose a folder that is there and can be written"
        ) from error


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one at ``path``: who held the lock may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _refuse(folder: Path, owner: str) -> None:
    pid, _, host = owner.strip().partition(" ")
    if not pid.isdecimal():
        who, end = "another run", "end it"
    elif int(pid) == os.getpid() and host == host_name():
        who, end = f"another thread of this process (pid {pid})", "end it"
    elif host == host_name():
        who, end = f"the process {pid}", f"end it with `kill {pid}`"
    else:
        who, end = f"the process {pid} on {host if host.isprintable() else 'another machine'}", "end it there"
    raise StorageError(
        f"{folder} is in use: {who} is writing there; expected one run at a time in a folder, for two would mix their "
        f"files: wait for it, {end}, or choose another folder"
    )
