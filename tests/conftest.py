"""What tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["onnx_files"]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets and trained models; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("NUTLET_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: set NUTLET_DATA to the folder that holds them")
    return folder.resolve()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("NUTLET_CACHE", str(folder))
    return folder
