from __future__ import annotations

import copy
import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from nutlet.data.examples import Data
from nutlet.errors import ExportError, StorageError
from nutlet.formats.onnx import export as exporter
from nutlet.formats.onnx.export import export_onnx
from nutlet.formats.onnx.packing import load_unpacked
from nutlet.graph.modules import put_values
from nutlet.methods import PruneWeights, Quantize
from nutlet.tasks.predict import predict
from nutlet.training.context import Context


class ProprietaryBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden_convolution = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.hidden_norm = nn.BatchNorm2d(8)

    def forward(self, incoming: Tensor) -> Tensor:
        """Add what nobody should know."""
        return F.relu(self.hidden_norm(self.hidden_convolution(incoming)) + incoming)


class SecretNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first_stage = nn.Conv2d(3, 8, 3, padding=1)
        self.proprietary_block = nn.Sequential(ProprietaryBlock(), ProprietaryBlock())
        self.classifier_head = nn.Linear(8 * 16, 4)

    def forward(self, incoming: Tensor) -> Tensor:
        found = self.proprietary_block(F.relu(self.first_stage(incoming)))
        return self.classifier_head(whispered_pooling(found).flatten(1))


def whispered_pooling(incoming: Tensor) -> Tensor:
    return F.max_pool2d(incoming, 2)


def quantized(model: nn.Module, data: Data, method: Quantize | None = None) -> nn.Module:
    method, model = method or Quantize(), copy.deepcopy(model)
    plan = method.plan(model, Context(data=data, teacher=model))
    return method.apply(model, plan, data.calibration.x[:2]).eval()


@pytest.fixture(scope="module")
def data() -> Data:
    return tiny.tiny_data((3, 8, 8))


@pytest.fixture(scope="module")
def models(data: Data) -> dict[str, nn.Module]:
    secret = tiny.settled(SecretNet(), data.calibration.x)
    return {"fp32": secret, "int8": quantized(secret, data)}


@pytest.fixture(scope="module")
def files(models: dict[str, nn.Module], data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported_by_someone")
    return {kind: export_onnx(model, folder / f"{kind}.onnx", data.train.x[:2]) for kind, model in models.items()}


def answers(path: Path, x: Tensor) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return np.asarray(ort.InferenceSession(path, options).run(["y"], {"x": x.numpy()})[0])


def fused(path: Path) -> Counter[str]:
    """Return how many operations of each kind ONNX Runtime runs after all its optimisations."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it warns that the optimised file is for this processor only
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath, format="protobuf").graph.node)


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_nothing_of_the_code_is_left(files: dict[str, Path], models: dict[str, nn.Module], kind: str) -> None:
    content = files[kind].read_bytes()
    strings = b"\n".join(re.findall(rb"[\x20-\x7e]{3,}", content)).decode().lower()
    model = models["fp32"]
    secret = {"torch", "pkg", "onnxscript", ".py", "/", "\\", "forward", "nutlet", "aten", "site-packages", "exported"}
    secret |= {name for path, _ in model.named_modules() for name in path.split(".") if not name.isdigit()}
    secret |= {name.rpartition(".")[2] for name in model.state_dict()}
    secret |= {type(module).__name__.lower() for module in model.modules()} - {"conv2d", "linear"}
    secret |= {"conv2d", "batchnorm", "whispered", "pooling", "incoming", "found", "nobody should know", "weight"}
    secret.discard("")
    assert {word for word in secret if word in strings and len(word) > 1 and word not in ("/", "\\")} == set()
    proto = onnx.load_from_string(content)
    assert (proto.producer_name, proto.producer_version, proto.doc_string, proto.graph.doc_string) == ("", "", "", "")
    names = {name for node in proto.graph.node for name in (node.name, *node.input, *node.output)}
    names |= {tensor.name for tensor in proto.graph.initializer}
    assert all(re.fullmatch(r"[a-z]{0,3}_?", name) for name in names)
    assert {opset.domain for opset in proto.opset_import} == {""}
    assert not any((proto.functions, proto.metadata_props, proto.graph.metadata_props, proto.graph.value_info))
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)


def test_weights_are_stored_as_integers(files: dict[str, Path], models: dict[str, nn.Module]) -> None:
    tensors = onnx.load(files["int8"]).graph.initializer
    weights = [tensor for tensor in tensors if len(tensor.dims) > 1]
    assert len(weights) == 4
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}
    floats = sum(np.prod(t.dims, dtype=int) for t in tensors if t.data_type == onnx.TensorProto.FLOAT)
    assert floats < 100  # biases, and scales
    parameters = sum(p.numel() for p in models["fp32"].parameters())
    assert files["int8"].stat().st_size < 1.05 * parameters + 3000
    assert files["int8"].stat().st_size < files["fp32"].stat().st_size / 2


@pytest.mark.parametrize("kind", ["fp32", "int8"])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch(files: dict[str, Path], models: dict[str, nn.Module], data: Data, kind: str, batch: int) -> None:
    proto = onnx.load(files[kind])
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["x", "y"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    x = data.train.x[:batch]
    with torch.no_grad():
        wanted = models[kind](x).numpy()
    found = answers(files[kind], x)
    assert found.shape == (batch, 4)
    if kind == "fp32":
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    else:
        # A value that lies on a rounding border may fall to the other side, one step of the integers away.
        assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_parity_with_the_simulation(files: dict[str, Path], models: dict[str, nn.Module], data: Data) -> None:
    x = data.train
    found, wanted = answers(files["int8"], x.x), predict(models["int8"], x).numpy()
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.98
    assert np.median(np.abs(found - wanted)) < 0.005 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_two_exports_are_equal_silent_and_leave_the_model(
    files: dict[str, Path], models: dict[str, nn.Module], data: Data, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    model = models[kind]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = [name for name, _ in model.named_modules()]
    again = export_onnx(model, files[kind].with_name("again.onnx"), torch.zeros_like(data.train.x[:2]))
    assert again.read_bytes() == files[kind].read_bytes()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [name for name, _ in model.named_modules()] == names
    assert capfd.readouterr() == ("", "")


def test_what_is_left_out_changes_nothing(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = quantized(tiny.tiny("cnn")[0], data)
    slim = export_onnx(chosen, tmp_path / "slim.onnx", data.train.x[:2])
    monkeypatch.setattr(exporter, "slim", lambda proto: None)
    full = export_onnx(chosen, tmp_path / "full.onnx", data.train.x[:2])
    assert np.array_equal(answers(slim, data.train.x), answers(full, data.train.x))
    assert fused(slim) == fused(full)
    assert fused(slim)["QLinearConv"] == sum(isinstance(m, nn.Conv2d) for m in chosen.modules())
    assert fused(slim)["Relu"] == 0
    assert slim.stat().st_size < full.stat().st_size - 500


def test_a_relu_that_does_something_stays(tmp_path: Path) -> None:
    """Its result is also the output, or the zero point after it is not 0."""

    def graph(zero: int, also: bool) -> onnx.ModelProto:
        value = onnx.helper.make_tensor_value_info
        nodes = [
            onnx.helper.make_node("Relu", ["x"], ["r"]),
            onnx.helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"]),
            onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ]
        constants = [
            onnx.numpy_helper.from_array(np.float32(0.1), "s"),
            onnx.numpy_helper.from_array(np.uint8(zero), "z"),
        ]
        outputs = [value(name, onnx.TensorProto.FLOAT, [3]) for name in ("y", *(["r"] if also else []))]
        made = onnx.helper.make_graph(nodes, "g", [value("x", onnx.TensorProto.FLOAT, [3])], outputs, constants)
        return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 20)])

    for zero, also, left in ((0, False, 0), (0, True, 1), (5, False, 1)):
        model = graph(zero, also)
        exporter.slim(model)
        onnx.checker.check_model(model, full_check=True)
        assert [node.op_type for node in model.graph.node].count("Relu") == left, (zero, also)


class PaddedShortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)  # no ReLU: the zero point is not 0
        x = self.second(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.last(x).mean((2, 3))


def test_a_padded_shortcut_stays_in_integers(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = quantized(PaddedShortcut().eval(), data)
    slim = export_onnx(chosen, tmp_path / "slim.onnx", data.train.x[:2])
    monkeypatch.setattr(exporter, "slim", lambda proto: None)
    full = export_onnx(chosen, tmp_path / "full.onnx", data.train.x[:2])
    assert np.array_equal(answers(slim, data.train.x), answers(full, data.train.x))
    assert fused(slim)["Pad"] == 1
    assert fused(slim)["QuantizeLinear"] == fused(full)["QuantizeLinear"] - 1


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class Switch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x + 1, (x,))


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1) if x.shape[0] == 2 else x


class FixedOutput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the moon is full")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Branches(), "data-dependent"),
        (Switch(), r"branch or a loop.*torch\.where"),
        (FixedBatch(), "batch of any size"),
        (FixedOutput(), "batch of any size"),
        (Broken(), "the moon is full"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_exported_says_why_and_leaves_the_old_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], model: nn.Module, says: str
) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("the old file")
    with pytest.raises(ExportError, match=f"(?s){says}") as caught:
        export_onnx(model, path, torch.randn(2, 4))
    assert "xpected" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "the old file"
    assert capfd.readouterr() == ("", "")


def test_a_model_beyond_what_one_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "LARGEST_ONNX", 100)
    with pytest.raises(ExportError, match=r"take 180 bytes; expected at most 100.*compress further"):
        export_onnx(nn.Linear(8, 5), tmp_path / "model.onnx", torch.zeros(2, 8))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose a folder"):
        export_onnx(nn.Linear(8, 5), tmp_path / "file" / "model.onnx", torch.zeros(2, 8))


def test_pruned_and_quantized_weights_are_zero_in_the_file(data: Data, tmp_path: Path) -> None:
    model = tiny.settled(SecretNet(), data.calibration.x)
    prune = PruneWeights(sparsity=0.8)
    plan = prune.plan(model, Context(data=data, teacher=model))
    put_values(prune.apply(model, plan, data.train.x[:2]), plan["values"])
    path = export_onnx(quantized(model, data), tmp_path / "m.onnx", data.train.x[:2])
    weights = [
        onnx.numpy_helper.to_array(t) for t in load_unpacked(path.read_bytes()).graph.initializer if len(t.dims) > 1
    ]
    assert {weight.dtype for weight in weights} == {np.dtype("int8")}
    assert sum((weight == 0).sum() for weight in weights) >= 0.8 * sum(weight.size for weight in weights)
