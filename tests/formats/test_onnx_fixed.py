"""Files for phones: one size of batch, and ONNX Runtime's converter to its mobile format takes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

import nutlet as nl
import tiny
from nutlet.cli import app


def answers(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    return np.asarray(found)


@pytest.mark.parametrize(("kind", "packed"), [("cnn", True), ("cnn", False), ("attention", True)])
def test_the_mobile_format_answers_as_the_file_does(kind: str, packed: bool, tmp_path: Path) -> None:
    model, data = tiny.tiny(kind)
    small = nl.compress(model, [nl.Quantize()], data)
    file = small.export(tmp_path / "model.onnx", packed=packed)
    (tmp_path / "phone").mkdir()
    fixed = nl.fix_batch(file, tmp_path / "phone" / "phone.onnx")
    # Both styles, Fixed and Runtime: that is the tool's default.
    command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(fixed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = sorted(fixed.parent.glob("*.ort"))
    assert [path.name for path in made] == ["phone.ort", "phone.with_runtime_opt.ort"]
    x = data.calibration.batch([0])[0].numpy()
    for path in (fixed, *made):
        assert np.array_equal(answers(path, x), answers(file, x)), path.name


def test_shapes_are_fixed_and_the_file_is_as_small(tmp_path: Path) -> None:
    model, data = tiny.tiny("cnn")
    file = nl.compress(model, [nl.Quantize()], data).export(tmp_path / "model.onnx")
    result = CliRunner().invoke(app, ["fix-batch", str(file), "--out", str(tmp_path / "four.onnx"), "--batch", "4"])
    assert result.exit_code == 0, result.output
    assert "batches of 4" in result.output
    graph = onnx.load(tmp_path / "four.onnx").graph
    shapes = [[size.dim_value for size in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert shapes == [[4, 3, 8, 8], [4, 4]]
    channels = 8 * 6  # a scale and a code instead of a value, and no more
    assert (tmp_path / "four.onnx").stat().st_size < file.stat().st_size + 4 * channels + 1000


def test_what_cannot_be_fixed_is_refused(tmp_path: Path) -> None:
    model, _ = tiny.tiny("mlp")
    file = nl.export_onnx(model, tmp_path / "model.onnx", tiny.tiny("mlp")[1].calibration.batch([0, 1])[0])
    nl.fix_batch(file, file, 2)
    with pytest.raises(nl.ExportError, match="for batches of 2; expected a file with a free batch"):
        nl.fix_batch(file, tmp_path / "other.onnx", 3)
    with pytest.raises(nl.ExportError, match="batch is 0; expected 1 or more"):
        nl.fix_batch(file, tmp_path / "other.onnx", 0)
