"""The bench of kills, in small: killed at the first writes and once more, then run to the end."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCH)])
    spec = importlib.util.spec_from_file_location("bench_kills", BENCH / "kills.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_kills", module)  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def test_a_run_killed_at_its_writes_ends_the_same(kills: ModuleType, tmp_path: Path) -> None:
    with kills.subjects(tmp_path, only=("compress",)) as (compress,):
        tally = kills.at_writes(compress, tmp_path, 2)
    assert tally == kills.Tally(tried=2, series=1, same=1)
