from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nutlet import machine
from nutlet.data.examples import Examples
from nutlet.errors import ConfigError, DataError
from nutlet.measurement import Runtime, cores, environment, latencies, latency
from nutlet.measurement.latency import interleaved

Save = Callable[..., Path]


class Clock:
    """A clock that only calls move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.order.append(name)
            self.now += seconds

        return run


def test_calls_take_turns_and_another_is_first_in_each_round() -> None:
    clock = Clock()
    times = interleaved([clock.call("a", 1), clock.call("b", 2), clock.call("c", 3)], seconds=30, clock=clock)
    assert "".join(clock.order[:12]) == "abc" + "abc" + "bca" + "cab"  # warm-up, then three rounds
    assert [set(row) for row in times] == [{1.0}, {2.0}, {3.0}]
    assert len({len(row) for row in times}) == 1


def test_slow_spells_of_the_machine_hit_all_alike() -> None:
    clock = Clock()

    def call(cost: float) -> Callable[[], None]:
        def run() -> None:
            clock.now += cost * (10 if 20 < clock.now < 60 else 1)

        return run

    fast, slow = interleaved([call(0.1), call(0.2)], seconds=100, clock=clock)
    assert np.median(np.array(slow) / np.array(fast)) == pytest.approx(2)


@pytest.mark.parametrize(("cost", "rounds"), [(0.001, None), (1.0, 3), (4.0, 1), (100.0, 1)])
def test_the_time_bound_holds(cost: float, rounds: int | None) -> None:
    clock = Clock()
    times = interleaved([clock.call("a", cost), clock.call("b", cost)], seconds=2.5, clock=clock)
    assert clock.now <= max(3 * 2.5 + 2 * cost, 4 * cost)
    assert rounds is None or len(times[0]) == rounds
    assert rounds is not None or len(times[0]) > 1000


def test_the_time_bound_holds_on_a_real_clock() -> None:
    began = time.perf_counter()
    interleaved([lambda: time.sleep(0.002), lambda: None], seconds=0.1)
    assert 0.1 <= time.perf_counter() - began < 1


def test_settings_are_labelled_with_the_true_threads(
    save: Save, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Runtime(save(np.eye(4)))
    monkeypatch.setattr(latency, "cores", lambda: 2)
    found, speedups = latencies([opened], examples, batches=(1, 5), threads=(1, 2, 0), seconds=0.01)
    assert [(row.batch, row.threads) for row in found[0]] == [(1, 1), (5, 1), (1, 2), (5, 2)]
    assert all(0 < row.median_ms <= row.p95_ms and row.runs >= 3 for row in found[0])
    assert speedups == []

    monkeypatch.setattr(latency, "cores", lambda: 1)
    found, _ = latencies([opened], examples, batches=(1,), threads=(1, 0), seconds=0.01)
    assert [row.threads for row in found[0]] == [1]


def test_a_larger_file_is_slower(save: Save, examples: Examples) -> None:
    small, large = Runtime(save(np.eye(4), "a.onnx")), Runtime(save(np.ones((4, 200_000)), "b.onnx"))
    found, (speedups,) = latencies([small, large], examples, batches=(8,), threads=(1,), seconds=0.2)
    assert found[0][0].median_ms < found[1][0].median_ms
    assert speedups[0].ratio == pytest.approx(found[1][0].median_ms / found[0][0].median_ms)
    assert speedups[0].paired > 1


def test_each_file_is_compared_with_the_last(save: Save, examples: Examples) -> None:
    files = [Runtime(save(np.ones((4, width)), f"{width}.onnx")) for width in (4, 100_000, 200_000)]
    found, speedups = latencies(files, examples, batches=(8,), threads=(1,), seconds=0.2)
    medians = [row[0].median_ms for row in found]
    assert [told[0].ratio for told in speedups] == [pytest.approx(medians[2] / median) for median in medians[:2]]


@pytest.mark.parametrize(
    "wrong", [{"batches": ()}, {"batches": (0,)}, {"threads": ()}, {"threads": (-1,)}, {"seconds": 0.0}]
)
def test_wrong_settings_are_refused(save: Save, examples: Examples, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is .*; expected"):
        latencies([Runtime(save(np.eye(4)))], examples, **wrong)  # type: ignore[arg-type]


def test_a_fixed_batch_is_said_before_anything_is_timed(save: Save, examples: Examples) -> None:
    with pytest.raises(DataError, match="takes batches of 1 only"):
        latencies([Runtime(save(np.eye(4), batch=1))], examples, batches=(1, 32), seconds=60)


CPUINFO = """processor : 0
model name : Some CPU
physical id : 0
core id : 0
flags : fpu avx2 {flag}

processor : 1
model name : Some CPU
physical id : 0
core id : 0
flags : fpu avx2 {flag}
"""


@pytest.mark.parametrize(("flag", "fast"), [("avx512_vnni", True), ("avx_vnni", True), ("sse2", False)])
def test_environment_tells_the_int8_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, fast: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(flag=flag))
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    here = environment()
    assert here["cpu"] == "Some CPU"
    assert here["int8_dot_product"] is fast
    assert (flag in here["instruction_sets"]) is fast


def test_environment_without_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "missing")
    here = environment()
    assert here["instruction_sets"] is None
    assert here["int8_dot_product"] is None
    assert here["cores"] >= 1


@pytest.mark.parametrize(("siblings", "expected"), [(("0-1", "0-1", "2-3"), 2), (("0", "1", "2"), 3)])
def test_two_threads_of_one_core_are_one_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, siblings: tuple[str, ...], expected: int
) -> None:
    for cpu, text in enumerate(siblings):
        (tmp_path / str(cpu)).write_text(text)
    monkeypatch.setattr(machine, "_SIBLINGS", f"{tmp_path}/{{}}")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(len(siblings))), raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda only_physical_cores: 3)
    assert cores() == expected


def test_a_limit_bounds_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert cores() == 1
