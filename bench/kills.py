"""Kill ``compress`` and ``audit`` again and again, run them to the end, and compare: ``bench/kills.py [COUNT [WHAT]]``.

At random moments (KILL, TERM, INT in turn, seeded) and at every write: the run is started with a module that replaces
``os.fsync`` and ``os.replace`` in that process by ones that kill it at the n-th call, before, or after the call.
After a series of kills the command runs to its end; its ``model.onnx`` (of an audit: its claims) must be that of a run
that nobody disturbed, no input may have been asked about twice, and no file begun by a killed run may be left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import endpoint_server
from endpoint_server import Handler, Server
from job import Job
from rows import Rows

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
RECIPE = "steps: [{PruneChannels: {ratio: 0.25}}, {FineTune: {epochs: 4, batch_size: 32}}, Quantize]"
PROTOCOL = ("--queries", "16,48", "--seeds", "1", "--attacks", "Knockoff", "--effort", "0.1")
WRITES = """
import os, signal
left = [int(os.environ["KILLED_AT"])]
def dying(call, after):
    def run(*arguments, **options):
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*arguments, **options)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return run
os.fsync, os.replace = dying(os.fsync, False), dying(os.replace, True)
"""
"""Between the writing of a file aside and its renaming, and after that."""


def classify(handler: Handler, inputs: object) -> None:
    """Answer with probabilities for an image ``(1, 8, 8)``: how bright the rows are that tell a class."""
    rows = inputs[:, 0, [0, 2, 4]].mean(2)  # type: ignore[index]
    handler.give(json.dumps({"probabilities": (8 * rows).softmax(1).tolist()}).encode())


@dataclass
class Subject:
    """A command, a fresh folder for each series of kills, and what its run to the end has to give."""

    name: str
    command: Callable[[Path], list[str]]
    result: Callable[[Path], bytes]
    server: Server | None = None
    seconds: float = 0.0
    expected: bytes = b""
    environment: dict[str, str] = field(default_factory=lambda: {**os.environ, "OMP_NUM_THREADS": "1"})

    def start(self, folder: Path, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "nutlet", *self.command(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment, **more},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )

    def to_the_end(self, folder: Path) -> bytes:
        if self.server is not None:
            self.server.deeds = [classify] * 10_000
        began = time.perf_counter()
        process = self.start(folder)
        _, said = process.communicate(timeout=600)
        if process.returncode:
            raise RuntimeError(f"{self.name} ended with {process.returncode}: {said}")
        self.seconds = self.seconds or time.perf_counter() - began
        return self.result(folder)


@dataclass
class Tally:
    """What a bench of kills comes to."""

    tried: int = 0
    series: int = 0
    same: int = 0
    asked_twice: int = 0
    parts_left: int = 0
    traces: int = 0
    wrong_codes: int = 0

    def ended(self, process: subprocess.Popen[str], how: signal.Signals) -> bool:
        """Count one kill; False where the process had finished before it."""
        _, said = process.communicate(timeout=120)
        if process.returncode == 0:
            return False
        self.tried += 1
        self.traces += "Traceback" in said
        self.wrong_codes += process.returncode not in (-how, 128 + how)
        return True

    def finished(self, subject: Subject, folder: Path) -> None:
        """Run to the end, and compare."""
        self.series += 1
        self.same += subject.to_the_end(folder) == subject.expected
        self.parts_left += sum(path.name.endswith(".part") for path in folder.rglob("*"))
        if subject.server is not None:
            asked = Counter(row.numpy().tobytes() for request in subject.server.requests for row in request)
            self.asked_twice += sum(count - 1 for count in asked.values())


@contextmanager
def subjects(folder: Path, only: tuple[str, ...] = ("compress", "audit")) -> Iterator[list[Subject]]:
    """Give the commands on one tiny model, each with what an undisturbed run makes."""
    job = Job(folder)
    arguments = job.arguments(recipe=RECIPE)
    place = arguments.index(str(job.out))

    def compress(out: Path) -> list[str]:
        return [*arguments[:place], str(out), *arguments[place + 1 :]]

    with endpoint_server.serving() as server:
        config = folder / "endpoint.yaml"
        config.write_text("classes: 3\nbatch: 8\nretries: 0\n")

        def audit(out: Path) -> list[str]:
            fixed = ["audit", server.url, "-d", str(folder / "data.npz"), "-o", str(out), *PROTOCOL]
            return [*fixed, "--endpoint-config", str(config), "--i-own-this-endpoint"]

        both = [
            Subject("compress", compress, lambda out: (out / "model.onnx").read_bytes()),
            Subject("audit", audit, _claims, server),
        ]
        wanted = [subject for subject in both if subject.name in only]
        for subject in wanted:
            subject.environment["no_proxy"] = "*"
            subject.expected = subject.to_the_end(folder / f"undisturbed-{subject.name}")
        yield wanted


def _claims(out: Path) -> bytes:
    audit = json.loads((out / "audit.json").read_text())
    return json.dumps([audit["claims"], audit["protocol"]], sort_keys=True).encode()


def at_random(subject: Subject, folder: Path, kills: int, seed: int, in_a_row: int = 4) -> Tally:
    """Kill at moments drawn over the length of a run, so many times before each run to the end."""
    draw, tally = random.Random(seed), Tally()
    while tally.tried < kills:
        out = folder / f"{subject.name}-random-{tally.series}"
        _begin(subject)
        for _ in range(min(in_a_row, kills - tally.tried)):
            how = SIGNALS[tally.tried % len(SIGNALS)]
            process = subject.start(out)
            time.sleep(draw.uniform(0.1, 0.95) * subject.seconds)
            process.send_signal(how)
            if not tally.ended(process, how):
                # The machine has become faster than when the undisturbed run was timed.
                subject.seconds *= 0.8
                break
        tally.finished(subject, out)
    return tally


def at_writes(subject: Subject, folder: Path, kills: int, in_a_row: int = 5) -> Tally:
    """Kill at the first write, at the second, and so on, in one folder until a run has fewer writes than that."""
    (folder / "dying").mkdir(exist_ok=True)
    (folder / "dying" / "sitecustomize.py").write_text(WRITES)
    path = os.pathsep.join(filter(None, [str(folder / "dying"), subject.environment.get("PYTHONPATH")]))
    tally, number = Tally(), 0
    while tally.tried < kills:
        out = folder / f"{subject.name}-writes-{tally.series}"
        _begin(subject)
        for _ in range(min(in_a_row, kills - tally.tried)):
            number += 1
            process = subject.start(out, PYTHONPATH=path, KILLED_AT=str(number))
            if not tally.ended(process, signal.SIGKILL):
                number = 0
                break
        tally.finished(subject, out)
    return tally


def _begin(subject: Subject) -> None:
    if subject.server is not None:
        subject.server.requests.clear()
        subject.server.deeds = [classify] * 10_000


def write(rows: Rows, tally: Tally) -> None:
    rows.add("tried", tally.tried, "kills")
    rows.add("same_file", tally.same / tally.series, "share of runs to the end", 1)
    rows.add("asked_twice", tally.asked_twice, "inputs", 0)
    rows.add("parts_left", tally.parts_left, "files", 0)
    rows.add("traces", tally.traces, "kills", 0)
    rows.add("wrong_exit_codes", tally.wrong_codes, "kills", 0)
    rows.write()


def main() -> None:
    kills, only = int(sys.argv[1]) if len(sys.argv) > 1 else 20, tuple(sys.argv[2:]) or ("compress", "audit")
    with tempfile.TemporaryDirectory() as name, subjects(Path(name), only) as both:
        for subject in both:
            for case, run in (
                (f"{subject.name}-random", lambda s=subject: at_random(s, Path(name), kills, seed=0)),
                (f"{subject.name}-writes", lambda s=subject: at_writes(s, Path(name), 13)),
            ):
                rows, tally = Rows("kills", case, [0]), run()
                print(case, tally, flush=True)
                write(rows, tally)


if __name__ == "__main__":
    main()
