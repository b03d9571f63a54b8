"""How inputs are prepared stands in the shipped file, where it is known, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import nutlet as nl


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = np.random.default_rng(0).integers(0, 256, (80, 1, 4, 4)).astype(np.uint8)
    y = np.arange(80) % 2
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    data = nl.split(nl.Examples.from_arrays(x, y, mean=(0.5,), std=(0.25,)), calibration=16)
    out = tmp_path_factory.mktemp("shipped")
    nl.ship(nl.compress(model, [nl.Quantize()], data), model, data, out, seconds=0.01)
    return out


@pytest.mark.parametrize("name", ["model.onnx", "original.onnx"])
def test_both_files_say_how_inputs_are_prepared(shipped: Path, name: str) -> None:
    told = {"layout": "NCHW", "scale": 1 / 255, "mean": [0.5], "std": [0.25]}
    assert nl.described(shipped / name) == told
    session = onnxruntime.InferenceSession(str(shipped / name), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["mean"] == "[0.5]"
    assert {entry.key for entry in onnx.load(shipped / name).metadata_props} == set(told)


def test_class_names_are_added_and_stay_in_a_file_for_phones(shipped: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes((shipped / "model.onnx").read_bytes())
    nl.describe(file, classes=["no", "yes"])
    fixed = nl.fix_batch(file, tmp_path / "phone.onnx")
    assert nl.described(fixed)["classes"] == ["no", "yes"]
    assert nl.described(fixed)["mean"] == [0.5]


def test_a_file_from_elsewhere_is_not_believed(shipped: Path, tmp_path: Path) -> None:
    proto = onnx.load(shipped / "model.onnx")
    onnx.helper.set_model_props(proto, {"mean": "[" * 100_000, "author": "somebody"})
    onnx.save(proto, tmp_path / "model.onnx")
    assert nl.described(tmp_path / "model.onnx") == {}
    with pytest.raises(nl.ConfigError, match="mean has 1 channels, std 2"):
        nl.describe(shipped / "model.onnx", mean=[0.5], std=[0.2, 0.2])
