"""The machine and the versions behind a figure: a latency without them says nothing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["cores", "environment"]

_CPUINFO = Path("/proc/cpuinfo")
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"

INT8_SETS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Instruction sets that decide how fast 8-bit integers run (x86, then Arm)."""

DOT_PRODUCT_SETS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Those which multiply and add 8-bit integers in one instruction; without them int8 gains much less over float32."""


def environment() -> dict[str, Any]:
    """Describe the machine and the packages, as plain JSON, to be kept beside every latency.

    The speed of int8 depends on ``int8_dot_product``: with VNNI (or Arm's dot product) a file of 8-bit integers
    gains far more over float32 than without. It is ``None`` where the system does not tell.

    >>> sorted(environment())
    ['cores', 'cpu', 'instruction_sets', 'int8_dot_product', 'platform', 'python', 'versions']
    """
    model, flags = _processor()
    sets = None if flags is None else [name for name in INT8_SETS if name in flags]
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": model,
        "cores": cores(),
        "instruction_sets": sets,
        "int8_dot_product": None if sets is None else any(name in sets for name in DOT_PRODUCT_SETS),
        "versions": {package: _version(package) for package in ("nutlet", "torch", "onnx", "onnxruntime")},
    }


def cores() -> int:
    """Return how many cores this process may keep busy: physical ones, within its affinity and container quota.

    Two threads of one core share its arithmetic units, so a thread per physical core is what runtimes start.
    """
    from joblib import cpu_count

    count: int = cpu_count(only_physical_cores=True)
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    if affinity is not None:
        # Where affinity or a quota binds, joblib takes the two threads of a core for two cores.
        with contextlib.suppress(OSError):
            count = min(count, len({Path(_SIBLINGS.format(cpu)).read_text() for cpu in affinity(0)}))
    return count


def _processors() -> list[dict[str, str]]:
    """Return the blocks of /proc/cpuinfo, or nothing where there is no such file."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    blocks = []
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        if fields:
            blocks.append(fields)
    return blocks


def _processor() -> tuple[str, frozenset[str] | None]:
    """Return the name of the CPU and its instruction sets (None: not known)."""
    for fields in _processors():
        flags = fields.get("flags") or fields.get("Features")
        if flags is not None:
            name = fields.get("model name") or platform.processor() or platform.machine()
            return name, frozenset(flags.split())
    return platform.processor() or platform.machine() or "unknown", None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
