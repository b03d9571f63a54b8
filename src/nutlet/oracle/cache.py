"""Answers kept on disk, so that no input is ever paid for twice: by no budget, seed, attack or run."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nutlet.content_hash import fingerprint
from nutlet.errors import OracleError, StorageError, first_line
from nutlet.locks import exclusive
from nutlet.oracle.endpoint import Endpoint
from nutlet.oracle.oracle import Source, checked
from nutlet.signals import deferred
from nutlet.storage import digest, prepare_folder

__all__ = ["CachedSource"]

_BATCH = 256
_LONGEST = 2**24
"""Bytes that one record may have."""

_Known = dict[bytes, Tensor]
"""Answers by the hash of their inputs."""


class CachedSource:
    """A victim that is asked about each input once; its answers are kept in a file of SQLite.

    The file is named after the source, so that several can share a folder. Answers are written after each batch that is
    sent, all of them or none, before anybody sees them: a run that is killed loses at most the batch in flight, one
    that is interrupted (Ctrl-C, SIGTERM) waits for it. Threads and processes that ask about one input at a time wait
    for each other: it is paid for once. Each record has a checksum; one that is damaged is asked for anew. A damaged
    file is not touched.

    Args:
        source: the victim; an input has one answer, whenever it is asked about.
        folder: where the file lies.

    Attributes:
        path: of the file.
        sent: inputs that went to the source, in the life of this object: those to be paid for.

    Raises:
        StorageError: the folder cannot be written, or the file in it is damaged.
    """

    def __init__(self, source: Source, folder: Path | str) -> None:
        self.source = source
        self.path = Path(folder) / f"{self.fingerprint()[:24]}.sqlite"
        self.sent = 0
        self._batch = source.per_request if isinstance(source, Endpoint) else _BATCH
        prepare_folder(Path(folder))
        with self._opened() as answers:
            answers.execute(
                "CREATE TABLE IF NOT EXISTS answers "
                "(input BLOB PRIMARY KEY, scores BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID"
            )
            (state,) = answers.execute("PRAGMA quick_check(1)").fetchone()
            if state != "ok":
                raise sqlite3.DatabaseError(state)

    def __len__(self) -> int:
        """Return how many answers are kept."""
        with self._opened() as answers:
            return int(answers.execute("SELECT count(*) FROM answers").fetchone()[0])

    def __call__(self, x: Tensor) -> Tensor:
        """Return the answers ``(B, classes)`` to ``x`` ``(B, ...)``, and send on only what nobody asked before.

        Raises:
            OracleError: the source does not answer; what it did answer is kept.
            StorageError: the file is damaged, or cannot be written.
        """
        x = x.detach().float().cpu().contiguous()
        keys = [bytes.fromhex(digest(repr(tuple(row.shape)), row.numpy().tobytes())) for row in x]
        with self._opened() as answers:
            known = self._known(answers, keys)
            missing = sorted({key: index for index, key in enumerate(keys) if key not in known}.values())
            for start in range(0, len(missing), self._batch):
                part = missing[start : start + self._batch]
                known |= self._pay(answers, {keys[index]: x[index] for index in part})
        if len({len(scores) for scores in known.values()}) > 1:
            raise StorageError(
                f"{self.path} holds answers with different numbers of classes; expected one number: it was changed, or "
                "another source answered. Move it away, and pay for them again"
            )
        return torch.stack([known[key] for key in keys])

    def _pay(self, answers: sqlite3.Connection, inputs: dict[bytes, Tensor]) -> _Known:
        """Return the answers to one batch: those that somebody paid for while we waited, and what is to be paid now."""
        with exclusive(self.path):
            known = self._known(answers, inputs)
            left = {key: x for key, x in inputs.items() if key not in known}
            if left:
                with deferred():
                    fresh = dict(zip(left, self._ask(torch.stack(list(left.values()))), strict=True))
                    _write(answers, fresh)
                    self.sent += len(fresh)
                known |= fresh
        return known

    def _known(self, answers: sqlite3.Connection, keys: Iterable[bytes]) -> _Known:
        """Return those answers that are kept, whole, and such as the source could give."""
        read = _read(answers, keys)
        return {key: scores for key, scores in read.items() if self._could_answer(scores)}

    def _could_answer(self, scores: Tensor) -> bool:
        """Whether the source could have given these scores: who changes a record can put its checksum right."""
        if bool((scores.isnan() | scores.isposinf()).any()) or not len(scores):
            return False
        if not isinstance(self.source, Endpoint):
            return True
        probabilities = abs(float(scores.sum()) - 1) <= 1e-3 and bool((scores >= -1e-6).all())
        return len(scores) == self.source.classes and (self.source.outputs == "logits" or probabilities)

    def _ask(self, x: Tensor) -> Tensor:
        try:
            rows = checked(self.source(x), len(x)).detach().float().cpu()
        except OracleError as error:
            raise OracleError(
                f"{error}; {len(self):,} answers are kept in {self.path}: give the same command again, and it goes on "
                "from there without asking for them again"
            ) from error
        return rows

    def fingerprint(self) -> str:
        """Return the hash of the source: whether answers are kept changes none of them."""
        own = getattr(self.source, "fingerprint", None)
        return str(own()) if callable(own) else fingerprint(self.source)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Open the file for a while: nothing is held that could not be copied, sent to a worker, or left open."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as answers:
                answers.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
                yield answers
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"could not read or write {self.path}: {first_line(error)}; expected a file that can grow, on a disk "
                "that can lock it: free some space, or choose another folder"
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # text that is none, in a table or a message
            raise StorageError(
                f"{self.path} is damaged: {first_line(error)}; expected the answers that were kept there: get back "
                "what is left with `sqlite3 FILE .recover`, or move it away and pay for them again"
            ) from error


def _read(answers: sqlite3.Connection, keys: Iterable[bytes]) -> _Known:
    """Return those answers that are kept, and whole."""
    known = {}
    for key in set(keys):
        found = answers.execute("SELECT scores, checksum FROM answers WHERE input = ?", (key,)).fetchone()
        scores = None if found is None else _scores(key, *found)
        if scores is not None:
            known[key] = scores
    return known


def _scores(key: bytes, content: object, checksum: object) -> Tensor | None:
    """Return the scores of one record, or None where it is damaged: SQLite holds any type in any column."""
    if not isinstance(content, bytes) or len(content) % 4 or checksum != zlib.crc32(key + content):
        return None
    return torch.from_numpy(np.frombuffer(content, "<f4").astype(np.float32))


def _write(answers: sqlite3.Connection, fresh: _Known) -> None:
    records = [(key, row.numpy().astype("<f4").tobytes()) for key, row in fresh.items()]
    with answers:
        answers.executemany(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)",
            [(key, scores, zlib.crc32(key + scores)) for key, scores in records],
        )
