"""Compression methods, one to a file, in a folder for each family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nutlet.catalogue import build
from nutlet.methods import distillation, low_rank, pruning, quantization
from nutlet.methods.base import REGISTRY, Method
from nutlet.methods.distillation import *  # noqa: F403
from nutlet.methods.fine_tune import FineTune
from nutlet.methods.low_rank import *  # noqa: F403
from nutlet.methods.pruning import *  # noqa: F403
from nutlet.methods.quantization import *  # noqa: F403

__all__ = ["FineTune", "known_methods", "method_from_dict"]
__all__ += distillation.__all__
__all__ += low_rank.__all__
__all__ += pruning.__all__
__all__ += quantization.__all__


def known_methods() -> dict[str, type[Method]]:
    """Return every known method by name: ours, and those of installed packages (entry point ``nutlet.methods``)."""
    return REGISTRY.known()


def method_from_dict(spec: Mapping[str, Any] | str) -> Method:
    """Rebuild a method from what :meth:`nutlet.Method.to_dict` returned, or from its bare name.

    Raises:
        ConfigError: unknown method or option (the nearest name is suggested), or a bad value.
    """
    return build("method", known_methods(), spec)
