"""Many independent pieces of work on all cores, or on Ray: each done once, kept on disk, the same wherever it runs.

A job is a function of this package with its arguments, and gives arrays. Its result is kept under a hash of both, so
that a run that was killed goes on from what was finished, and two audits that share a shadow model train it once.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nutlet.errors import ConfigError, MissingExtra, NutletError, StorageError
from nutlet.fingerprint import fingerprint
from nutlet.progress import Progress
from nutlet.storage import write_atomic

__all__ = ["Job", "Result", "Workers", "layout"]

Result = dict[str, Any]
"""Arrays and plain JSON by name."""


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work.

    Args:
        function: importable, ``(**arguments) -> Result``; what it gives depends on its arguments alone.
        arguments: plain values, arrays, modules and dataclasses.
        title: what a user calls it.
        cost: how long it takes, relative to the others; for the time left.
    """

    function: Callable[..., Result]
    arguments: dict[str, Any]
    title: str = ""
    cost: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where jobs run.

    Args:
        processes: how many at a time; with 1 they run in this process.
        threads: of each. Sums are rounded differently by other numbers of threads, so it belongs to what a result
            depends on.
        folder: where results are kept; None keeps none.
        ray: address of a Ray cluster (``auto``, ``ray://host:10001``, or ``local`` to start one here); None for none.
        progress: shows bars.

    Raises:
        ConfigError: fewer than one process or thread.
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
            NutletError: what a job raised; the results of those that had finished are kept.
            StorageError: a result cannot be written.
            MissingExtra: Ray is not installed.
        """
        keys = [self._key(job) for job in jobs]
        results: dict[int, Result] = {}
        for index, key in enumerate(keys):
            found = self._read(key)
            if found is not None:
                results[index] = found
        todo = [index for index in range(len(jobs)) if index not in results]
        total = round(100 * sum(job.cost for job in jobs)) or 1
        with self.progress.task(title, total=total) as task:
            task.advance(round(100 * sum(jobs[index].cost for index in results)))
            for index, result in self._execute([(index, jobs[index]) for index in todo]):
                results[index] = result
                self._write(keys[index], result)
                task.advance(round(100 * jobs[index].cost), note=jobs[index].title)
        return [results[index] for index in range(len(jobs))]

    def _execute(self, jobs: list[tuple[int, Job]]) -> Iterator[tuple[int, Result]]:
        if not jobs:
            return
        if self.ray is not None:
            yield from _on_ray(self.ray, jobs, self.threads)
        elif self.processes == 1 or len(jobs) == 1:
            for index, job in jobs:
                yield index, _call(job, self.threads)
        else:
            yield from _in_processes(jobs, self.processes, self.threads)

    def _key(self, job: Job) -> str:
        name = f"{job.function.__module__}.{job.function.__qualname__}"
        return fingerprint(name, job.arguments, self.threads, importlib.metadata.version("nutlet"), torch.__version__)[
            :32
        ]

    def _read(self, key: str) -> Result | None:
        path = None if self.folder is None else self.folder / f"{key}.npz"
        if path is None or not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                result: Result = {name: arrays[name] for name in arrays.files if name != "json"}
                return {**result, **json.loads(str(arrays["json"]))}
        except Exception as error:  # a damaged file may raise anything
            raise StorageError(
                f"{path} is no result of a job ({type(error).__name__}); expected what an earlier run left there: "
                "delete it, and it is computed anew"
            ) from error

    def _write(self, key: str, result: Result) -> None:
        if self.folder is None:
            return
        arrays = {name: value for name, value in result.items() if isinstance(value, np.ndarray)}
        plain = {name: value for name, value in result.items() if name not in arrays}

        def write(aside: Path) -> None:
            with aside.open("wb") as file:  # given a path, savez would add an ending to it
                np.savez(file, allow_pickle=False, json=np.array(json.dumps(plain)), **arrays)

        write_atomic(self.folder / f"{key}.npz", write)


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


def _call(job: Job, threads: int) -> Result:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return job.function(**job.arguments)
    finally:
        torch.set_num_threads(before)


def _work(payload: bytes, threads: int) -> tuple[int, Result | NutletError]:
    """Run one job in another process; an error of ours is handed back whole, whatever its constructor takes."""
    import cloudpickle

    index, job = cloudpickle.loads(payload)
    try:
        return index, _call(job, threads)
    except NutletError as error:
        return index, error


def _pack(index: int, job: Job) -> bytes:
    """Pickle a job for our own processes, classes from files that nobody else can import by value."""
    import sys

    import cloudpickle

    ours = {name for name in sys.modules if name.partition(".")[0] == "nutlet"}
    strangers = [
        module
        for module in {type(part).__module__ for part in _modules_in(job.arguments)}
        if module not in ours and module != "__main__" and not _importable(module)
    ]
    for name in strangers:
        cloudpickle.register_pickle_by_value(sys.modules[name])
    try:
        return bytes(cloudpickle.dumps((index, job)))
    finally:
        for name in strangers:
            cloudpickle.unregister_pickle_by_value(sys.modules[name])


def _modules_in(value: Any) -> Iterator[torch.nn.Module]:
    if isinstance(value, torch.nn.Module):
        yield from value.modules()
    elif isinstance(value, dict):
        for item in value.values():
            yield from _modules_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _modules_in(item)
    elif hasattr(value, "__dict__"):
        yield from _modules_in(vars(value))


def _importable(name: str) -> bool:
    """Whether another process finds the module by its name: installed packages, not files of the user's."""
    import site
    import sys
    import sysconfig

    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return True
    places = [*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_paths()["stdlib"]]
    return any(Path(file).is_relative_to(place) for place in places)


def _in_processes(jobs: list[tuple[int, Job]], processes: int, threads: int) -> Iterator[tuple[int, Result]]:
    import joblib

    # joblib's own processes do not import the user's main module again, which spawned ones would.
    with joblib.parallel_config(backend="loky", inner_max_num_threads=threads):
        pool = joblib.Parallel(n_jobs=min(processes, len(jobs)), return_as="generator_unordered", pre_dispatch="all")
        for index, result in pool(joblib.delayed(_work)(_pack(index, job), threads) for index, job in jobs):
            if isinstance(result, NutletError):
                raise result
            yield index, result


def _on_ray(address: str, jobs: list[tuple[int, Job]], threads: int) -> Iterator[tuple[int, Result]]:
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray", "running jobs on a cluster") from None
    if not ray.is_initialized():
        ray.init(None if address == "local" else address, log_to_driver=False)
    # A worker that dies takes its job with it: the job starts anew, and gives the same.
    remote = ray.remote(num_cpus=threads, max_retries=3)(_work)
    waiting = [remote.remote(_pack(index, job), threads) for index, job in jobs]
    while waiting:
        (done, *_), waiting = ray.wait(waiting)
        index, result = ray.get(done)
        if isinstance(result, NutletError):
            raise result
        yield index, result
