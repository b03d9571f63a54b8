"""Files of killed runs, one run at a time in a folder, and turns between threads."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nutlet import locks, storage
from nutlet.errors import StorageError
from nutlet.locks import LOCK, Mutex, exclusive, locked
from nutlet.progress import Progress
from nutlet.storage import prepare_folder, process_start, sweep, write_text

HOLD = """
import sys
from pathlib import Path
from nutlet.locks import locked
from nutlet.storage import _aside
with locked(sys.argv[1]):
    _aside(Path(sys.argv[1]) / "model.onnx").write_text("half")
    print("held", flush=True)
    sys.stdin.read()
"""


def parts(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.part")]


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder and is in the middle of a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process  # type: ignore[misc]
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_by_name_until_its_process_is_killed(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    with pytest.raises(StorageError, match=rf"{tmp_path} is in use: the process {other.pid} is .*`kill {other.pid}`"):
        locked(tmp_path).__enter__()
    assert len(parts(tmp_path)) == 1  # what a living process writes stays
    other.kill()
    other.wait()
    with locked(tmp_path):
        assert parts(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_same_thread_may_come_again_another_may_not(tmp_path: Path) -> None:
    found: list[str] = []

    def enter() -> None:
        try:
            with locked(tmp_path):
                found.append("in")
        except StorageError as error:
            found.append(str(error))

    with locked(tmp_path), locked(tmp_path / "." / ""):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    enter()
    assert f"another thread of this process (pid {os.getpid()})" in found[0]
    assert found[1:] == ["in"]


def test_only_orphans_are_swept(tmp_path: Path) -> None:
    me, start = os.getpid(), process_start(os.getpid())
    here, away = storage._host(), "0" * 12
    kept = [
        f".a.{here}-{me}-{start}-0123abcd.part",  # of this process
        f".b.{away}-{me}-{start}-0123abcd.part",  # of another machine, a moment ago
        ".film.12.part", "model.part", f".c.{here}-x-1-0123abcd.part",  # of somebody else altogether
    ]  # fmt: skip
    swept = [
        f".d.{here}-{me}-{(start or 0) + 1}-0123abcd.part",  # its number has gone to another process
        f".e.{here}-4194305-5-0123abcd.part",  # no number is that high
        f".f.{away}-{me}-{start}-0123abcd.part",  # of another machine, long ago
    ]
    for name in (*kept, *swept):
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / swept[2], (time.time() - 2 * 86_400,) * 2)
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / swept[0]).write_text("half")
    prepare_folder(tmp_path)
    assert sorted(parts(tmp_path)) == sorted(kept)
    sweep(tmp_path / "nowhere")


def test_names_of_any_length_are_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 240), "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 240]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuses(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    said: list[str] = []
    monkeypatch.setattr(locks.fcntl, "flock", refuses)
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    with locked(tmp_path, Progress()), exclusive(tmp_path / "answers"):
        pass
    assert said == [f"the file system of {tmp_path} has no locks: see to it that no second run writes there"]


def test_a_folder_that_is_deleted_under_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with locked(folder):
        (folder / LOCK).unlink()
        folder.rmdir()
        with pytest.raises(StorageError, match="choose a folder that is there"):
            exclusive(folder / "answers").__enter__()
    assert not folder.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("place", ["os.fsync", "os.replace", "os.chmod", "pathlib.Path.write_text"])
def test_a_write_that_fails_anywhere_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, code: int
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    write_text(tmp_path / "report.html", "old")
    with monkeypatch.context() as patch:
        patch.setattr(place, refuses)
        with pytest.raises(StorageError, match=r"could not write .*report\.html: .*; nothing was left half-written"):
            write_text(tmp_path / "report.html", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("place", ["pathlib.Path.mkdir", "pathlib.Path.write_bytes", "os.open"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(place, refuses)
        with pytest.raises(StorageError, match=r"Read-only file system.*choose"):
            locked(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_turns(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with exclusive(tmp_path / "answers"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.005)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_mutex_does_not_get_in_the_way_of_copies() -> None:
    mutex = Mutex()
    with mutex, copy.deepcopy(mutex), pickle.loads(pickle.dumps(mutex)), mutex:
        pass
