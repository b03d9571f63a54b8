"""A graph of unknown origin is first opened and run in a process of its own, limited in memory and time.

What a graph asks for shows only when it runs: a file of a few kilobytes can hold a loop of 2^62 steps, or a constant of
a terabyte. So the bytes go to :mod:`nutlet.formats.onnx.attempt`, and only what that process got through is opened
here. It says no more than that: what else is wrong with a file is found and reported where it is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nutlet.errors import ConfigError, ModelError, shown

__all__ = ["MEMORY", "SECONDS", "Trials", "trust"]

MEMORY = "NUTLET_TRIAL_MEMORY"
"""Environment variable: MiB that a trial may take."""
SECONDS = "NUTLET_TRIAL_SECONDS"
"""Environment variable: seconds of processor time that a trial may take."""

_MIB = 2**20
_LEAST_MEMORY = 1024 * _MIB
_PER_BYTE = 32
_LEAST_SECONDS = 10.0
_BYTES_PER_SECOND = 20e6
_WALL = 6
"""How much longer than its processor time a trial may take, on a machine that others use too."""

Shapes = dict[str, tuple[int, ...]]
"""Shapes of the inputs by name, batch first."""

_trusted: set[bytes] = set()
_passed: dict[bytes, Trials] = {}


def trust(content: bytes) -> None:
    """Let a file that this process wrote itself be opened without a trial."""
    _trusted.add(_key(content))


class Trials:
    """What is known of one file: for which inputs it ran in a process of its own.

    Args:
        content: the file.
        path: for messages.

    Raises:
        ModelError: the file takes too much memory or time to open, or to run on one row.
        ConfigError: a limit in the environment is no positive number.
    """

    def __init__(self, content: bytes, path: Path) -> None:
        self.content, self.path = content, path
        self.trusted = _key(content) in _trusted
        self.ran: list[Shapes] = []
        self.seconds = 0.0
        if not self.trusted:
            found = self._attempt(None)
            shapes = found.get("ran")
            if shapes is not None:
                self.ran.append({name: tuple(shape) for name, shape in shapes.items()})
                self.seconds = float(found["seconds"])

    @staticmethod
    def of(content: bytes, path: Path) -> Trials:
        """Return the trials of ``content``; a file is opened once, however often it is read."""
        key = _key(content)
        if key not in _passed:
            _passed[key] = Trials(content, path)
        return _passed[key]

    def check(self, shapes: Shapes) -> None:
        """Try the file on inputs of these shapes, batch first, unless some as large were tried.

        Raises:
            ModelError: it takes too much memory or time.
        """
        if self.trusted or any(_covers(tried, shapes) for tried in self.ran):
            return
        self._attempt(shapes)
        self.ran.append(shapes)

    def _attempt(self, shapes: Shapes | None) -> dict[str, Any]:
        # Honest work grows with the rows; four times as much is let pass.
        seconds = _limit(SECONDS, _LEAST_SECONDS + len(self.content) / _BYTES_PER_SECOND)
        seconds += 4 * self.seconds * (next(iter(shapes.values()))[0] if shapes else 0)
        memory = int(_limit(MEMORY, min(_LEAST_MEMORY + _PER_BYTE * len(self.content), _machine() * 3 / 4) / _MIB))
        wanted = {"shapes": shapes, "memory": memory * _MIB, "seconds": seconds}
        # -P: the folder of the script is not searched for modules, or ours would shadow others of the same name.
        command = [sys.executable, "-P", str(Path(__file__).with_name("attempt.py")), json.dumps(wanted)]
        for_what = f"an input of shape {', '.join(map(str, shapes.values()))}" if shapes else "one row"
        try:
            done = subprocess.run(
                command, input=self.content, capture_output=True, timeout=_WALL * seconds, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise self._refusal(f"more than {seconds:.0f} s", for_what, SECONDS, 2 * seconds) from error
        except OSError as error:
            raise ModelError(f"{self.path} could not be tried: {error}; expected to start a Python process") from error
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            if not found["exhausted"]:
                return found
        elif done.returncode == -_SIGXCPU:
            raise self._refusal(f"more than {seconds:.0f} s", for_what, SECONDS, 2 * seconds)
        elif done.returncode > 0:
            raise ModelError(f"{self.path} could not be tried: {shown(done.stderr[-300:], 320)}; expected it to run")
        raise self._refusal(f"more than {memory:,} MiB, or ends the process", for_what, MEMORY, 2 * memory)

    def _refusal(self, took: str, for_what: str, variable: str, more: float) -> ModelError:
        return ModelError(
            f"{self.path} takes {took} to open and to run on {for_what}; expected less of a file of "
            f"{len(self.content):,} bytes: if you trust it, allow more with {variable}={more:.0f}"
        )


_SIGXCPU = 24


def _covers(tried: Shapes, wanted: Shapes) -> bool:
    """Whether as many rows of the same shapes were tried."""
    return tried.keys() == wanted.keys() and all(
        wanted[name][0] <= shape[0] and wanted[name][1:] == shape[1:] for name, shape in tried.items()
    )


def _key(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _limit(variable: str, default: float) -> float:
    given = os.environ.get(variable)
    if given is None:
        return default
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ConfigError(f"the environment variable {variable} is {shown(given)}; expected a positive number")
    return value


def _machine() -> int:
    """Return the bytes of memory that this machine has, or a great many where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**60
