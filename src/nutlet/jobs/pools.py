"""Where jobs run other than here: processes of this machine, or a Ray cluster, under one loop."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from typing import Any, NamedTuple

import cloudpickle
import torch

from nutlet.errors import ConfigError, MissingExtra, first_line
from nutlet.jobs.job import Job, Result
from nutlet.signals import blocked_for_children

__all__ = ["Pool", "cluster", "processes", "spread", "versions"]

_LOSSES = 2
"""How often a job is begun again after its worker was killed."""
_IDLE = 300
"""Seconds for which processes wait for more work: starting one takes seconds, as it loads torch."""
_OLDEST_RAY = (2, 40)
_STOPPING = 10
"""Seconds for which the end of processes that were told to end is waited for."""


class Pool(NamedTuple):
    """Where jobs are sent: how many at a time, how, how they are ended early, and which error is a lost worker."""

    slots: int
    submit: Callable[[bytes], Future[bytes]]
    stop: Callable[[Collection[Future[bytes]]], object]
    lost: Callable[[BaseException], bool]


def spread(jobs: dict[str, Job], pool: Pool) -> Iterator[tuple[str, Result | Exception]]:
    """Yield results as they come, with no more jobs pickled at a time than the pool has slots for.

    In the place of the result of a job that failed stands its error: what it raised, or a ConfigError where it cannot
    be sent or lost its worker too often.

    Raises:
        ConfigError: no job can begin.
    """
    todo = list(reversed(jobs))
    waiting: dict[Future[bytes], str] = {}
    losses: Counter[str] = Counter()
    try:
        while todo or waiting:
            while todo and len(waiting) < pool.slots:
                key = todo.pop()
                try:
                    payload = jobs[key].pickled()
                except ConfigError as refused:
                    yield key, refused
                else:
                    waiting[pool.submit(payload)] = key
            if not waiting:
                continue
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                key = waiting.pop(future)
                error = future.exception()
                if error is None:
                    outcome = cloudpickle.loads(future.result())
                    yield key, outcome.error() if isinstance(outcome, _Failure) else outcome
                elif not pool.lost(error):
                    raise ConfigError(
                        f"a worker could not begin a job: {first_line(error.__cause__ or error)}; expected nutlet "
                        "installed there as here"
                    ) from error
                elif losses[key] == _LOSSES:
                    yield key, _lost(jobs[key].title)
                else:
                    losses[key] += 1
                    todo.append(key)
    except BaseException:  # Ctrl-C, and a caller who stops listening: nothing is to go on unseen
        pool.stop(waiting)
        raise


def _lost(title: str) -> ConfigError:
    return ConfigError(
        f"the worker of the job {title!r} was killed {_LOSSES + 1} times, by the system for want of memory or by "
        "somebody; expected it to finish: run fewer processes at a time"
    )


def processes(count: int, threads: int) -> Pool:
    """Return processes of this machine, which wait a while for more work when they are done."""
    # Those of joblib do not import the user's main module again, which spawned ones would.
    from joblib.externals.loky import BrokenProcessPool, get_reusable_executor

    env = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}

    latest: Any = None

    def executor() -> Any:  # a new one, where the last one broke
        nonlocal latest
        # Told whose child it is: one that starts slowly may find its parent killed, and another in its place.
        end_with_us = {"initializer": _end_with_parent, "initargs": (os.getpid(),)}
        latest = get_reusable_executor(max_workers=count, timeout=_IDLE, env=env, **end_with_us)
        return latest

    def stop(waiting: Collection[Future[bytes]]) -> None:
        # Not by its own shutdown, which waits for jobs that it has not handed out yet, or in the middle of handing one
        # out for ever: it sees that its processes are gone, and the next one who asks gets another.
        running = [] if latest is None else list(latest._processes.values())
        for process in running:
            process.terminate()
        # Until it has seen that: before, it would take the next job, and lose it.
        end = time.monotonic() + _STOPPING
        while running and not latest._flags.broken and time.monotonic() < end:
            time.sleep(0.01)
        wait(waiting, timeout=max(0.0, end - time.monotonic()))

    def submit(payload: bytes) -> Future[bytes]:
        while True:
            # It may break between being found whole and being asked.
            with suppress(BrokenProcessPool), blocked_for_children():
                future: Future[bytes] = executor().submit(_work, payload, threads, versions())
                return future

    return Pool(
        slots=count,
        submit=submit,
        stop=stop,
        lost=lambda error: isinstance(error, BrokenProcessPool),
    )


def _end_with_parent(parent: int) -> None:
    """End this process soon after the one that started it was killed, in the middle of a job if need be."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def cluster(address: str, count: int, threads: int) -> Pool:
    """Return the Ray cluster at ``address``; ``local`` starts one here that runs ``count`` jobs at a time.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: Ray is too old, or no cluster answers there.
    """
    try:
        ray: Any = importlib.import_module("ray")  # half of it is typed
    except ImportError:
        raise MissingExtra("ray", "ray", "running jobs on a cluster") from None
    if tuple(map(int, ray.__version__.split(".")[:2])) < _OLDEST_RAY:
        raise ConfigError(
            f"found Ray {ray.__version__}; expected {'.'.join(map(str, _OLDEST_RAY))} or later: install it with: "
            "pip install 'nutlet[ray]'"
        )
    if not ray.is_initialized():
        own = {"num_cpus": count * threads, "include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address, log_to_driver=False, **own)
        except Exception as error:  # it has no common base
            raise ConfigError(
                f"no Ray cluster to be had at {address!r}: {first_line(error).rstrip('.')}; expected one that runs "
                "(`ray start --head`), or `local` to start one here"
            ) from error
    # Begun again by our own loop, so that a lost worker means the same here as on one machine.
    remote = ray.remote(num_cpus=threads, max_retries=0)(_work)
    sent: dict[Future[bytes], Any] = {}

    def submit(payload: bytes) -> Future[bytes]:
        reference = remote.remote(payload, threads, versions())
        future: Future[bytes] = reference.future()
        sent[future] = reference
        future.add_done_callback(sent.pop)  # as long as a reference is held, the cluster holds the result
        return future

    def stop(waiting: Collection[Future[bytes]]) -> None:
        for reference in filter(None, map(sent.get, waiting)):
            ray.cancel(reference, force=True)

    return Pool(
        # Some more than there is room for, so that a cluster that can grow sees that it should.
        slots=2 * max(1, int(ray.cluster_resources().get("CPU", 0)) // threads),
        submit=submit,
        stop=stop,
        lost=lambda error: (
            isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)
        ),
    )


class _Failure(NamedTuple):
    """An error in parts: pickled whole, it would be made again by a constructor that may take something else."""

    kind: type[Exception]
    args: tuple[Any, ...]
    trace: str

    def error(self) -> Exception:
        error: Exception = self.kind.__new__(self.kind, *self.args)
        error.add_note(f"In a worker:\n{self.trace}")
        return error


def _work(payload: bytes, threads: int, expected: tuple[str, ...]) -> bytes:
    """Run one job in another process, and hand back its result or its failure."""
    try:
        if versions() != expected:
            raise ConfigError(
                f"a worker has nutlet, torch, Python {', '.join(versions())}; expected {', '.join(expected)} as here: "
                "install the same there"
            )
        outcome: Result | _Failure = cloudpickle.loads(payload).run(threads)
    except Exception as error:
        outcome = _Failure(type(error), error.args, traceback.format_exc())
    return bytes(cloudpickle.dumps(outcome))


def versions() -> tuple[str, ...]:
    """Return what the results of a job depend on beside itself: the versions of nutlet and torch, and of Python."""
    return importlib.metadata.version("nutlet"), torch.__version__, platform.python_version()
