"""Stored tensors in few bits: the same values, fewer bytes, and nothing of the decoding left in a session."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import nutlet as nl
import tiny
from nutlet.formats import Runtime
from nutlet.formats.onnx.packing import pack_initializers, unpack_initializers
from nutlet.formats.onnx.reader import load_onnx

RANDOM = np.random.default_rng(0)


def codes(shape: tuple[int, ...], values: int, share: float = 1.0, dtype: Any = np.int8) -> NDArray[Any]:
    """Return ``values`` different numbers, of which a share is not zero."""
    drawn = RANDOM.integers(0, values, shape) - (0 if dtype == np.uint8 else values // 2)
    return (drawn * (RANDOM.random(shape) < share)).astype(dtype)


def floats(shape: tuple[int, ...], share: float) -> NDArray[Any]:
    return np.where(RANDOM.random(shape) < share, RANDOM.normal(size=shape), 0).astype(np.float32)


TENSORS = {
    **{f"{values} values": codes((37, 5, 3, 3), values) for values in (2, 3, 4, 5, 8, 9, 16, 17, 32, 60, 127)},
    "one value": np.full((30, 30), 7, np.int8),
    "only zeros": np.zeros((30, 30), np.int8),
    "60 % zeros of 15 values": codes((256, 65), 15, 0.4),
    "96 % zeros of 255 values": codes((300, 80), 255, 0.04),
    "long ways between": np.eye(1, 40_000, 39_999, dtype=np.int8),
    "ternary, half zeros": codes((64, 64, 3, 3), 3, 0.75),
    "first and last": np.array([3, *np.zeros(5000), 4], np.int8),
    "unsigned": codes((33, 35), 16, dtype=np.uint8),
    "a codebook of floats": floats((16,), 1.0)[RANDOM.integers(0, 16, (99, 50))],
    "floats, 95 % zeros": floats((128, 65), 0.05),
    "every code": codes((40, 40), 256),
    "few": codes((3, 3), 2),
}


def model_with(array: NDArray[Any]) -> onnx.ModelProto:
    """Return a model that gives the values of a stored tensor, plus its input of one number."""
    stored = [numpy_helper.from_array(array, "w")]
    nodes = [helper.make_node("Cast", ["w"], ["d"], to=TensorProto.FLOAT), helper.make_node("Add", ["x", "d"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * array.ndim)
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


ONE = np.zeros(1, np.float32)


def values_of(
    model: onnx.ModelProto, folder: Path, level: Any, x: NDArray[Any] = ONE
) -> tuple[NDArray[Any], list[str]]:
    """Return what a model gives at ``x``, and the operators that are left once its session is made."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (values,) = session.run(None, {"x": x})
    return values, [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.filterwarnings("ignore")
def test_packed_is_the_same_and_folded(name: str, tmp_path: Path) -> None:
    array = TENSORS[name]
    packed = model_with(array)
    before = packed.ByteSize()
    saved = pack_initializers(packed)
    onnx.checker.check_model(packed, full_check=True)
    level = onnxruntime.GraphOptimizationLevel
    for unoptimised in (True, False):
        values, operators = values_of(packed, tmp_path, level.ORT_DISABLE_ALL if unoptimised else level.ORT_ENABLE_ALL)
        np.testing.assert_array_equal(values, array.astype(np.float32))
    assert operators == ["Add"], "a decoding operator would run at every call"
    assert packed.ByteSize() <= before
    assert (saved > 0) == (packed.ByteSize() < before)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("2 values", 0.6),
        ("16 values", 0.9),
        ("60 % zeros of 15 values", 0.36),
        ("96 % zeros of 255 values", 0.11),
        ("ternary, half zeros", 0.22),
    ],
)
def test_packed_takes_few_bits(name: str, share: float) -> None:
    packed = model_with(TENSORS[name])
    pack_initializers(packed)
    assert packed.ByteSize() < share * TENSORS[name].nbytes


def test_what_gains_nothing_is_left() -> None:
    for name in ("every code", "few"):
        packed = model_with(TENSORS[name])
        assert pack_initializers(packed) == 0
        assert [tensor.name for tensor in packed.graph.initializer] == ["w"]


def test_constants_are_shared_between_tensors() -> None:
    two = model_with(TENSORS["16 values"])
    again = numpy_helper.from_array(codes((37, 5, 3, 3), 16), "again")
    two.graph.initializer.append(again)
    pack_initializers(two)
    contents = [tensor.raw_data + repr(tensor.dims).encode() for tensor in two.graph.initializer]
    assert len(set(contents)) == len(contents)


@pytest.mark.parametrize("name", TENSORS)
def test_unpacked_is_what_was_packed(name: str) -> None:
    model = model_with(TENSORS[name])
    packed = onnx.ModelProto.FromString(model.SerializeToString())
    pack_initializers(packed)
    unpack_initializers(packed)
    (tensor,) = packed.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), TENSORS[name])
    # The cast to floats is folded with the rest, where there is a rest.
    assert [node.op_type for node in packed.graph.node][-1] == "Add"
    assert len(packed.graph.node) <= 2


def test_a_hostile_file_cannot_ask_for_more_than_it_needs() -> None:
    packed = model_with(TENSORS["only zeros"])
    pack_initializers(packed)
    for tensor in packed.graph.initializer:
        if list(tensor.dims) == [1] and tensor.data_type == TensorProto.INT64:
            tensor.CopyFrom(numpy_helper.from_array(np.array([2**40]), tensor.name))
    with pytest.raises(ValueError, match="more numbers than a file of this size needs"):
        unpack_initializers(packed)


RECIPES: dict[str, list[nl.Method]] = {
    "4 bits": [nl.Quantize(bits=4, edge_bits=8)],
    "60 % zeros in 4 bits": [nl.PruneWeights(sparsity=0.6), nl.Quantize(bits=4, edge_bits=8)],
    "ternary": [nl.Ternarize(), nl.Quantize()],
    "8 entries": [nl.Cluster(values=8), nl.Quantize(activations=False)],
}


@pytest.fixture(scope="module", params=RECIPES)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The packed and the unpacked file of one network."""
    data = tiny.tiny_data((3, 8, 8))
    net = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, tiny.CLASSES)),
    )
    small = nl.compress(tiny.settled(net, data.calibration.x), RECIPES[request.param], data)
    folder = tmp_path_factory.mktemp("packed")
    return small.export(folder / "packed.onnx"), small.export(folder / "unpacked.onnx", packed=False)


def test_a_packed_file_runs_the_same_operators_on_the_same_values(files: tuple[Path, Path], tmp_path: Path) -> None:
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    all_of_it = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    (packed, ran), (plain, wanted) = (values_of(onnx.load(file), tmp_path, all_of_it, x) for file in files)
    np.testing.assert_array_equal(packed, plain)
    assert ran == wanted, "a decoding operator runs at every call, or one that was fused is not"
    sizes = [file.stat().st_size for file in files]
    assert sizes[0] < 0.75 * sizes[1]


def test_a_flipped_bit_of_a_packed_file_is_refused_or_another_model(files: tuple[Path, Path], tmp_path: Path) -> None:
    content, random = files[0].read_bytes(), np.random.default_rng(1)
    examples, broken = tiny.tiny_data((3, 8, 8)).validation, tmp_path / "broken.onnx"
    for _ in range(4):
        flipped = bytearray(content)
        flipped[random.integers(len(content))] ^= 1 << random.integers(8)
        broken.write_bytes(flipped)
        for open_it in (lambda: Runtime(broken, threads=1).predict(examples), lambda: load_onnx(broken)(examples.x)):
            with contextlib.suppress(nl.NutletError):
                assert open_it().shape == (len(examples), tiny.CLASSES)
