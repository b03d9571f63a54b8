"""Mutated files, each read in a process of its own: no traceback, no hang, no memory without bounds, no code run.

A process that has imported everything makes a good file of each kind, and forks for each mutation of it: the child may
take 1 GiB of data more than it has at that moment (RLIMIT_DATA, which the processes that it starts inherit; its peak of
resident memory is measured too) and 20 seconds, and must end in a result or a ``NutletError`` of moderate length.

    python bench/fuzz.py all                 # 300 random and 60 structured mutations of each kind
    python bench/fuzz.py npz --random 10 --structured 10 --dry
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from fuzz_cases import CANARY, READERS, Reader, after_random, copy_of
from nutlet.errors import NutletError
from rows import Rows

GIB = 2**30
SECONDS = 20.0
LONGEST = 4000
_EXHAUSTED = ("MemoryError", "can't allocate", "bad_alloc", "bad allocation", "not enough memory")


def status(name: str) -> int:
    """Return a figure of ``/proc/self/status`` in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def mutate(rng: random.Random, content: bytes) -> bytes:
    """Return bytes with a few of them changed, cut, doubled or put in."""
    broken = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at = rng.randrange(len(broken) + 1)
        length = rng.choice([1, 1, 2, 4, 8])
        kind = rng.randrange(6)
        if kind <= 1:
            broken[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            broken[at : at + length] = rng.choice([b"\xff", b"\x00", b"\x7f"]) * length
        elif kind == 3:
            broken[at:at] = broken[at : at + rng.choice([1, 16, 4096])]
        elif kind == 4:
            del broken[at : at + rng.choice([1, 4, 64])]
        elif rng.random() < 0.3:
            del broken[at:]
    return bytes(broken)


def outcome(reader: Reader, path: Path) -> dict[str, Any]:
    """Read ``path`` and say how it ended; run in the child."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + GIB, hard))
    start = time.process_time()
    problem, refused = None, False
    try:
        reader.read(path)
    except NutletError as error:
        told, refused = str(error), True
        chain: BaseException | None = error
        while chain is not None:
            if any(word in f"{type(chain).__name__}: {chain}"[:2000] for word in _EXHAUSTED):
                problem = f"memory: {told[:200]}"
            chain = chain.__cause__ or chain.__context__
        if len(told) > LONGEST:
            problem = f"a message of {len(told):,} characters"
    except BaseException as error:
        problem = f"{type(error).__name__}: {str(error)[:200]}"
        if os.environ.get("FUZZ_TRACE"):
            import traceback

            traceback.print_exc()
    peak = status("VmHWM") - before
    if peak > GIB:
        problem = f"{peak / GIB:.2f} GiB"
    sys.stdout.flush()
    sys.stderr.flush()
    if "Traceback" in Path("said").read_text(errors="replace"):
        problem = "a traceback on the terminal"
    if Path(CANARY).exists():
        problem = "code was run"
    return {"problem": problem, "refused": refused, "mib": peak / 2**20, "seconds": time.process_time() - start}


def case(reader: Reader, good: Path, root: Path, seed: int, *, structured: bool | None) -> dict[str, Any]:
    """Make and read one mutation, or with ``structured=None`` the good file itself, in a child process."""
    with tempfile.TemporaryDirectory() as scratch:
        path = copy_of(good, root, Path(scratch))
        rng = random.Random(seed)
        if structured is None:
            pass
        elif structured:
            reader.change(rng, path)
        else:
            path.write_bytes(mutate(rng, path.read_bytes()))
            after_random(reader, path)
        receiver, sender = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.chdir(scratch)
            said = os.open("said", os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.environ["NUTLET_CACHE"] = str(Path(scratch) / "cache")
            os.write(sender, json.dumps(outcome(reader, path)).encode())
            os._exit(0)
        os.close(sender)
        # The machine may be shared: what is judged is the time of the processor, this is for what sleeps.
        ready, _, _ = select.select([receiver], [], [], 4 * SECONDS)
        content = os.read(receiver, 65_536) if ready else b""
        os.close(receiver)
        if not content:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        _, code, used = os.wait4(pid, 0)
        spent = used.ru_utime + used.ru_stime
        found: dict[str, Any] = (
            json.loads(content)
            if content
            else {"problem": "hang" if not ready else f"ended with {code}", "mib": 0, "seconds": spent}
        )
        found["seconds"] = max(found["seconds"], spent)
        if found["seconds"] > SECONDS:
            found["problem"] = f"{found['seconds']:.0f} s"
        return found


def fuzz(reader: Reader, count: int, structured: int, *, seed: int, dry: bool) -> int:
    """Try so many mutations of one kind of file, and return how many failed."""
    rows = Rows("fuzz", reader.name, [seed])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["NUTLET_CACHE"] = str(root / "cache")
        good = reader.make(root)
        whole = case(reader, good, root, 0, structured=None)
        assert whole["problem"] is None, f"the good {reader.name} is not read: {whole}"
        assert not whole["refused"], f"the good {reader.name} is refused"
        problems: Counter[str] = Counter()
        refused = 0
        mib = seconds = 0.0
        for number in range(count + structured):
            found = case(reader, good, root, seed * 100_000 + number, structured=number >= count)
            mib, seconds = max(mib, found["mib"]), max(seconds, found["seconds"])
            refused += found.get("refused", False)
            if found["problem"]:
                problems[found["problem"]] += 1
                print(f"  {reader.name} {number}: {found['problem']}", flush=True)
    failures = sum(problems.values())
    rows.add("tried", count + structured, "files")
    rows.add("failures", failures, "files", 0)
    rows.add("refused", refused, "files")
    rows.add("peak", mib, "MiB above the process before", 1024)
    rows.add("slowest", seconds, "s of processor time", SECONDS)
    if not dry:
        rows.write()
    figures = f"{count + structured} tried, {failures} failed, {refused} refused, {mib:.0f} MiB, {seconds:.1f} s"
    print(f"{reader.name}: {figures}", flush=True)
    return failures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("reader", help="all, or the names of readers, with commas")
    parser.add_argument("--random", type=int, default=300)
    parser.add_argument("--structured", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="write no rows")
    wanted = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = [reader.name for reader in READERS] if wanted.reader == "all" else wanted.reader.split(",")
    failures = 0
    for reader in READERS:
        if reader.name in names:
            failures += fuzz(reader, wanted.random, wanted.structured, seed=wanted.seed, dry=wanted.dry)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
