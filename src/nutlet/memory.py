"""Memory that is of no more use, given back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys

from torch import nn

__all__ = ["release"]

LARGE = 64 << 20
"""Bytes of weights below which copies do not matter, and looking for them would take longer than making them."""


def release(model: nn.Module) -> None:
    """Give back what discarded copies of a large ``model`` took; do nothing for others.

    Modules with hooks and parametrizations are in reference cycles, which Python frees whenever it comes to it, and
    glibc keeps freed blocks of up to 32 MiB, as weights are, for later: without this, trial copies add up.
    """
    if sum(parameter.nbytes for parameter in model.parameters()) < LARGE:
        return
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries, as musl, give back on their own
        if trim is not None:
            trim(0)
