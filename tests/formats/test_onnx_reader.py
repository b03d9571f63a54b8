from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from nutlet.attacks.extraction.surrogate import fresh
from nutlet.compression.pipeline import compress
from nutlet.content_hash import fingerprint
from nutlet.errors import ModelError, NutletError, StorageError
from nutlet.formats.onnx import module
from nutlet.formats.onnx.export import export_onnx
from nutlet.formats.onnx.limited import trust
from nutlet.formats.onnx.module import StolenModule
from nutlet.formats.onnx.operators import OPERATORS
from nutlet.formats.onnx.packing import load_unpacked
from nutlet.formats.onnx.reader import load_onnx
from nutlet.measurement import Runtime
from nutlet.methods import Binarize, Cluster, Factorize, HalfPrecision, PruneWeights, Quantize, Ternarize
from nutlet.methods.base import Method

RECIPES: dict[str, list[Any]] = {
    "plain": [],
    "int8": [Quantize()],
    "pruned": [PruneWeights(sparsity=0.8)],
    "pruned-int8": [PruneWeights(sparsity=0.8), Quantize()],
    "factorized": [Factorize()],
}


class PaddedShortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.last(x).mean((2, 3))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.place = nn.Parameter(torch.linspace(-1, 1, 80).reshape(1, 5, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x) + self.place).mean(1))


def written(folder: Path, name: str, model: nn.Module, shape: tuple[int, ...], recipe: Sequence[Any] = ()) -> Path:
    data = tiny.tiny_data(shape)
    if recipe:
        model = compress(model, list(recipe), data).model
    return export_onnx(model.eval(), folder / f"{name}.onnx", data.calibration.x[:2])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("shipped")
    (cnn, _), (mlp, _) = tiny.tiny("cnn"), tiny.tiny("mlp")
    padded = tiny.settled(PaddedShortcut(), torch.zeros(2, 3, 8, 8))
    return {
        "cnn": written(folder, "cnn", cnn, (3, 8, 8)),
        "cnn int8": written(folder, "cnn8", cnn, (3, 8, 8), RECIPES["pruned-int8"]),
        "mlp int8": written(folder, "mlp8", mlp, (10,), RECIPES["int8"]),
        "padded int8": written(folder, "padded8", padded, (3, 8, 8), RECIPES["int8"]),
    }


def runtime(path: Path, x: Tensor, *, literal: bool = False) -> Tensor:
    """What ONNX Runtime answers; ``literal``: without fusing, each operator as the standard says."""
    if not literal:
        return torch.from_numpy(Runtime(path, threads=1).run(x.numpy()))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return torch.from_numpy(ort.InferenceSession(path, options).run(None, {"x": x.numpy()})[0])


def shape_of(path: Path) -> tuple[int, ...]:
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims[1:])


def inputs(path: Path, count: int = 64) -> Tensor:
    return tiny.tiny_data(shape_of(path)).train.x[:count]


def check(path: Path, x: Tensor) -> None:
    """A float file gives the runtime's numbers; a quantized one the classes of its graph as the standard reads it."""
    quantized = any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)
    with torch.no_grad():
        found = load_onnx(path)(x)
    if not quantized:
        torch.testing.assert_close(found, runtime(path, x), atol=1e-4, rtol=1e-4)
        return
    wanted = runtime(path, x, literal=True)
    # A value on a rounding border may fall to the other side: the deeper, the more rows have one; one in 64 may turn.
    assert (found - wanted).abs().amax(1).median() < 1e-5 * wanted.abs().max()
    assert agreement(found, wanted) >= 0.98
    # Fused integer kernels round at other places than the standard says.
    fused = runtime(path, x)
    assert agreement(found, fused) >= min(0.99, agreement(wanted, fused))


def agreement(a: Tensor, b: Tensor) -> float:
    return float((a.argmax(1) == b.argmax(1)).float().mean())


@pytest.mark.parametrize("name", ["cnn", "cnn int8", "mlp int8", "padded int8"])
def test_it_answers_as_the_runtime_does(files: dict[str, Path], name: str) -> None:
    check(files[name], inputs(files[name]))


FORMATS = [
    Cluster(values=8),
    Ternarize(scales=2, edges=True),
    Binarize(edges=True),
    Quantize(activations=False),
    Quantize(bits=4, activations=False, granularity="group", group_size=2),
    Quantize(bits=4, activations=False, symmetric=False),
    HalfPrecision(),
]


@pytest.mark.parametrize("method", FORMATS, ids=lambda method: str(method.to_dict()))
def test_stored_codes_become_weights_of_real_layers(tmp_path: Path, method: Method) -> None:
    """Whatever a file restores its weights from: a thief trains all of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    path = written(tmp_path, "model", model, (10,), [method])
    stolen = load_onnx(path)
    assert [tuple(layer.weight.shape) for layer in stolen.layers] == [(64, 10), (64, 64), (4, 64)]
    assert sum(p.numel() for p in stolen.parameters()) == sum(p.numel() for p in model.parameters())
    check(path, inputs(path))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["lenet5", "fmnist_convnet", "lenet300", "resnet20_cifar10", "digits"])
def test_real_models(name: str, recipe: str, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nutlet.cli.demo import DigitsNet

    monkeypatch.setattr(sys, "path", [*sys.path, str(real_data / "models")])
    import arch  # type: ignore[import-not-found]

    kinds = {"lenet5": arch.LeNet5, "fmnist_convnet": arch.FashionConvNet, "lenet300": arch.LeNet300,
             "resnet20_cifar10": arch.CifarResNet}  # fmt: skip
    if name == "digits":
        shape: tuple[int, ...] = (1, 8, 8)
        model = tiny.settled(DigitsNet(8, 2), torch.zeros(2, *shape))
    else:
        shape = (3, 32, 32) if name.startswith("resnet") else (1, 28, 28)
        model = kinds[name]()
        model.load_state_dict(torch.load(real_data / "models" / f"{name}.pt", weights_only=True))
    path = written(tmp_path, name, model, shape, RECIPES[recipe])
    check(path, inputs(path))


def test_attention_of_a_transformer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = written(tmp_path, "attention", Attention(), (5, 8))
    check(path, torch.randn(6, 5, 8))


def test_weights_come_back_in_float_and_in_layers(files: dict[str, Path]) -> None:
    stolen = load_onnx(files["cnn int8"])
    original = {p.shape for p in load_onnx(files["cnn"]).parameters()}
    assert {p.shape for p in stolen.parameters()} == original
    assert all(p.dtype == torch.float32 and p.requires_grad for p in stolen.parameters())
    assert [type(layer) for layer in stolen.layers].count(nn.Conv2d) == 8
    graph = load_unpacked(files["cnn int8"].read_bytes()).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    node = next(n for n in graph.node if n.input[0] in stored)
    codes, scale = (stored[name] for name in node.input[:2])
    wanted = torch.from_numpy(codes.astype(np.float32) * scale.reshape(-1, 1, 1, 1))
    assert any(torch.equal(p, wanted) for p in stolen.parameters() if p.shape == wanted.shape)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("name", ["cnn int8", "mlp int8", "cnn"])
def test_it_trains(files: dict[str, Path], name: str, drop: bool) -> None:
    stolen = load_onnx(files[name], drop_activation_quantizers=drop)
    x = inputs(files[name], 32)
    y = torch.arange(32) % 3  # other labels than the file has learned
    optimizer = torch.optim.AdamW(stolen.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(stolen(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in stolen.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_dropped_quantizers_leave_the_relus(files: dict[str, Path]) -> None:
    path = files["mlp int8"]
    x = inputs(path)
    exact, free = load_onnx(path), load_onnx(path, drop_activation_quantizers=True)
    assert not torch.equal(exact(x), free(x))
    assert (exact(x).argmax(1) == free(x).argmax(1)).float().mean() > 0.9
    # Far outside the calibrated ranges nothing is clipped, and the network is still not linear.
    far = free(1e4 * x[:1]) - free(torch.zeros_like(x[:1]))
    assert far.abs().max() > 1e2 * exact(1e4 * x[:1]).abs().max()
    assert not torch.allclose(far, free(torch.zeros_like(x[:1])) - free(-1e4 * x[:1]), rtol=0.1)


def test_it_can_be_copied_pickled_told_apart_and_started_anew(files: dict[str, Path]) -> None:
    stolen, x = load_onnx(files["cnn int8"]), inputs(files["cnn int8"], 8)
    with torch.no_grad():
        wanted = stolen(x)
        assert torch.equal(pickle.loads(pickle.dumps(stolen))(x), wanted)
        assert torch.equal(copy.deepcopy(stolen)(x), wanted)
        assert not torch.equal(fresh(stolen, 1)(x), wanted)
        assert torch.equal(fresh(stolen, 1)(x), fresh(stolen, 1)(x))
    assert fingerprint(stolen) == fingerprint(load_onnx(files["cnn int8"]))
    assert fingerprint(stolen) != fingerprint(load_onnx(files["cnn int8"], drop_activation_quantizers=True))


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    stored: dict[str, Any],
    shape: Sequence[Any] = ("N", 4),
    opset: int = 20,
    **changes: Any,
) -> Path:
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "g", given, outputs, tensors, **changes)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    path.write_bytes(model.SerializeToString())
    return path


def node(operator: str, *names: str, gives: Sequence[str] = ("y",), **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(names), list(gives), **attributes)


def weights(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


IMAGE = (2, 6, 7)
ONE: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], tuple[int, ...]]] = {
    "conv same": ([node("Conv", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2])], {"w": weights(3, 2, 2, 3)}, IMAGE),
    "conv uneven": ([node("Conv", "x", "w", "b", pads=[0, 1, 2, 0])],
                    {"w": weights(3, 2, 3, 3), "b": weights(3)}, IMAGE),
    "conv groups": ([node("Conv", "x", "w", group=2, dilations=[2, 1], pads=[1, 1, 1, 1])],
                    {"w": weights(4, 1, 3, 3)}, IMAGE),
    "conv 1d": ([node("Conv", "x", "w", strides=[2])], {"w": weights(3, 2, 3)}, (2, 9)),
    "gemm": ([node("Gemm", "x", "w", "b", alpha=0.5, beta=2.0)], {"w": weights(4, 3), "b": weights(3)}, (4,)),
    "gemm of one bias": ([node("Gemm", "x", "w", "b", transB=1)], {"w": weights(3, 4), "b": weights(1)}, (4,)),
    "dense with bias": ([node("MatMul", "x", "w", gives=["z"]), node("Add", "b", "z")],
                        {"w": weights(4, 3), "b": weights(3)}, (4,)),
    "dense, read twice": ([node("MatMul", "x", "w", gives=["z"]), node("Add", "z", "b", gives=["u"]),
                           node("Mul", "u", "z")], {"w": weights(4, 3), "b": weights(3)}, (4,)),
    "max pool": ([node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1], ceil_mode=1)],
                 {}, IMAGE),
    "average pool": ([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 0, 1])], {}, IMAGE),
    "average pool, padding counts": ([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1],
                                           count_include_pad=1)], {}, IMAGE),
    "global pools": ([node("GlobalAveragePool", "x", gives=["a"]), node("GlobalMaxPool", "x", gives=["b"]),
                      node("Concat", "a", "b", axis=1)], {}, IMAGE),
    "batch norm": ([node("BatchNormalization", "x", "s", "b", "m", "v", epsilon=0.1)],
                   {"s": weights(2), "b": weights(2), "m": weights(2), "v": weights(2) + 2}, IMAGE),
    "layer norm": ([node("LayerNormalization", "x", "s", axis=2)], {"s": weights(6, 7)}, IMAGE),
    "instance norm": ([node("InstanceNormalization", "x", "s", "s")], {"s": weights(2)}, IMAGE),
    "pad": ([node("Pad", "x", "p", "v", "a")],
            {"p": [1, -1, 2, 0], "v": np.float32(-np.inf), "a": [2, 3]}, IMAGE),
    "pad edge": ([node("Pad", "x", "p", mode="edge")], {"p": [0, 0, 1, 2, 0, 0, 0, 1]}, IMAGE),
    "pad reflect": ([node("Pad", "x", "p", mode="reflect")], {"p": [0, 0, 1, 2, 0, 0, 0, 1]}, IMAGE),
    "slice": ([node("Slice", "x", "s", "e", "a", "t")],
              {"s": [-1, 1], "e": [-(2**63), 2**63 - 1], "a": [3, 2], "t": [-2, 2]}, IMAGE),
    "reshape": ([node("Reshape", "x", "s")], {"s": [0, -1, 2]}, IMAGE),
    "flatten": ([node("Flatten", "x", axis=-2)], {}, IMAGE),
    "squeeze": ([node("Unsqueeze", "x", "a", gives=["z"]), node("Squeeze", "z", "b")], {"a": [0, -1], "b": [0]}, IMAGE),
    "transpose": ([node("Transpose", "x", perm=[0, 3, 1, 2])], {}, IMAGE),
    "gather": ([node("Gather", "x", "i", axis=2)], {"i": [[0, -1], [3, 3]]}, IMAGE),
    "split": ([node("Split", "x", gives=["a", "b"], axis=3, num_outputs=2), node("Transpose", "b", gives=["c"]),
               node("ReduceSum", "c", gives=["d"], keepdims=0), node("Mul", "a", "d")], {}, IMAGE),
    "shape": ([node("Shape", "x", gives=["s"], start=0, end=1), node("Concat", "s", "m", gives=["t"], axis=0),
               node("Reshape", "x", "t")], {"m": [-1]}, IMAGE),
    "integers": ([node("Shape", "x", gives=["s"]), node("Div", "s", "two", gives=["h"]),
                  node("Cast", "h", gives=["f"], to=1), node("Mul", "x", "f")], {"two": [2]}, (2,)),
    "expand": ([node("ConstantOfShape", "s", gives=["c"], value=numpy_helper.from_array(np.float32([2.5]))),
                node("Expand", "x", "s", gives=["z"]), node("Sub", "z", "c")], {"s": [3, 1, 1]}, (1, 6, 7)),
    "where": ([node("Greater", "x", "o", gives=["g"]), node("LessOrEqual", "x", "o", gives=["l"]),
               node("Or", "g", "l", gives=["a"]), node("Not", "g", gives=["n"]), node("And", "a", "n", gives=["c"]),
               node("Where", "c", "x", "o")], {"o": np.float32(0.2)}, IMAGE),
    "reductions": ([node("ReduceMean", "x", "a", gives=["m"]), node("ReduceMax", "x", gives=["h"]),
                    node("ReduceMin", "x", "a", gives=["l"], keepdims=1), node("ReduceL2", "x", "a", gives=["n"]),
                    node("Sum", "m", "h", "l", "n")], {"a": [-1, 2]}, IMAGE),
    "clip": ([node("Clip", "x", "", "h")], {"h": np.float32([0.5])[0]}, IMAGE),
    "prelu": ([node("PRelu", "x", "s")], {"s": weights(2, 1, 1)}, IMAGE),
    "softmax": ([node("Softmax", "x", axis=1, gives=["s"]), node("LogSoftmax", "x", gives=["l"]),
                 node("Max", "s", "l", "x", gives=["m"]), node("Min", "m", "s")], {}, IMAGE),
    "quantize": ([node("QuantizeLinear", "x", "s", "z", axis=1, gives=["q"]),
                  node("DequantizeLinear", "q", "s", "z", axis=1)],
                 {"s": np.float32([0.1, 0.2]), "z": np.int8([3, -2])}, IMAGE),
    "int4 weights": ([node("DequantizeLinear", "w", "s", gives=["f"], axis=0), node("MatMul", "x", "f")],
                     {"s": np.float32([0.1, 0.2, 0.3, 0.4])}, (4,)),
    "half weights": ([node("Cast", "w", gives=["f"], to=1), node("Gemm", "x", "f")],
                     {"w": weights(4, 3).astype(np.float16)}, (4,)),
    "constant": ([node("Constant", gives=["w"], value=numpy_helper.from_array(weights(4, 3))),
                  node("MatMul", "x", "w")], {}, (4,)),
    "norms' statistics are a bias too": ([node("BatchNormalization", "x", "s", "b", "b", "s")],
                                         {"s": np.float32([1, 2]), "b": np.float32([0.5, 0])}, IMAGE),
}  # fmt: skip
UNARY: dict[str, dict[str, Any]] = {
    "Abs": {}, "Dropout": {}, "Elu": {"alpha": 0.7}, "Erf": {}, "Exp": {}, "Gelu": {}, "HardSigmoid": {"alpha": 0.3},
    "HardSwish": {}, "Identity": {}, "LeakyRelu": {"alpha": 0.3}, "Mish": {}, "Neg": {}, "Relu": {}, "Selu": {},
    "Sigmoid": {}, "Softplus": {}, "Tanh": {}, "Reciprocal": {},
}  # fmt: skip


@pytest.mark.parametrize("name", [*ONE, *UNARY, "positive"])
def test_each_operator_does_what_the_runtime_does(name: str, tmp_path: Path) -> None:
    nodes, stored, shape = ONE.get(name, ([], {}, (5,)))
    if name in UNARY:
        nodes = [node(name, "x", **UNARY[name])]
    elif name == "positive":
        nodes = [node("Abs", "x", gives=["a"]), node("Sqrt", "a", gives=["b"]), node("Log", "a", gives=["c"]),
                 node("Pow", "a", "b", gives=["d"]), node("Less", "c", "d", gives=["e"]),
                 node("GreaterOrEqual", "c", "d", gives=["f"]), node("Equal", "e", "f", gives=["g"]),
                 node("Where", "g", "b", "d")]  # fmt: skip
    path = save(tmp_path / "one.onnx", nodes, stored, ("N", *shape))
    if name == "int4 weights":
        proto = onnx.load(path)
        proto.graph.initializer.append(helper.make_tensor("w", TensorProto.INT4, (4, 3), range(-6, 6)))
        proto.opset_import[0].version = 21
        onnx.save(proto, path)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    stolen = load_onnx(path)
    torch.testing.assert_close(stolen(x).detach(), runtime(path, x, literal=True), atol=1e-5, rtol=1e-5)
    if any(p.requires_grad for p in stolen.parameters()):
        stolen(x).sum().backward()
        assert all(p.grad is not None for p in stolen.parameters())


def test_every_operator_is_tested() -> None:
    used = {each.op_type for nodes, _, _ in ONE.values() for each in nodes}
    positive = {"Sqrt", "Log", "Pow", "Less", "GreaterOrEqual", "Equal", "Where", "Abs"}
    assert used | set(UNARY) | positive >= set(OPERATORS)


def test_a_dense_layer_takes_the_bias_that_is_added(tmp_path: Path) -> None:
    for name, biased in (("dense with bias", True), ("dense, read twice", False)):
        nodes, stored, shape = ONE[name]
        (layer,) = load_onnx(save(tmp_path / "dense.onnx", nodes, stored, ("N", *shape))).layers
        assert isinstance(layer, nn.Linear)
        assert (layer.bias is not None) == biased


def test_a_weight_used_twice_is_one_parameter(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x", "w", gives=["a"]), node("Relu", "a", gives=["r"]), node("MatMul", "r", "w")]
    stolen = load_onnx(save(tmp_path / "tied.onnx", nodes, {"w": weights(4, 4)}))
    assert len(list(stolen.parameters())) == 1
    assert len(stolen.layers) == 2


def twice(count: int) -> list[onnx.NodeProto]:
    names = ["x", *(f"v{number}" for number in range(count - 1)), "y"]
    return [node("Concat", a, a, gives=[b], axis=1) for a, b in itertools.pairwise(names)]


def branch(depth: int) -> onnx.NodeProto:
    inner = node("Identity", "x")
    for _ in range(depth):
        graph = helper.make_graph([inner], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
        inner = node("If", "x", then_branch=graph, else_branch=graph)
    return inner


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "unknown operator": (lambda p: save(p, [node("Loop", "x"), node("Relu", "x")], {}), "Loop; expected those"),
    "unknown domain": (lambda p: save(p, [node("Relu", "x", domain="evil")], {}), r"evil\.Relu"),
    "branches": (lambda p: save(p, [branch(12)], {}), "understood: If"),
    "unknown attribute": (lambda p: save(p, [node("Relu", "x", inplace=1)], {}), "inplace"),
    "out": (lambda p: save(p, [node("Abs", "x", out=numpy_helper.from_array(weights(4)))], {}), "out"),
    "nothing computes it": (lambda p: save(p, [node("Relu", "ghost")], {}), "no value 'ghost'"),
    "output from nowhere": (lambda p: save(p, [node("Relu", "x", gives=["z"])], {}), "'y'"),
    "a stored output": (lambda p: save(p, [node("Relu", "x", gives=["z"])], {"y": weights(4)}), "stored value"),
    "old": (lambda p: save(p, [node("Relu", "x")], {}, opset=9), "opset 9; expected 13 or later"),
    "any height": (lambda p: save(p, [node("Relu", "x")], {}, ("N", 3, "H")), "every axis but the batch fixed"),
    "no shape": (lambda p: save(p, [node("Relu", "x")], {}, ()), "expected"),
    "large input": (lambda p: save(p, [node("Relu", "x")], {}, ("N", 2**40)), "at most"),
    "doubling": (lambda p: save(p, twice(60), {}), "elements, at most"),
    "padding": (lambda p: save(p, [node("Pad", "x", "p")], {"p": [0, 0, 0, 2**40]}), "elements, at most"),
    "outer product": (lambda p: save(p, [node("Mul", "a", "b", gives=["c"]), node("Add", "c", "x")],
                                     {"a": np.ones((20000, 1, 1), "f"), "b": np.ones((20000, 1), "f")}), "size needs"),
    "integers": (lambda p: save(p, [node("Shape", "x", gives=["s"]), node("Mul", "a", "s", gives=["d"]),
                                    node("Mul", "d", "b", gives=["c"]), node("Reshape", "x", "c")],
                                {"a": np.ones((5000, 1), int), "b": np.ones((5000, 1, 1), int)}), "50,000,000 int"),
    "expanded": (lambda p: save(p, [node("Expand", "x", "s", gives=["e"]), node("Neg", "e")],
                                {"s": [2**20, 2**20, 1, 1]}), "elements, at most"),
    "gathered integers": (lambda p: save(p, [node("Shape", "x", gives=["s"]), node("Mul", "i", "s", gives=["d"]),
                                             node("Gather", "t", "d", gives=["g"]), node("Reshape", "x", "g")],
                                         {"t": np.ones((2, 4000), int), "i": np.zeros((4000, 1), int)}), "integers"),
    "gathered weights": (lambda p: save(p, [node("Gather", "t", "i", gives=["g"]), node("MatMul", "x", "g")],
                                        {"t": np.ones((2, 4000), "f"), "i": np.zeros(4000, int)}), "size needs"),
    "many copies of the weights": (lambda p: save(p, [*(node("DequantizeLinear", "w", "s", gives=[f"f{i}"])
                                                        for i in range(40)),
                                                      node("Sum", *(f"f{i}" for i in range(40)), gives=["f"]),
                                                      node("MatMul", "x", "f")],
                                                  {"w": np.ones((4, 9000), "int8"), "s": np.float32(1)}), "size needs"),
    "groups": (lambda p: save(p, [node("Conv", "x", "w", group=0)], {"w": weights(2, 2, 1, 1)}, ("N", 2, 4, 4)),
               "groups"),
    "strides": (lambda p: save(p, [node("MaxPool", "x", kernel_shape=[1, 1], strides=[0, 0])], {}, ("N", 2, 4, 4)),
                "1 or more"),
    "text": (lambda p: save(p, [node("Relu", "x")], {"t": np.array(["a"])}), "ONNX type 8"),
    "two inputs": (lambda p: two_inputs(p), r"\['x', 'z'\]"),
    "32-bit zero point": (lambda p: save(p, [node("QuantizeLinear", "x", "s", "z", gives=["q"]),
                                             node("DequantizeLinear", "q", "s", "z")],
                                         {"s": np.float32(1), "z": np.int32(0)}), "8 or 16 bits"),
    "a lying shape": (lambda p: lying(p, [2**40, 2**20]), "as many values as it has"),
    "a negative shape": (lambda p: lying(p, [-1, 4]), "as many values as it has"),
    "one value too many": (lambda p: lying(p, [3, 3]), "cannot|expected"),
    "a sparse weight": (lambda p: sparse(p), "sparse"),
}  # fmt: skip


def two_inputs(path: Path) -> Path:
    proto = onnx.load(save(path, [node("Add", "x", "z")], {}))
    proto.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [4]))
    path.write_bytes(proto.SerializeToString())
    return path


def lying(path: Path, dims: list[int]) -> Path:
    proto = onnx.load(save(path, [node("MatMul", "x", "w")], {"w": weights(4, 2)}))
    proto.graph.initializer[0].dims[:] = dims
    path.write_bytes(proto.SerializeToString())
    return path


def sparse(path: Path) -> Path:
    proto = onnx.load(save(path, [node("Relu", "x")], {}))
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [2**40]), [2**41])
    )
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    make, says = HOSTILE[name]
    path = make(tmp_path / "hostile.onnx")
    trust(path.read_bytes())  # the reader has bounds of its own, behind the trial in a process of its own
    with pytest.raises(ModelError, match=f"(?s){says}") as caught:
        load_onnx(path)
    assert "xpected" in str(caught.value)


def test_what_is_no_onnx_or_points_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        load_onnx(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(StorageError):
        load_onnx(tmp_path / "text.onnx")


def test_another_shape_than_the_files_is_an_error_with_words(files: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"operator \d+ of the file, \w+, cannot run"):
        load_onnx(files["mlp int8"])(torch.zeros(2, 7))


def use(content: bytes, path: Path) -> None:
    """Read bytes that may be anything, and let the module answer where it could be read."""
    path.write_bytes(content)
    with contextlib.suppress(NutletError):
        stolen = load_onnx(path)
        assert isinstance(stolen, StolenModule)
        stolen(torch.zeros(2, *shape_of(path)))
        repr(stolen)


CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=12)
FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(name=st.sampled_from(["cnn", "mlp int8", "cnn int8"]), changes=CHANGES, end=st.integers(0, 10**6))
def test_changed_bytes_raise_only_our_errors(
    files: dict[str, Path], tmp_path: Path, name: str, changes: list[tuple[int, int]], end: int
) -> None:
    content = bytearray(files[name].read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    use(bytes(content[: end if end < len(content) else len(content)]), tmp_path / "changed.onnx")


NUMBERS = st.sampled_from([-(2**62), -1, 0, 1, 2, 3, 7, 1000, 2**20, 2**31, 2**40, 2**62])


@FEW
@given(name=st.sampled_from(sorted(ONE)), data=st.data())
def test_changed_graphs_raise_only_our_errors(tmp_path: Path, name: str, data: st.DataObject) -> None:
    nodes, stored, shape = copy.deepcopy(ONE[name])
    target = data.draw(st.sampled_from(nodes))
    kind = data.draw(st.sampled_from(["attribute", "operator", "input", "stored"]))
    if kind == "attribute":
        numbers = data.draw(st.lists(NUMBERS, min_size=1, max_size=4))
        names = [
            "axis",
            "pads",
            "strides",
            "group",
            "kernel_shape",
            "dilations",
            "perm",
            "to",
            "keepdims",
            "num_outputs",
        ]
        changed = data.draw(st.sampled_from(names))
        value = numbers if data.draw(st.booleans()) else numbers[0]
        kept = [attribute for attribute in target.attribute if attribute.name != changed]
        del target.attribute[:]
        target.attribute.extend([*kept, helper.make_attribute(changed, value)])
    elif kind == "operator":
        target.op_type = data.draw(st.sampled_from(sorted(OPERATORS)))
    elif kind == "input" and target.input:
        names = [*stored, "x", "y", *(name for each in nodes for name in each.output)]
        target.input[data.draw(st.integers(0, len(target.input) - 1))] = data.draw(st.sampled_from(names))
    elif kind == "stored" and stored:
        changed = data.draw(st.sampled_from(sorted(stored)))
        stored[changed] = np.array(data.draw(st.lists(NUMBERS, max_size=4)), np.int64)
    path = save(tmp_path / "changed.onnx", nodes, stored, ("N", *shape))
    use(path.read_bytes(), path)


def test_the_bound_is_for_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stolen = load_onnx(save(tmp_path / "m.onnx", [node("Concat", "x", "x", axis=1)], {}))
    monkeypatch.setattr(module, "LARGEST_VALUE", 8)
    assert stolen(torch.zeros(1000, 4)).shape == (1000, 8)
    with pytest.raises(ModelError, match="10,000 elements, at most 8,000"):
        stolen(torch.zeros(1000, 5))
