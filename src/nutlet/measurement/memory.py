"""Peak memory of a shipped file, in a fresh process that holds nothing but the runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nutlet.errors import ModelError
from nutlet.formats.runtime import Runtime
from nutlet.measurement import probe

__all__ = ["Memory", "peak_memory"]

_MIB = 2**20
_PATIENCE = 600.0  # seconds; a file that needs longer for one call per batch size has hung


@dataclass(frozen=True)
class Memory:
    """Peak of memory held in RAM.

    Args:
        file_mib: what loading and running the file added, in MiB.
        process_mib: the whole process, with Python, NumPy and the runtime, in MiB.
    """

    file_mib: float
    process_mib: float


def peak_memory(
    runtime: Runtime, shapes: Mapping[str, Sequence[int]], *, batches: Sequence[int] = (1, 32)
) -> Memory | None:
    """Load the file in a fresh process, run each batch size once on one thread, and return the peak of memory.

    Args:
        runtime: the file, opened (and so checked) before.
        shapes: shape of one example of each input.
        batches: examples per call.

    Returns:
        The peaks, or ``None`` on a system that does not tell them (Windows), and for a format without a bare program.

    Raises:
        ModelError: the process failed or hung.
    """
    program = runtime.format.bare
    if sys.platform == "win32" or program is None:
        return None
    wanted = {
        "runtime": str(program),
        "path": str(runtime.path.resolve()),
        "inputs": {name: (list(shape), runtime.inputs[name].dtype) for name, shape in runtime.shapes(shapes).items()},
        "texts": runtime.blank_texts(),
        "batches": list(batches),
    }
    # -P: the folder of the script is not searched for modules, or ours would shadow others of the same name.
    command = [sys.executable, "-P", str(Path(probe.__file__)), json.dumps(wanted)]
    trouble = f"measuring the peak memory of {runtime.path} failed"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{trouble}: the process ran for {_PATIENCE:.0f} s; expected one call per batch size to end by then: "
            "measure smaller batches"
        ) from error
    except OSError as error:
        raise ModelError(f"{trouble}: {error}; expected to start another Python process: allow it") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1][:300]
        raise ModelError(
            f"{trouble}: {last}; expected the file to run in a process of its own with batches {tuple(batches)}: "
            "free some memory, or measure smaller batches"
        )
    peaks = json.loads(done.stdout.splitlines()[-1])
    return Memory((peaks["after"] - peaks["before"]) / _MIB, peaks["after"] / _MIB)
