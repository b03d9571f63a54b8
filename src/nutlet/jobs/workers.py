"""Jobs done by so many processes, with what they give kept on disk under a hash of all that it came from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nutlet.content_hash import fingerprint
from nutlet.errors import ConfigError, StorageError
from nutlet.jobs.job import Job, Result
from nutlet.jobs.pools import cluster, processes, spread, versions
from nutlet.locks import locked
from nutlet.progress import Progress
from nutlet.storage import write_atomic

__all__ = ["Workers", "layout"]


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where jobs run.

    A job whose worker is killed, as by a system short of memory, is begun again, twice at most.

    Args:
        processes: how many at a time on this machine; with 1 they run in this process. A cluster that runs already
            takes as many as it has processors for.
        threads: of each. Sums are rounded differently by other numbers of threads, so it belongs to what a result
            depends on.
        folder: where results are kept; None keeps none.
        ray: address of a Ray cluster (``auto``, ``host:port``, or ``local`` to start one here); None for none.
        progress: shows bars.

    Raises:
        ConfigError: fewer than one process or thread.

    >>> double = Job(lambda x: {"y": 2 * x}, {"x": np.ones(2)})
    >>> Workers().run([double], "doubling")
    [{'y': array([2., 2.])}]
    """

    processes: int = 1
    threads: int = 1
    folder: Path | None = None
    ray: str | None = None
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.processes < 1 or self.threads < 1:
            raise ConfigError(f"found {self.processes} processes of {self.threads} threads; expected 1 or more of each")

    def run(self, jobs: Sequence[Job], title: str) -> list[Result]:
        """Return the results of ``jobs`` in their order; those found on disk are read and not done again.

        Raises:
            ConfigError: a job cannot be sent to another process, or its worker was killed three times.
            StorageError: a result cannot be written, what lies in its place is damaged, or another run works in this
                folder.
            MissingExtra: Ray is not installed.
            Exception: whatever a job raised; the results of those that had finished are kept.
        """
        results = []
        for outcome in self._outcomes(jobs, title, lenient=False):
            assert not isinstance(outcome, Exception)
            results.append(outcome)
        return results

    def attempt(self, jobs: Sequence[Job], title: str) -> list[Result | Exception]:
        """Return the results of ``jobs`` in their order; in the place of one that failed stands the error.

        Errors are not kept: where the same jobs are asked for again, those that failed are tried again.

        Raises:
            ConfigError: no worker can begin a job.
            StorageError, MissingExtra: as in :meth:`run`.
        """
        return self._outcomes(jobs, title, lenient=True)

    def _outcomes(self, jobs: Sequence[Job], title: str, *, lenient: bool) -> list[Result | Exception]:
        """Do the jobs; the first error ends them all, unless ``lenient``."""
        with locked(self.folder, self.progress):
            return self._done(jobs, title, lenient=lenient)

    def _done(self, jobs: Sequence[Job], title: str, *, lenient: bool) -> list[Result | Exception]:
        keys = [self._key(job) for job in jobs]
        todo = dict(zip(keys, jobs, strict=True))
        results: dict[str, Result | Exception] = {key: found for key in todo if (found := self._read(key)) is not None}
        total = round(100 * sum(job.cost for job in todo.values())) or 1
        with self.progress.task(title, total=total) as task:
            task.advance(round(100 * sum(todo.pop(key).cost for key in results)))
            with closing(self._execute(todo)) as finished:
                for key, outcome in finished:
                    if isinstance(outcome, Exception):
                        if not lenient:
                            raise outcome
                        results[key] = outcome
                    else:
                        arrays = _packed(outcome)
                        if self.folder is not None:
                            _write(self._path(key), arrays)
                        # As it would be read: a tuple is a list, whether or not it was on disk.
                        results[key] = _unpacked(arrays)
                    task.advance(round(100 * todo[key].cost), note=todo[key].title)
        return [results[key] for key in keys]

    def _execute(self, jobs: dict[str, Job]) -> Generator[tuple[str, Result | Exception]]:
        """Yield the result of each job as it finishes, or the error it ended with."""
        if self.ray is not None and jobs:
            yield from spread(jobs, cluster(self.ray, self.processes, self.threads))
        elif self.processes > 1 and len(jobs) > 1:
            yield from spread(jobs, processes(min(self.processes, len(jobs)), self.threads))
        else:
            for key, job in jobs.items():
                yield key, _outcome(job, self.threads)

    def _key(self, job: Job) -> str:
        return fingerprint(job.function, job.arguments, self.threads, versions()[:2])[:32]

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.npz"

    def _read(self, key: str) -> Result | None:
        if self.folder is None or not self._path(key).exists():
            return None
        try:
            with self._path(key).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return _unpacked(dict(arrays))
        except Exception as error:  # a damaged file may raise anything
            raise StorageError(
                f"{self._path(key)} is no result of a job ({type(error).__name__}); expected what an earlier run left "
                "there: delete it, and it is computed anew"
            ) from error


def _outcome(job: Job, threads: int) -> Result | Exception:
    try:
        return job.run(threads)
    except Exception as error:  # whatever a job may raise; the caller decides what it means
        return error


def _packed(result: Result) -> dict[str, Any]:
    """Return only arrays; names are marked, so that none is taken for an option of the writer."""
    plain = {name: value for name, value in result.items() if not isinstance(value, np.ndarray)}
    arrays = {f"={name}": value for name, value in result.items() if name not in plain}
    return {"json": np.array(json.dumps(plain)), **arrays}


def _unpacked(arrays: dict[str, Any]) -> Result:
    plain: Result = json.loads(str(arrays["json"]))
    return {**{name[1:]: value for name, value in arrays.items() if name[0] == "="}, **plain}


def _write(path: Path, arrays: dict[str, Any]) -> None:
    def write(aside: Path) -> None:
        with aside.open("wb") as file:  # given a path, savez would add an ending to it
            np.savez(file, **arrays)

    write_atomic(path, write)


def layout(step: Callable[[], object], cores: int, *, repeats: int = 3) -> tuple[int, int]:
    """Return ``(processes, threads)`` for work like ``step``, by timing it on one thread and on all.

    Independent jobs of one thread each do not wait for each other; one job on all cores is worth it only where it runs
    nearly ``cores`` times as fast.

    >>> layout(lambda: None, 1)
    (1, 1)
    """
    if cores == 1:
        return 1, 1
    before = torch.get_num_threads()
    seconds = {}
    try:
        for threads in (1, cores):
            torch.set_num_threads(threads)
            step()
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            seconds[threads] = time.perf_counter() - start
    finally:
        torch.set_num_threads(before)
    return (1, cores) if seconds[1] > 0.95 * cores * seconds[cores] else (cores, 1)
