from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from nutlet.data.examples import Examples
from nutlet.errors import DataError, ModelError, StorageError
from nutlet.formats import DEFAULT
from nutlet.measurement import Runtime

Save = Callable[..., Path]
Linear = Callable[..., onnx.ModelProto]


def external(location: str = "../../secret.bin") -> TensorProto:
    """Return a tensor that says its values are in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_predicts_what_the_graph_says(save: Save, examples: Examples) -> None:
    weight = np.arange(16).reshape(4, 4)
    opened = Runtime(save(weight), threads=1)
    assert opened.threads == 1
    assert opened.inputs["x"].shape == ("N", 4)
    for batch in (1, 7, 64):
        outputs = opened.predict(examples, batch=batch)
        assert outputs.dtype == np.float32
        assert np.array_equal(outputs, weight[np.arange(20) % 4])


def test_a_fixed_batch_is_fed_whole_and_cut_back(save: Save, examples: Examples) -> None:
    opened = Runtime(save(np.eye(4), batch=3))
    assert opened.fixed_batch == 3
    assert np.array_equal(opened.predict(examples), np.eye(4)[np.arange(20) % 4])
    with pytest.raises(DataError, match=r"takes batches of 3 only, asked for was 2; .*batches=\(3,\)"):
        opened.batch_of(examples, 2)


def test_float16_input_is_cast(save: Save, examples: Examples) -> None:
    opened = Runtime(save(np.eye(4), dtype=TensorProto.FLOAT16))
    assert opened.batch_of(examples, 2)["x"].dtype == np.float16
    assert opened.predict(examples).dtype == np.float32


def test_too_few_examples_are_repeated(save: Save, examples: Examples) -> None:
    x = Runtime(save(np.eye(4))).batch_of(examples.subset(slice(0, 3)), 8)["x"]
    assert np.array_equal(x.argmax(1), [0, 1, 2, 0, 1, 2, 0, 1])


def test_a_file_exported_by_torch_agrees_with_its_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 3)).eval()
    examples = Examples.from_arrays(np.random.default_rng(0).integers(0, 256, (9, 8, 8), "uint8"), np.arange(9) % 3)
    path = tmp_path / "net.onnx"
    code = (
        "import sys, torch; m = torch.load(sys.argv[1], weights_only=False); "
        "torch.onnx.export(m, (torch.zeros(2, 1, 8, 8),), sys.argv[2], dynamo=True, external_data=False, "
        "dynamic_shapes=({0: torch.export.Dim('n')},), verbose=False)"
    )
    torch.save(module, tmp_path / "net.pt")
    # In a process of its own: the exporter's deprecation warnings are not ours to mend.
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "net.pt"), str(path)], check=True, capture_output=True)
    with torch.no_grad():
        expected = module(examples.batch(slice(0, 9))[0]).numpy()
    assert np.allclose(Runtime(path).predict(examples, batch=4), expected, atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"not a model at all" * 20, b"\x00" * 100, b"PK\x03\x04" + bytes(60)])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="expected a whole ONNX file: export it again"):
        Runtime(path)


def test_every_truncation_is_refused(tmp_path: Path, linear: Linear) -> None:
    whole = linear(np.eye(4)).SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(0, len(whole), 12):
        path.write_bytes(whole[:length])
        # Cut within the last field (the opset) the graph is whole, and the runtime is who refuses.
        with pytest.raises((StorageError, ModelError)):
            Runtime(path)


def test_flipped_bytes_never_crash(tmp_path: Path, linear: Linear, examples: Examples) -> None:
    whole = linear(np.eye(4)).SerializeToString()
    random = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    for _ in range(15):
        broken = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            broken[place] = random.integers(256)
        path.write_bytes(broken)
        with contextlib.suppress(StorageError, ModelError, DataError):
            Runtime(path, threads=1).predict(examples)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"is not a regular file; expected a file whose name ends in \.onnx"):
        Runtime(tmp_path)
    with pytest.raises(StorageError, match="does not exist; expected an ONNX file"):
        Runtime(tmp_path / "missing.onnx")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.onnx")  # opening it would wait for ever
        with pytest.raises(StorageError, match="is not a regular file"):
            Runtime(tmp_path / "pipe.onnx")


def test_a_file_beyond_the_bound_is_refused(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(np.eye(4))
    monkeypatch.setattr("nutlet.formats.runtime.format_of", lambda _: replace(DEFAULT, largest=100))
    with pytest.raises(StorageError, match="bytes; expected an ONNX file of at most 100"):
        Runtime(path)


def in_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(external())


def in_constant(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=external()))


def in_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=external())], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))


def in_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=external())
    model.functions.append(helper.make_function("d", "F", [], ["c"], [node], [helper.make_opsetid("", 17)]))


def in_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(external())


def by_memory_address(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(external("*/_ORT_MEM_ADDR_/*"))


@pytest.mark.parametrize("hide", [in_initializer, in_constant, in_subgraph, in_function, in_sparse, by_memory_address])
def test_external_data_are_refused_wherever_they_hide(
    tmp_path: Path, linear: Linear, hide: Callable[[onnx.ModelProto], None]
) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    model = linear(np.eye(4))
    hide(model)
    path = tmp_path / "a" / "b" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(StorageError, match="keeps the tensor 'w' in another file; expected all weights inside"):
        Runtime(path)


def test_an_operator_the_runtime_lacks_is_an_error(tmp_path: Path, linear: Linear) -> None:
    model = linear(np.eye(4), op="NoSuchOperator")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"ONNX Runtime .* refuses .*NoSuchOperator"):
        Runtime(tmp_path / "model.onnx")


def test_inputs_go_by_their_names(tmp_path: Path, examples: Examples) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "aby"]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"])], "g", ends[:2], ends[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    opened = Runtime(tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    both = Examples.from_arrays({"b": x, "a": 2 * x}, np.arange(5))
    assert np.allclose(opened.predict(both), 3 * x, atol=1e-6)
    with pytest.raises(DataError, match=r"the data give the inputs 'x', .* takes 'a', 'b'; expected the same names"):
        opened.predict(examples)


def test_numbers_for_an_input_of_integers_are_an_error(save: Save, examples: Examples) -> None:
    opened = Runtime(save(np.eye(4), dtype=TensorProto.INT64))
    with pytest.raises(DataError, match=r"the data give float32 for the input 'x' of .* takes int64"):
        opened.predict(examples)


def test_wrong_example_shape_says_found_and_expected(save: Save) -> None:
    images = Examples(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))
    with pytest.raises(DataError, match=r"shape \(3, 8, 8\), but the input 'x' of .* expects \(4\); give the data"):
        Runtime(save(np.eye(4))).predict(images)


def test_no_examples_are_an_error(save: Save, examples: Examples) -> None:
    with pytest.raises(DataError, match="found no examples"):
        Runtime(save(np.eye(4))).predict(examples.subset(slice(0, 0)))


@pytest.mark.parametrize(
    ("takes", "given", "mend"),
    [((8, 8, 3), (3, 8, 8), "channels last"), ((3, 8, 8), (8, 8, 3), "channels first"), ((3, 9, 9), (3, 8, 8), "size")],
)
def test_a_layout_mixed_up_is_named(tmp_path: Path, takes: Any, given: Any, mend: str) -> None:
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *takes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", int(np.prod(takes))])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=mend):
        Runtime(tmp_path / "model.onnx").check(Examples(torch.zeros(2, *given), torch.zeros(2, dtype=torch.long)))


def test_nan_outputs_are_an_error(save: Save, examples: Examples) -> None:
    # The logarithm of -1 is NaN, only for examples of class 2.
    weight = np.ones((4, 4))
    weight[2, 0] = -1
    with pytest.raises(ModelError, match="NaN or infinity for 5 of 20 examples, the first at index 2"):
        Runtime(save(weight, op="Log")).predict(examples)


def test_minus_infinity_is_a_score(save: Save, examples: Examples) -> None:
    assert np.array_equal(Runtime(save(np.eye(4), op="Log")).predict(examples).argmax(1), np.arange(20) % 4)


def test_integer_outputs_are_an_error(tmp_path: Path, examples: Examples) -> None:
    graph = helper.make_graph(
        [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["N", 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"gives int64 of shape .* expected floating-point scores"):
        Runtime(tmp_path / "model.onnx").predict(examples)


def test_a_graph_that_fails_on_the_batch_is_an_error(tmp_path: Path, examples: Examples) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["x", "s"], ["y"])
        ],  # a batch of two baked in, as an export without dynamic shapes
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", 4])],
        [numpy_helper.from_array(np.array([2, 4]), "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"fails on a batch of 20: .* dynamic batch dimension"):
        Runtime(tmp_path / "model.onnx").predict(examples)


def test_the_runtime_is_imported_only_when_a_file_is_opened() -> None:
    code = "import sys, nutlet.measurement; print([m for m in ('onnxruntime', 'onnx', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
