"""Answers kept on disk: nothing is paid for twice, whatever is killed, fails or is damaged."""

from __future__ import annotations

import copy
import pickle
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import endpoint_server as server
from endpoint_server import CLASSES, Server, status, victim
from nutlet.errors import BudgetError, ModelError, OracleError, StorageError
from nutlet.oracle import CachedSource, Disclosure, Endpoint, Oracle

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))


class Counting:
    """A victim in memory that remembers what it was asked."""

    def __init__(self, name: str = "counting") -> None:
        self.name = name
        self.batches: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.batches.append(x)
        return victim(x.flatten(1))

    @property
    def asked(self) -> int:
        return sum(map(len, self.batches))

    def fingerprint(self) -> str:
        return self.name * 10


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with server.serving() as state:
        yield state


def endpoint(served: Server, **options: Any) -> Endpoint:
    fixed = {"url": served.url, "classes": CLASSES, "i_own_this_endpoint": True, "batch": 8, "retries": 0}
    return Endpoint(**{**fixed, **options})


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    source = Counting()
    kept = CachedSource(source, tmp_path)
    torch.testing.assert_close(kept(X[:10]), victim(X[:10]))
    torch.testing.assert_close(kept(X[5:15]), victim(X[5:15]))  # half of them are known
    twice = torch.cat([X[15:17], X[15:17], X[:1]])
    torch.testing.assert_close(kept(twice), victim(twice))
    assert (kept.sent, source.asked, len(kept)) == (17, 17, 17)
    again = CachedSource(source, tmp_path)  # another run
    assert torch.equal(again(X[:17]), kept(X[:17]))
    assert (again.sent, source.asked, len(again)) == (0, 17, 17)


def test_answers_are_the_same_to_the_last_bit(tmp_path: Path) -> None:
    kept = CachedSource(Counting(), tmp_path)
    fresh = kept(X)
    assert torch.equal(fresh, victim(X))
    assert torch.equal(kept(X), fresh)
    assert kept(X).dtype == torch.float32


def test_a_query_counts_for_the_attack_and_is_paid_for_once(tmp_path: Path) -> None:
    kept = CachedSource(Counting(), tmp_path)
    first = Oracle(kept, budget=30)
    second = first.client("another", budget=30, answers=Disclosure("labels"))
    first.query(X[:30])
    second.query(X[:30])
    first.evaluate_uncounted(X[:35])
    assert (first.queries, second.queries, first.ledger.evaluation, kept.sent) == (30, 30, 35, 35)
    with pytest.raises(BudgetError):
        second.query(X[:1])


def test_shapes_and_sources_are_told_apart(tmp_path: Path) -> None:
    one, other = Counting("one"), Counting("other")
    kept = CachedSource(one, tmp_path)
    kept(X)
    kept(X.view(40, 2, 2))
    assert kept.sent == 80
    elsewhere = CachedSource(other, tmp_path)
    elsewhere(X)
    assert (one.asked, other.asked, elsewhere.path == kept.path) == (80, 40, False)


def test_the_name_of_the_file_stays(tmp_path: Path) -> None:
    # Whoever changes this name takes from users what they paid for.
    asked = Endpoint(url="https://models.example.org/digits", classes=10, i_own_this_endpoint=True)
    assert CachedSource(asked, tmp_path).path.name == "d723cad1d0d2cdb57fb48482.sqlite"


def test_a_function_is_told_by_its_code(tmp_path: Path) -> None:
    paths = {
        CachedSource(lambda x: x, tmp_path).path,
        CachedSource(victim, tmp_path).path,
        CachedSource(victim, tmp_path).path,
    }
    assert len(paths) == 2


def test_it_travels(tmp_path: Path) -> None:
    kept = CachedSource(victim, tmp_path)
    kept(X)
    for moved in (pickle.loads(pickle.dumps(kept)), copy.deepcopy(kept)):
        assert torch.equal(moved(X), kept(X))
        assert moved.sent == 40


def test_an_endpoint_that_fails_in_the_middle(served: Server, tmp_path: Path) -> None:
    served.deeds = [server.answer, server.answer, status(500, "out of order")]
    kept = CachedSource(endpoint(served), tmp_path)
    oracle = Oracle(kept, budget=40)
    with pytest.raises(
        OracleError, match=r"500: out of order .*; 16 answers are kept in .*sqlite: give the same command"
    ):
        oracle.query(X)
    assert (oracle.queries, kept.sent, len(kept), served.inputs) == (0, 16, 16, 24)
    torch.testing.assert_close(oracle.query(X), victim(X))
    assert (oracle.queries, kept.sent, len(kept), served.inputs) == (40, 40, 40, 48)


RUN = """
import sys
from pathlib import Path
import torch
from nutlet.oracle import Endpoint, CachedSource
endpoint = Endpoint(url=sys.argv[1], classes=3, i_own_this_endpoint=True, batch=8, retries=0)
CachedSource(endpoint, Path(sys.argv[2]))(torch.load(sys.argv[3]))
"""


def test_a_run_that_is_killed_loses_the_batch_in_flight(served: Server, tmp_path: Path) -> None:
    torch.save(X, tmp_path / "x.pt")
    process = subprocess.Popen([sys.executable, "-c", RUN, served.url, tmp_path / "kept", tmp_path / "x.pt"])

    def kills(handler: server.Handler, inputs: Tensor) -> None:
        process.kill()
        process.wait()
        handler.close_connection = True

    served.deeds = [server.answer, server.answer, server.answer, kills]
    assert process.wait(60) == -9
    kept = CachedSource(endpoint(served), tmp_path / "kept")
    assert len(kept) == 24
    torch.testing.assert_close(kept(X), victim(X))
    assert kept.sent == 16
    asked = torch.cat(served.requests)
    assert len(asked) == 48
    # Only those in flight were sent twice.
    assert torch.equal(torch.cat([asked[:24], asked[32:]]), X)
    assert torch.equal(asked[24:32], asked[32:40])


def test_a_damaged_record_is_asked_for_anew(tmp_path: Path) -> None:
    kept = CachedSource(Counting(), tmp_path)
    kept(X)
    content = bytearray(kept.path.read_bytes())
    place = content.index(victim(X)[3].numpy().tobytes())
    content[place] ^= 1
    kept.path.write_bytes(content)
    again = CachedSource(Counting(), tmp_path)
    torch.testing.assert_close(again(X), victim(X))
    assert (again.sent, len(again)) == (1, 40)
    assert torch.equal(again.source.batches[0], X[3:4])
    again(X)
    assert again.sent == 1


@pytest.mark.parametrize("damage", ["cut", "garbage", "hole"])
def test_a_damaged_file_is_left_alone_and_named(tmp_path: Path, damage: str) -> None:
    kept = CachedSource(Counting(), tmp_path)
    kept(torch.randn(400, 4))
    content = kept.path.read_bytes()
    pages = len(content) // 4096
    assert pages > 4
    damaged = {
        "cut": content[: 4096 * (pages // 2) + 100],
        "garbage": b"\x80" * 10_000,
        "hole": content[:4096] + bytes(4096) + content[8192:],
    }[damage]
    kept.path.write_bytes(damaged)
    source = Counting()
    with pytest.raises(StorageError, match=f"{kept.path.name} is damaged: .*move it away"):
        CachedSource(source, tmp_path)(X)
    assert kept.path.read_bytes() == damaged
    assert source.asked == 0


def test_a_record_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    kept = CachedSource(Counting(), tmp_path)
    kept(X)
    with closing(sqlite3.connect(kept.path)) as answers, answers:
        answers.execute("UPDATE answers SET scores = zeroblob(20000000) WHERE input = (SELECT min(input) FROM answers)")
    with pytest.raises(StorageError, match="too big"):
        kept(X)


def test_another_file_in_its_place(tmp_path: Path) -> None:
    path = CachedSource(Counting(), tmp_path).path
    path.unlink()
    with closing(sqlite3.connect(path)) as answers:
        answers.execute("CREATE TABLE answers (something TEXT)")
    with pytest.raises(StorageError, match=r"could not read or write .*no such column"):
        CachedSource(Counting(), tmp_path)(X)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not write"):
        CachedSource(Counting(), tmp_path / "file")


def test_what_is_no_answer_is_not_kept(tmp_path: Path) -> None:
    kept = CachedSource(lambda x: x * torch.nan, tmp_path)
    with pytest.raises(ModelError, match="NaN"):
        kept(X)
    assert (len(kept), kept.sent) == (0, 0)


def test_two_at_a_time_share_a_file(tmp_path: Path) -> None:
    one, other = CachedSource(Counting(), tmp_path), CachedSource(Counting(), tmp_path)
    one(X[:20])
    other(X[:30])
    one(X)
    assert (one.sent, other.sent, len(one), len(other)) == (30, 10, 40, 40)


@pytest.mark.parametrize(
    "scores",
    [b"", b"abc", "text", 3, np.full(CLASSES, np.nan, "<f4").tobytes(), np.full(CLASSES + 1, 0.2, "<f4").tobytes(),
     np.full(CLASSES, 0.9, "<f4").tobytes(), np.full(CLASSES, -1, "<f4").tobytes()],
)  # fmt: skip
def test_a_record_that_no_source_could_give_is_asked_anew(tmp_path: Path, served: Server, scores: object) -> None:
    kept = CachedSource(endpoint(served), tmp_path)
    true = kept(X[:8])
    with closing(sqlite3.connect(kept.path)) as answers, answers:
        for (key,) in answers.execute("SELECT input FROM answers LIMIT 3").fetchall():
            checksum = zlib.crc32(key + scores) if isinstance(scores, bytes) else 0
            answers.execute("UPDATE answers SET scores = ?, checksum = ? WHERE input = ?", (scores, checksum, key))
    again = CachedSource(endpoint(served), tmp_path)
    assert torch.equal(again(X[:8]), true)
    assert again.sent == 3


def test_records_of_different_lengths_are_refused(tmp_path: Path) -> None:
    kept = CachedSource(Counting(), tmp_path)
    kept(X[:8])
    with closing(sqlite3.connect(kept.path)) as answers, answers:
        (key,) = answers.execute("SELECT input FROM answers").fetchone()
        scores = np.full(CLASSES + 2, 0.1, "<f4").tobytes()
        answers.execute(
            "UPDATE answers SET scores = ?, checksum = ? WHERE input = ?", (scores, zlib.crc32(key + scores), key)
        )
    with pytest.raises(StorageError, match="answers with different numbers of classes"):
        kept(X[:8])
