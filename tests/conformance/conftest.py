"""The tiny models, made once."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from torch import nn

import tiny
from nutlet.data.examples import Data


@pytest.fixture(scope="session")
def _made() -> dict[str, tuple[nn.Module, Data]]:
    return {kind: tiny.tiny(kind) for kind in ("cnn", "mlp", "attention")}


@pytest.fixture
def make(_made: dict[str, tuple[nn.Module, Data]]) -> Callable[[str], tuple[nn.Module, Data]]:
    """Return a fresh copy of a tiny model, and its data."""
    return lambda kind: (copy.deepcopy(_made[kind][0]), _made[kind][1])
