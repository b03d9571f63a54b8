"""Ctrl-C and SIGTERM at any moment: one sentence, the exit code of a shell, and nothing lost that was paid for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nutlet.signals import Interrupted, deferred, interruption, raising, undeferred

SLOW = """
import os, signal, sys
import nutlet.cli
{when}
sys.argv = ["nutlet", "methods"]
nutlet.cli.main()
"""
SEND = "os.kill(os.getpid(), signal.{how})"
AT_IMPORT = """
import importlib.abc
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            {send}
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("module", ["typer", "nutlet.cli.chain", "torch", "nutlet.methods.base"])
@pytest.mark.parametrize(("how", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_while_modules_load(module: str, how: str, code: int, word: str) -> None:
    script = SLOW.format(when=AT_IMPORT.format(module=module, send=SEND.format(how=how)))
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"nutlet: {word}; run the same command again to go on from here\n"


@pytest.fixture(autouse=True)
def handlers_of_a_fresh_process() -> Iterator[None]:
    """Undo for one test what a library brought in by an earlier one handles (Ray: SIGTERM)."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(how: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), how)
    time.sleep(0.001)  # handlers run between two lines


def interrupted(block: Callable[[list[str]], None]) -> tuple[int, list[str]]:
    """Run a block that is interrupted; return its exit code and what it had done."""
    done: list[str] = []
    try:
        with raising():
            block(done)
    except Interrupted as error:
        return error.exit_code, done
    return 0, done


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_deferred_signal_waits_for_the_end_of_the_block(how: signal.Signals) -> None:
    def block(done: list[str]) -> None:
        with deferred():
            send(how)
            done.append("paid")
        done.append("went on")

    assert interrupted(block) == (128 + how, ["paid"])


def test_a_second_signal_does_not_wait() -> None:
    def block(done: list[str]) -> None:
        with deferred():
            send()
            done.append("first")
            send()
            done.append("second")

    assert interrupted(block) == (130, ["first"])


def test_a_pause_within_is_ended() -> None:
    def while_it_sleeps(done: list[str]) -> None:
        with deferred(), undeferred():
            send()
            done.append("still asleep")

    def before_it_sleeps(done: list[str]) -> None:
        with deferred():
            send()
            with undeferred():
                done.append("asleep")

    assert interrupted(while_it_sleeps) == interrupted(before_it_sleeps) == (130, [])


def test_handlers_are_put_back_and_those_of_others_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with raising(), deferred():
        pass
    assert signal.getsignal(signal.SIGTERM) is before
    ours = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with raising():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            with deferred():
                send()
    finally:
        signal.signal(signal.SIGINT, ours)


def test_an_interruption_is_found_behind_other_errors() -> None:
    try:
        try:
            raise Interrupted(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise RuntimeError("unexpected pos 64 vs 0") from error
    except RuntimeError as error:
        found = interruption(error)
    assert found is not None
    assert found.exit_code == 143


WORKERS = """
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from nutlet.jobs import Job, Workers
def slow(number):
    Path(f"started-{number}").touch()
    time.sleep(60)
    return {}
Workers(processes=2).run([Job(slow, {"number": number}) for number in range(2)], "slow")
"""


def test_ctrl_c_in_a_terminal_is_left_to_the_parent_by_workers(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKERS],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    until = time.monotonic() + 90
    while len(list(tmp_path.glob("started-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert said.count("Traceback") == 1  # that of the program, which catches nothing
    assert said.rstrip().endswith("KeyboardInterrupt")
