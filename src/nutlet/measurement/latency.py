"""Latency of files in their runtime, timed in turn, so that what slows the machine slows them all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from nutlet.data.examples import Examples
from nutlet.errors import ConfigError
from nutlet.formats.runtime import Runtime
from nutlet.machine import cores
from nutlet.progress import Progress

__all__ = ["Latency", "Speedup", "check_settings", "interleaved", "latencies"]


@dataclass(frozen=True)
class Latency:
    """Time of one call in one setting.

    Args:
        batch: examples per call.
        threads: true number of threads.
        median_ms: median time of a call in milliseconds.
        p95_ms: 95th percentile of the same.
        runs: number of timed calls.
    """

    batch: int
    threads: int
    median_ms: float
    p95_ms: float
    runs: int


@dataclass(frozen=True)
class Speedup:
    """How many times faster the first of two files is, in one setting.

    Args:
        batch: examples per call.
        threads: true number of threads.
        ratio: median time of the second file over median time of the first.
        paired: median of the ratios taken round by round; where the two disagree, the machine was busy.
        low: lower end of the 95 % interval of ``ratio``, of this run; None where too few calls were timed.
        high: upper end.
    """

    batch: int
    threads: int
    ratio: float
    paired: float
    low: float | None = None
    high: float | None = None


def interleaved(
    calls: Sequence[Callable[[], object]], *, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Time ``calls`` in rounds, each once per round and another one first in each, and return seconds per call.

    Warm-up: every call once, then on for a tenth of the time, none of it counted. Then rounds until ``seconds``
    have passed, warm-up included, and at least three; of slow calls, which need three times as long for that,
    only as many as fit, and at least one.

    Args:
        calls: what is timed.
        seconds: time for all calls together.
        clock: returns seconds.

    >>> order = []
    >>> times = interleaved([lambda: order.append("a"), lambda: order.append("b")], seconds=0.01)
    >>> len(times[0]) == len(times[1]) >= 3
    True
    """
    start = clock()
    while True:
        for call in calls:
            call()
        if clock() - start >= seconds / 10:
            break
    times: list[list[float]] = [[] for _ in calls]
    rounds = 0
    while True:
        for place in range(len(calls)):
            turn = (rounds + place) % len(calls)
            began = clock()
            calls[turn]()
            times[turn].append(clock() - began)
        rounds += 1
        passed = clock() - start
        if passed >= 3 * seconds or (passed >= seconds and rounds >= 3):
            return times


def latencies(
    runtimes: Sequence[Runtime],
    examples: Examples,
    *,
    batches: Sequence[int] = (1, 32),
    threads: Sequence[int] = (1, 0),
    seconds: float = 2.0,
    progress: Progress | None = None,
) -> tuple[list[tuple[Latency, ...]], list[tuple[Speedup, ...]]]:
    """Time files on real examples, interleaved, for each number of threads and each batch size.

    Args:
        runtimes: the files; the last is the one that the others are compared with.
        examples: inputs; the first ones of them are used.
        batches: examples per call.
        threads: threads for one operator; 0 for all cores. Settings that come to the same are timed once.
        seconds: time for one setting, all files together.
        progress: shows a bar.

    Returns:
        For each file its latencies, and for each but the last its speedups over the last.

    Raises:
        ConfigError: a setting is out of range.
        DataError: the examples do not fit a file, or a file takes another batch size only.
    """
    check_settings(batches, threads, seconds)
    progress = progress or Progress(quiet=True)
    counts = list(dict.fromkeys(count or cores() for count in threads))
    sizes = list(dict.fromkeys(batches))
    for runtime in runtimes:
        for size in sizes:
            runtime.batch_of(examples, size)  # say what does not fit before an hour of timing, not after
    found: list[list[Latency]] = [[] for _ in runtimes]
    speedups: list[list[Speedup]] = [[] for _ in runtimes[1:]]
    with progress.task("timing", total=len(counts) * len(sizes)) as task:
        for count in counts:
            opened = [runtime.reopened(count) for runtime in runtimes]
            for size in sizes:
                calls = [partial(runtime.run_raw, runtime.batch_of(examples, size)) for runtime in opened]
                times = np.array(interleaved(calls, seconds=seconds))
                for place, row in enumerate(times * 1000):
                    median, p95 = float(np.median(row)), float(np.quantile(row, 0.95))
                    found[place].append(Latency(size, count, median, p95, len(row)))
                for row, told in zip(times, speedups, strict=False):
                    ratio = float(np.median(times[-1]) / np.median(row))
                    paired = float(np.median(times[-1] / row))
                    told.append(Speedup(size, count, ratio, paired, *_ends(ratio, np.stack([row, times[-1]]))))
                task.advance()
    return [tuple(row) for row in found], [tuple(told) for told in speedups]


def _ends(ratio: float, times: npt.NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Return the 95 % interval of a ratio of medians ``times[1] / times[0]``, of times ``(2, rounds)``.

    By batch means of log ratios: rounds one after the other are alike, ten stretches of them hardly.
    """
    from scipy import stats

    blocks = min(10, times.shape[1])
    if blocks < 3:
        return None, None
    parts = np.array_split(times, blocks, axis=1)
    logs = [math.log(float(np.median(part[1]) / np.median(part[0]))) for part in parts]
    half = float(stats.t.ppf(0.975, blocks - 1) * np.std(logs, ddof=1) / math.sqrt(blocks))
    return ratio * math.exp(-half), ratio * math.exp(half)


def check_settings(batches: Sequence[int], threads: Sequence[int], seconds: float) -> None:
    """Raise ConfigError unless the settings can be timed."""
    if not batches or any(size < 1 for size in batches):
        raise ConfigError(f"batches is {tuple(batches)}; expected one or more sizes from 1 up, as (1, 32)")
    if not threads or any(count < 0 for count in threads):
        raise ConfigError(f"threads is {tuple(threads)}; expected one or more counts, 0 for all cores, as (1, 0)")
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"seconds is {seconds}; expected a positive time for one latency setting, as 2.0")
