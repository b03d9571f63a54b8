"""Jobs: the same wherever they run, done once, and what happens when something is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn

from nutlet.attacks.extraction.surrogate import fresh
from nutlet.errors import ConfigError, MissingExtra, ModelError, NutletError, StorageError
from nutlet.jobs import Job, Workers, layout, pools
from nutlet.loading.factory import build
from nutlet.progress import Progress, Task

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return squash(self.fc(x))

def squash(x):
    return torch.tanh(x)
"""
LINEAR = nn.Linear(6, 3)


def train(model: nn.Module, seed: int) -> dict[str, Any]:
    """A small training with dropout, which draws from the global generator."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 6, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.dropout(model(x)).square().mean().backward()
        optimizer.step()
    return {"weight": next(model.parameters()).detach().numpy(), "about": {"seed": seed, "shape": (6, 3)}}


def about_process(number: int) -> dict[str, Any]:
    return {"pid": os.getpid(), "threads": torch.get_num_threads(), "omp": os.environ.get("OMP_NUM_THREADS")}


def die_once(marker: Path, number: int) -> dict[str, Any]:
    """End the process that runs this with a signal, unless somebody did before."""
    if number == 1 and not marker.exists():
        marker.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return {"square": np.array(number**2)}


def die_always(number: int, log: str, kept: str) -> dict[str, Any]:
    if number == 1:
        # Until the other is done for whoever asked: a process that breaks takes the work of all of them with it.
        while not list(Path(kept).glob("*.npz")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    with open(log, "a") as file:
        file.write(f"{number}\n")
    return {}


class OfTheUser(NutletError):
    """An error whose constructor does not take its own message."""

    def __init__(self, count: int, unit: str) -> None:
        super().__init__(f"{count} {unit}")


def fail(kind: str, log: str = "") -> dict[str, Any]:
    """Raise the error of that name; without a name write a line."""
    if kind == "extra":
        raise MissingExtra("ray", "ray", "this")
    if kind == "model":
        raise ModelError("no such layer")
    if kind == "user":
        raise OfTheUser(3, "pears")
    if kind == "bug":
        raise ZeroDivisionError("by zero")
    with open(log, "a") as file:
        file.write(f"{kind}\n")
    return {"kind": kind}


def trainings(model: nn.Module | None = None) -> list[Job]:
    if model is None:
        model = fresh(LINEAR, 3)
    return [Job(train, {"model": model, "seed": seed}, title=f"training {seed}") for seed in range(3)]


def assert_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, other[name], strict=True)
                assert value.flags.writeable
            else:
                assert value == other[name]


@contextmanager
def script(text: str, folder: Path, *more: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program of the user's, in a session of its own, whatever becomes of it."""
    path = folder / "script.py"
    path.write_text(text)
    process = subprocess.Popen(
        [sys.executable, str(path), *map(str, more)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends within so many seconds; one that nobody has waited for yet has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_the_same_in_processes_as_here() -> None:
    here = Workers().run(trainings(), "here")
    torch.manual_seed(99)  # the state of the global generator is nobody's seed
    before = torch.get_rng_state()
    assert_equal(Workers(processes=2).run(trainings(), "in processes"), here)
    assert_equal(Workers().run(trainings(), "here again"), here)
    assert torch.equal(torch.get_rng_state(), before)
    assert not np.array_equal(here[0]["weight"], here[1]["weight"])


def test_workers_do_not_contend() -> None:
    found = Workers(processes=2).run([Job(about_process, {"number": number}) for number in range(4)], "asking")
    assert {(one["threads"], one["omp"]) for one in found} == {(1, "1")}
    assert os.getpid() not in {one["pid"] for one in found}


def test_classes_from_a_file_travel(tmp_path: Path) -> None:
    (tmp_path / "net_of_jobs.py").write_text(NET)
    jobs = trainings(build(f"{tmp_path / 'net_of_jobs.py'}:Net", ModelError))
    # Where the worker looks by name, it is to find nothing.
    sys.path.remove(str(tmp_path))
    (tmp_path / "net_of_jobs.py").unlink()
    assert_equal(Workers(processes=2).run(jobs, "training"), Workers().run(jobs, "training"))


def test_a_killed_process_is_replaced(tmp_path: Path) -> None:
    jobs = [Job(die_once, {"marker": tmp_path / "marker", "number": number}) for number in range(4)]
    assert [int(one["square"]) for one in Workers(processes=2).run(jobs, "squaring")] == [0, 1, 4, 9]
    assert (tmp_path / "marker").exists()


def test_processes_that_break_as_they_are_asked_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from joblib.externals import loky

    class Breaking:
        def submit(self, *args: object) -> Future[bytes]:
            raise loky.BrokenProcessPool

    class Whole:
        def submit(self, *args: object) -> Future[bytes]:
            future: Future[bytes] = Future()
            future.set_result(b"done")
            return future

    executors = iter([Breaking(), Whole()])
    monkeypatch.setattr(loky, "get_reusable_executor", lambda **_: next(executors))
    assert pools.processes(2, 1).submit(b"").result() == b"done"


def test_a_job_cannot_change_what_another_gets() -> None:
    model = nn.Linear(6, 3)
    weight = model.weight.detach().clone()
    Workers().run(trainings(model), "training")
    assert torch.equal(model.weight, weight)


def test_one_job_or_one_process_stays_here() -> None:
    job = Job(about_process, {"number": 0})
    assert Workers(processes=2).run([job], "one")[0]["pid"] == os.getpid()
    before = torch.get_num_threads()
    assert Workers(threads=2).run([job, Job(about_process, {"number": 1})], "two")[1]["threads"] == 2
    assert torch.get_num_threads() == before


def test_a_result_is_kept_and_found(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    jobs = [Job(fail, {"kind": name, "log": log}) for name in ("a", "b", "a")]
    workers = Workers(folder=tmp_path / "kept")
    first = workers.run(jobs, "first")
    assert [one["kind"] for one in first] == ["a", "b", "a"]
    assert_equal(workers.run(jobs, "again"), first)
    assert Path(log).read_text() == "a\nb\n"  # twins are one job, and nothing is done twice
    workers.run([Job(fail, {"kind": "c", "log": log})], "another")
    assert Path(log).read_text() == "a\nb\nc\n"


def test_a_result_is_the_same_fresh_or_from_disk(tmp_path: Path) -> None:
    workers = Workers(folder=tmp_path)
    fresh = workers.run(trainings(), "training")
    assert fresh[0]["about"] == {"seed": 0, "shape": [6, 3]}
    assert_equal(workers.run(trainings(), "training"), fresh)


def test_names_that_the_writer_knows_are_only_names(tmp_path: Path) -> None:
    result = {"file": np.ones(1), "json": np.zeros(2), "allow_pickle": np.ones(3)}
    job = Job(dict, result)
    assert_equal(Workers(folder=tmp_path).run([job], "odd names"), [result])
    assert_equal(Workers(folder=tmp_path).run([job], "odd names"), [result])


def test_other_threads_are_another_result(tmp_path: Path) -> None:
    job = Job(about_process, {"number": 0})
    assert Workers(folder=tmp_path).run([job], "one")[0]["threads"] == 1
    assert Workers(folder=tmp_path, threads=2).run([job], "two")[0]["threads"] == 2


@pytest.mark.parametrize("damage", [lambda content: content[:-30], lambda content: b"", lambda content: b"\x80" * 99])
def test_a_damaged_result_is_named(tmp_path: Path, damage: Any) -> None:
    workers = Workers(folder=tmp_path)
    workers.run([Job(die_once, {"marker": tmp_path, "number": 2})], "squaring")
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StorageError, match=f"{path.name} is no result of a job .* delete it"):
        workers.run([Job(die_once, {"marker": tmp_path, "number": 2})], "squaring")
    path.unlink()
    assert workers.run([Job(die_once, {"marker": tmp_path, "number": 2})], "squaring")[0]["square"] == 4


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    workers = Workers(folder=tmp_path)
    workers.run(trainings()[:1], "training")
    (path,) = tmp_path.glob("*.npz")
    content = bytearray(path.read_bytes())
    content[content.index(b"=weight.npy") + 180] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="BadZipFile"):
        workers.run(trainings()[:1], "training")


ERRORS = {
    "extra": (MissingExtra, "nutlet\\[ray\\]"),
    "model": (ModelError, "^no such layer"),
    "user": (OfTheUser, "^3 pears"),
    "bug": (ZeroDivisionError, "^by zero"),
}


@pytest.mark.parametrize(("kind", "processes"), [*((kind, 1) for kind in ERRORS), ("extra", 2)])
def test_an_error_reaches_the_caller_and_what_was_done_is_kept(tmp_path: Path, kind: str, processes: int) -> None:
    log = str(tmp_path / "log")
    good = [Job(fail, {"kind": name, "log": log}) for name in ("a", "b", "c")]
    workers = Workers(processes=processes, folder=tmp_path / "kept")
    workers.run(good, "good ones")
    error, message = ERRORS[kind]
    with pytest.raises(error, match=message) as caught:
        workers.run([*good, Job(fail, {"kind": kind}), Job(fail, {"kind": kind, "log": "x"})], "one too many")
    assert type(caught.value) is error
    assert processes == 1 or "in fail" in caught.value.__notes__[0]
    assert len(workers.run(good, "good ones")) == 3
    assert sorted(Path(log).read_text().split()) == ["a", "b", "c"]


def test_no_job_is_lost_to_processes_that_were_stopped_before_it(tmp_path: Path) -> None:
    pool = pools.processes(2, 1)
    payload = Job(fail, {"kind": "nothing", "log": str(tmp_path / "log")}).pickled()
    for _ in range(3):
        for future in [pool.submit(payload) for _ in range(2)]:
            future.result()
        pool.stop([])  # as after a failed job, with nothing else in flight


def test_a_job_that_kills_its_process_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_LOSSES", 0)  # how often is looked at below; here each costs seconds
    log = str(tmp_path / "log")
    kept = tmp_path / "kept"
    jobs = [
        Job(die_always, {"number": number, "log": log, "kept": str(kept)}, title=f"number {number}")
        for number in range(2)
    ]
    workers = Workers(processes=2, folder=kept)
    with pytest.raises(ConfigError, match=r"worker of the job 'number 1' was killed 1 times.*run fewer processes"):
        workers.run(jobs, "hopeless")
    workers.run(jobs[:1], "the other")
    assert Path(log).read_text() == "0\n"  # what had finished is kept


class Gone(Exception):
    """The worker is."""


def fake_pool(killed: dict[str, int], stopped: list[bool]) -> pools.Pool:
    """A pool of two slots whose workers do no more than name the job, or are gone so many times before they do."""

    def submit(payload: bytes) -> Future[bytes]:
        name = cloudpickle.loads(payload).title
        future: Future[bytes] = Future()
        if killed.get(name, 0):
            killed[name] -= 1
            future.set_exception(Gone())
        else:
            future.set_result(cloudpickle.dumps({"name": name}))
        return future

    return pools.Pool(2, submit, lambda waiting: stopped.append(True), lambda error: isinstance(error, Gone))


def test_a_job_is_begun_again_twice() -> None:
    jobs = {name: Job(dict, {}, title=name) for name in "abcd"}
    stopped: list[bool] = []
    found = dict(pools.spread(jobs, fake_pool({"b": 2, "d": 1}, stopped)))
    assert found == {name: {"name": name} for name in "abcd"}
    assert stopped == []
    found = dict(pools.spread(jobs, fake_pool({"b": 3}, stopped)))
    error = found.pop("b")
    assert isinstance(error, ConfigError)
    assert "'b' was killed 3 times" in str(error)
    assert found == {name: {"name": name} for name in "acd"}, "the others are done all the same"


def test_work_that_nobody_waits_for_is_stopped() -> None:
    stopped: list[bool] = []
    results = pools.spread({name: Job(dict, {}, title=name) for name in "abcd"}, fake_pool({}, stopped))
    next(results)
    results.close()
    assert stopped == [True]


def test_a_worker_of_another_version_is_refused() -> None:
    outcome = cloudpickle.loads(pools._work(Job(dict, {}).pickled(), 1, ("0.0", "1.0", "3.11")))
    with pytest.raises(ConfigError, match=r"a worker has nutlet, torch, Python .*; expected 0\.0, 1\.0, 3\.11 as here"):
        raise outcome.error()


def test_what_cannot_travel_says_so() -> None:
    class Stuck:
        def fingerprint(self) -> str:
            return "stuck"

        def __reduce__(self) -> Any:
            raise TypeError("cannot pickle a pipe")

        def __deepcopy__(self, memo: object) -> Stuck:
            return self

    jobs = [Job(lambda thing, number: {"n": number}, {"thing": Stuck(), "number": n}, title="t") for n in range(2)]
    with pytest.raises(ConfigError, match=r"'t' cannot be sent to another process: cannot pickle a pipe.*one process"):
        Workers(processes=2).run(jobs, "stuck")
    assert [one["n"] for one in Workers().run(jobs, "here")] == [0, 1]


class Recorder(Progress):
    """Progress that can be read afterwards."""

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
        moves: list[tuple[int, str]] = []
        object.__setattr__(self, "moves", moves)
        object.__setattr__(self, "total", total)

        class Moves(Task):
            def advance(self, steps: int = 1, note: str = "") -> None:
                moves.append((steps, note))

        yield Moves()


def test_the_bar_moves_by_cost(tmp_path: Path) -> None:
    progress: Any = Recorder()
    workers = Workers(folder=tmp_path, progress=progress)
    jobs = [Job(about_process, {"number": n}, title=f"job {n}", cost=cost) for n, cost in enumerate((0.5, 2, 3))]
    workers.run(jobs[:1], "the first")
    assert (progress.total, progress.moves) == (50, [(0, ""), (50, "job 0")])
    workers.run(jobs, "all")
    assert (progress.total, progress.moves) == (550, [(50, ""), (200, "job 1"), (300, "job 2")])


@pytest.mark.parametrize("options", [{"processes": 0}, {"threads": 0}])
def test_impossible_numbers(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected 1 or more of each"):
        Workers(**options)  # type: ignore[arg-type]


def test_layout() -> None:
    before = torch.get_num_threads()
    # Work that no thread makes faster.
    assert layout(lambda: time.sleep(0.002), 2) == (2, 1)
    # Work that takes half as long on two.
    assert layout(lambda: time.sleep(0.02 / torch.get_num_threads()), 2, repeats=2)[0] in (1, 2)
    assert layout(lambda: time.sleep(0.02 / torch.get_num_threads() ** 2), 2) == (1, 2)
    assert torch.get_num_threads() == before


SQUARES = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from nutlet.jobs import Job, Workers

def square(number, first):
    with open("log", "a") as file:
        file.write(f"{number} {os.getpid()}\\n")
    if number == 2 and first:
        HOW
    return {"square": np.array(number ** 2)}

first = not Path("log").exists()
jobs = [Job(square, {"number": number, "first": False}) for number in range(4)]
if first:
    jobs[2].arguments["first"] = True
results = Workers(processes=int(sys.argv[1]), folder=Path("kept")).run(jobs, "squaring")
print(*(int(result["square"]) for result in results))
"""
"""A script without the usual guard around its main part."""


def log_of(folder: Path) -> list[tuple[int, int]]:
    path = folder / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(number), int(pid)) for number, pid in (line.split() for line in lines)]


def wait_for(number: int, folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while number not in dict(log_of(folder)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_run_goes_on_and_a_script_needs_no_guard(tmp_path: Path) -> None:
    text = SQUARES.replace("HOW", "os.kill(os.getpid(), signal.SIGKILL)")
    with script(text, tmp_path, 1) as process:
        assert process.wait(60) == -signal.SIGKILL
    assert [number for number, _ in log_of(tmp_path)] == [0, 1, 2]
    with script(text, tmp_path, 2) as process:
        out, err = process.communicate(timeout=60)
    assert (out, err) == ("0 1 4 9\n", "")
    assert sorted(number for number, _ in log_of(tmp_path)) == [0, 1, 2, 2, 3]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes where Linux lists them")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_no_process_is_left_behind(tmp_path: Path, how: signal.Signals) -> None:
    with script(SQUARES.replace("HOW", "time.sleep(100)"), tmp_path, 2) as process:
        wait_for(2, tmp_path, process)
        process.send_signal(how)
        _, err = process.communicate(timeout=20)
    assert process.returncode == -how or "KeyboardInterrupt" in err
    assert {pid: gone(pid) for _, pid in log_of(tmp_path)} == dict.fromkeys((pid for _, pid in log_of(tmp_path)), True)


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """A cluster of two processors on this machine."""
    import tempfile

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as scratch:
        patch.setenv("HOME", scratch)
        patch.setenv("RAY_TMPDIR", scratch)  # its sockets need short paths
        import ray

        yield Workers(ray="local", processes=2)
        ray.shutdown()


@needs_ray
def test_the_same_on_ray(cluster: Workers, tmp_path: Path) -> None:
    (tmp_path / "net_on_ray.py").write_text(NET)
    jobs = [*trainings(), *trainings(build(f"{tmp_path / 'net_on_ray.py'}:Net", ModelError))]
    sys.path.remove(str(tmp_path))
    (tmp_path / "net_on_ray.py").unlink()
    assert_equal(cluster.run(jobs, "on Ray"), Workers().run(jobs, "here"))


@needs_ray
def test_a_killed_worker_of_ray_is_replaced(cluster: Workers, tmp_path: Path) -> None:
    jobs = [Job(die_once, {"marker": tmp_path / "marker", "number": number}) for number in range(4)]
    found = cluster.run(jobs, "on Ray")
    assert (tmp_path / "marker").exists()
    assert_equal(found, Workers().run(jobs, "here"))


@needs_ray
@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_on_ray_reaches_the_caller(cluster: Workers, tmp_path: Path, kind: str) -> None:
    log = str(tmp_path / "log")
    good = Job(fail, {"kind": "a", "log": log})
    workers = replace(cluster, folder=tmp_path / "kept")
    workers.run([good], "a good one")
    error, message = ERRORS[kind]
    with pytest.raises(error, match=message) as caught:
        workers.run([good, Job(fail, {"kind": kind})], "a bad one")
    assert type(caught.value) is error
    assert Path(log).read_text() == "a\n"


@needs_ray
def test_workers_of_ray_do_not_contend(cluster: Workers) -> None:
    found = cluster.run([Job(about_process, {"number": number}) for number in range(4)], "on Ray")
    assert {one["threads"] for one in found} == {1}
    assert os.getpid() not in {one["pid"] for one in found}


def test_a_ray_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(__version__="2.9.3"))
    with pytest.raises(ConfigError, match=r"found Ray 2\.9\.3; expected 2\.40 or later"):
        Workers(ray="local").run(trainings(), "on Ray")


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"nutlet\[ray\]"):
        Workers(ray="local").run(trainings(), "on Ray")
    assert Workers(ray="local").run([], "nothing to do") == []
