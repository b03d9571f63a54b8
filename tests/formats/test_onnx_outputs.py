"""Files that give more than scores, or too little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import nutlet as nl
from nutlet.data.examples import Examples
from nutlet.errors import ConfigError, ModelError
from nutlet.formats import Runtime
from nutlet.formats.onnx.reader import load_onnx
from onnx_files import Save

Linear = Callable[..., onnx.ModelProto]
QUICK = {"seconds": 0.01, "threads": (1,)}


def with_output(model: onnx.ModelProto, node: onnx.NodeProto, kind: onnx.ValueInfoProto, to: Path) -> Path:
    """Put one more output before the scores."""
    model.graph.node.append(node)
    model.graph.output.insert(0, kind)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    to.write_bytes(model.SerializeToString())
    return to


def test_a_label_beside_the_scores(linear: Linear, examples: Examples, tmp_path: Path) -> None:
    label = helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])
    node = helper.make_node("ArgMax", ["y"], ["label"], axis=1, keepdims=0)
    path = with_output(linear(np.eye(4)), node, label, tmp_path / "two.onnx")
    found = nl.measure(path, examples, batches=(1,), **QUICK)  # type: ignore[arg-type]
    assert found.compressed.accuracy == 1.0
    x = examples.batch(slice(0, 4))[0]
    assert torch.equal(load_onnx(path, output="y")(x), torch.from_numpy(Runtime(path).run(x.numpy())))


def test_two_that_may_be_the_scores_are_told_apart_by_name(linear: Linear, examples: Examples, tmp_path: Path) -> None:
    other = helper.make_tensor_value_info("wrong", TensorProto.FLOAT, ["N", 4])
    path = with_output(linear(np.eye(4)), helper.make_node("Neg", ["y"], ["wrong"]), other, tmp_path / "two.onnx")
    with pytest.raises(ModelError, match=r"'wrong': float32.*--output"):
        nl.measure(path, examples)
    found = [nl.measure(path, examples, output=name, batches=(1,), **QUICK) for name in ("y", "wrong")]  # type: ignore[arg-type]
    assert [figures.compressed.accuracy for figures in found] == [1.0, 0.0]
    with pytest.raises(ConfigError, match=r"no output 'wrnog'; did you mean 'wrong'"):
        nl.measure(path, examples, output="wrnog")


def test_a_map_from_each_class_to_its_score_is_read(linear: Linear, tmp_path: Path) -> None:
    model = linear(np.eye(4))
    del model.graph.output[:]
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    node = helper.make_node("ZipMap", ["y"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    path = with_output(model, node, helper.make_value_info("p", kind), tmp_path / "map.onnx")
    x = np.random.default_rng(0).random((3, 4), np.float32)
    assert np.array_equal(Runtime(path).run(x), x)


def test_a_file_of_fixed_batch_is_measured_at_it(save: Save, examples: Examples) -> None:
    path = save(np.eye(4), batch=3)
    for against in (None, save(np.eye(4), "free.onnx")):
        found = nl.measure(path, examples, against, **QUICK)  # type: ignore[arg-type]
        assert {row.batch for row in found.compressed.latency} == {3}


@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_advice_for_one_output_works(sigmoid: bool, tmp_path: Path) -> None:
    class Advised(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = p = self.model(x)
            return torch.cat([1 - p, p], 1) if sigmoid else torch.cat([torch.zeros_like(z), z], 1)

    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(6, 1), *[nn.Sigmoid()] * sigmoid).eval()
    x = torch.randn(40, 6)
    y = (one(x)[:, 0] > (0.5 if sigmoid else 0)).long()
    given = Examples(x, y)
    with pytest.raises(ModelError, match=r"(?s)one output.*two.*torch\.cat\(\[torch\.zeros_like\(z\), z\], 1\)"):
        nl.measure(nl.export_onnx(one, tmp_path / "one.onnx", x[:2]), given)
    mended = nl.export_onnx(Advised(one).eval(), tmp_path / "two.onnx", x[:2])
    found = nl.measure(mended, given, batches=(1,), **QUICK)  # type: ignore[arg-type]
    assert found.compressed.accuracy == 1.0
