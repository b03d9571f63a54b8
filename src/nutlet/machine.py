"""The machine and the versions behind a figure: a latency without them says nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["cores", "environment"]

_CPUINFO = Path("/proc/cpuinfo")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")

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
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    allowed = set(affinity(0)) if affinity is not None else set(range(os.cpu_count() or 1))
    physical = {place for cpu, place in _physical_places().items() if cpu in allowed}
    count = len(physical) or len(allowed)
    try:
        quota, period = _QUOTA.read_text().split()
        if quota != "max":
            count = min(count, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        pass  # no container, or an older kind of one
    return max(count, 1)


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


def _physical_places() -> dict[int, tuple[str, str]]:
    """Map each logical CPU to its (package, core); empty where the system does not say."""
    places = {}
    for fields in _processors():
        if "physical id" in fields and "core id" in fields and fields.get("processor", "").isdigit():
            places[int(fields["processor"])] = (fields["physical id"], fields["core id"])
    return places


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
