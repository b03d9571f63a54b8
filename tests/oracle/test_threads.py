"""Eight threads on one victim: no more answers than the budget, no input paid for twice, and sums that are right."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from endpoint_server import serving, victim
from nutlet.errors import BudgetError, ModelError
from nutlet.oracle import CachedSource, Endpoint, Oracle

X = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
THREADS = 8


class Slow:
    """A victim that takes its time, so that threads meet, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: Counter[bytes] = Counter()
        self._turn = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        time.sleep(0.002)
        with self._turn:
            self.asked.update(row.numpy().tobytes() for row in x)
        return victim(x)

    def fingerprint(self) -> str:
        return "slow" * 10


def together(work: Callable[[int], object]) -> list[object]:
    """Do it in eight threads that begin at the same moment."""
    gate = threading.Barrier(THREADS)

    def run(number: int) -> object:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


@pytest.mark.parametrize("size", [1, 7])
def test_never_more_answers_than_the_budget(size: int) -> None:
    oracle = Oracle(Slow(), budget=100)
    answered: list[int] = []

    def spend(number: int) -> None:
        for start in range(0, 50 * size, size):
            try:
                answered.append(len(oracle.query(X[start : start + size])))
            except BudgetError:
                return

    together(spend)
    assert sum(answered) == oracle.queries == oracle.ledger.queries <= 100
    assert 100 - size < oracle.queries
    assert oracle.left == 100 - oracle.queries


def test_clients_and_judges_are_counted_to_the_last() -> None:
    oracle = Oracle(Slow(), budget=None)

    def work(number: int) -> None:
        mine = oracle.client(f"client {number % 2}")
        for start in range(0, 40, 4):
            mine.query(X[start : start + 4])
            oracle.evaluate_uncounted(X[start : start + 2])

    together(work)
    assert oracle.ledger.clients == {"client 0": 160, "client 1": 160}
    assert (oracle.ledger.queries, oracle.ledger.evaluation) == (320, 160)


def test_what_fails_on_the_way_is_given_back() -> None:
    failing = threading.Event()

    def source(x: Tensor) -> Tensor:
        time.sleep(0.002)
        return victim(x) if failing.is_set() else victim(x) * torch.nan

    oracle = Oracle(source, budget=16)

    def work(number: int) -> None:
        with pytest.raises(ModelError):
            oracle.query(X[:2])

    together(work)
    failing.set()
    assert oracle.queries == 0
    together(lambda number: oracle.query(X[:2]))
    assert (oracle.queries, oracle.left) == (16, 0)


@pytest.mark.parametrize("several", [False, True], ids=["one object", "an object each"])
def test_each_input_is_paid_for_once(tmp_path: Path, several: bool) -> None:
    source = Slow()
    one = CachedSource(source, tmp_path)
    used = [CachedSource(source, tmp_path) if several else one for _ in range(THREADS)]

    def work(number: int) -> None:
        order = torch.randperm(len(X), generator=torch.Generator().manual_seed(number))
        for part in order.split(50):
            torch.testing.assert_close(used[number](X[part]), victim(X[part]))

    together(work)
    assert set(source.asked.values()) == {1}
    assert len(source.asked) == len(X) == len(one) == sum({id(kept): kept.sent for kept in used}.values())


def test_each_input_of_an_endpoint_is_paid_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as served:
        kept = CachedSource(Endpoint(url=served.url, classes=3, i_own_this_endpoint=True, batch=16), tmp_path)
        oracle = Oracle(kept, budget=8 * 64)
        together(lambda number: oracle.query(X[:64]))
        assert (served.inputs, kept.sent, oracle.queries) == (64, 64, 512)


ASK = """
import sys, time
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[3])
from nutlet.oracle import CachedSource

class Logged:
    def fingerprint(self):
        return "logged" * 10
    def __call__(self, x):
        time.sleep(0.05)
        with open(sys.argv[1], "a") as log:
            log.write("".join(f"{row.item()}\\n" for row in x[:, 0]))
        return torch.softmax(x, 1)

kept = CachedSource(Logged(), sys.argv[2])
Path(sys.argv[1] + ".ready").touch()
for part in torch.arange(80.0).view(-1, 2).split(5):
    kept(part)
"""


def test_each_input_is_paid_for_once_between_processes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", ASK, log, tmp_path / "kept", Path(__file__).parent]
    running = [subprocess.Popen([str(part) for part in command]) for _ in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    assert sorted(map(float, log.read_text().split())) == [float(n) for n in range(0, 80, 2)]


def test_a_module_keeps_its_mode_between_threads() -> None:
    module = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 3)).train()
    oracle = Oracle(module_source(module))
    expected = oracle.query(X[:50])
    found = together(lambda number: [oracle.query(X[:50]) for _ in range(20)])
    assert all(torch.equal(answers, expected) for each in found for answers in each)  # type: ignore[attr-defined]
    assert module.training


def module_source(module: nn.Module) -> Callable[[Tensor], Tensor]:
    from nutlet.oracle import ModuleSource

    return ModuleSource(module)
