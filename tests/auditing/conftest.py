"""A real audit, as small as can be, for every test that looks at what audits hold."""

from __future__ import annotations

from pathlib import Path

import pytest

import nutlet as nl
import tiny
from nutlet.data.examples import Data


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Data]:
    folder = tmp_path_factory.mktemp("shipped")
    model, data = tiny.tiny("mlp")
    small = nl.compress(model, ["Quantize"], data)
    return small.export(folder / "model.onnx"), nl.export_onnx(model, folder / "original.onnx", small.example), data
