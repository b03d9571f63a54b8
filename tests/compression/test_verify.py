"""Every step, file and saved form is compared with what it came from: faults are found, and right results pass."""

from __future__ import annotations

import copy
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nutlet as nl
import tiny
from nutlet.compression.compressed import Compressed
from nutlet.constraints import Codebook, shapes_only
from nutlet.formats.onnx import comparison as exported
from nutlet.formats.onnx import export as exporter
from nutlet.graph.comparison import answers, difference, plain
from nutlet.graph.trace import InstrumentedModel
from nutlet.methods import method_from_dict
from nutlet.methods.base import Method, Plan, apply_plan
from nutlet.tasks.predict import predict

BENCH = Path(__file__).parents[2] / "bench"
QUICK = (
    "fold loses the bias",
    "mask off by one",
    "scale halved, ternary",
    "activation quantizers carried to other sites",
    "bias lost in the file",
)
"""Faults of the bench that are planted here as well: one of a fold, a mask, a scale, what is carried, a file."""


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.path.insert(0, str(BENCH))
    spec = importlib.util.spec_from_file_location("planted_faults", BENCH / "planted_faults.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look there for their module
    spec.loader.exec_module(module)
    sys.path.remove(str(BENCH))
    return module


@pytest.mark.parametrize("fault", QUICK)
def test_a_planted_fault_is_caught(bench: ModuleType, fault: str) -> None:
    planted = bench.FAULTS[fault]
    assert bench.caught(planted.recipe, planted)


@pytest.mark.parametrize("recipe", ["int8, masked", "ternary"])
def test_no_false_alarm(bench: ModuleType, recipe: str) -> None:
    assert bench.caught(recipe) == ""


class NormThenActivation(nn.BatchNorm2d):
    """A norm with something of its own behind it, which a fold cannot see."""

    def __init__(self, width: int, act: nn.Module) -> None:
        super().__init__(width)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


@pytest.mark.parametrize("act", [nn.Hardswish(), nn.Sigmoid(), nn.PReLU(8)])
@pytest.mark.parametrize("activations", [False, True])
def test_a_norm_that_does_more_is_not_lost(act: nn.Module, activations: bool) -> None:
    def conv(inputs: int) -> nn.Module:
        return nn.Conv2d(inputs, 8, 3, padding=1, bias=False)

    model: nn.Module = nn.Sequential(
        conv(3), NormThenActivation(8, act), conv(8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)
    )
    data = tiny.tiny_data((3, 8, 8))
    model = tiny.settled(model, data.calibration.x)
    result = nl.compress(model, [nl.Quantize(activations=activations)], data)
    wanted = predict(model, data.validation)
    assert float((predict(result.model, data.validation) - wanted).norm() / wanted.norm()) < 0.1


@nl.register
@dataclass(frozen=True, kw_only=True)
class DoubleWeights(nl.Method):
    """A third party's method that promises to change nothing, and doubles the weights of one layer that it names."""

    use_when = "never; it is a test"
    separable = ("layers",)

    def plan(self, model: nn.Module, context: nl.Context) -> Plan:
        return {"layers": ["fc1", "fc2"]}

    def reference(self, model: nn.Module, plan: Plan, example: Tensor) -> nn.Module | None:
        return copy.deepcopy(model)

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
        if "fc1" in plan["layers"]:
            model.get_parameter("fc1.weight").data.mul_(2)
        return model


@nl.register
@dataclass(frozen=True, kw_only=True)
class DoubleAll(DoubleWeights):
    """The same, of which nothing can be left out."""

    separable = ()


def test_what_differs_is_left_out_and_said() -> None:
    model, data = tiny.tiny("mlp")
    result = nl.compress(model, [DoubleWeights()], data)
    (note,) = (note for note in result.steps[1].notes if "left as it was" in note)
    assert note.startswith("fc1: ")
    assert result.steps[1].plan == {"layers": ["fc2"]}
    assert torch.equal(predict(result.model, data.validation), predict(model, data.validation))


def test_what_cannot_be_left_out_is_raised() -> None:
    model, data = tiny.tiny("mlp")
    with pytest.raises(nl.ComparisonError, match=r"DoubleAll: answers are .* of the largest apart"):
        nl.compress(model, [DoubleAll()], data)


def test_models_that_name_float32_are_compared_in_single_precision() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.float())

    assert answers(Single(), torch.randn(4, 3)).double is None
    found = answers(nn.Linear(3, 2), torch.randn(4, 3))
    assert found.double is not None
    assert found.tolerance < 1e-4


def test_numbers_that_are_none() -> None:
    nan = torch.tensor([1.0, float("nan")])
    assert difference(nan, torch.tensor([1.0, 1.0])) == float("inf")
    assert difference(torch.tensor([1.0, 1.0]), nan) == 0.0
    assert difference(torch.zeros(2), torch.zeros(3)) == float("inf")


class Category(nn.Module):
    """One column is a category, one a number; no other values than those of real inputs may come."""

    def __init__(self) -> None:
        super().__init__()
        self.known, self.fc1, self.fc2 = nn.Embedding(5, 4), nn.Linear(5, 16), nn.Linear(16, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(torch.cat([self.known(x[:, 0].long()), x[:, 1:]], 1))))


def categories() -> nl.Data:
    x = torch.stack([torch.arange(96) % 5, torch.linspace(-1, 1, 96)], 1).float()
    examples = nl.Examples(x, torch.arange(96) % tiny.CLASSES)
    return nl.Data(examples.subset(slice(0, 64)), examples.subset(slice(64, 96)), examples.subset(slice(0, 32)))


@pytest.mark.parametrize("steps", [[nl.PruneWeights(sparsity=0.5), nl.Quantize()], [nl.PruneChannels(ratio=0.25)]])
def test_saved_models_keep_real_inputs(steps: list[Method], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, data = Category().eval(), categories()
    result = nl.compress(model, steps, data, workdir=tmp_path / "work")
    loaded = Compressed.load(result.save(tmp_path / "saved"), model)
    assert torch.equal(loaded.example, data.calibration.x[:2])
    assert torch.equal(predict(loaded.model, data.validation), predict(result.model, data.validation))
    said: list[str] = []
    monkeypatch.setattr(nl.Progress, "say", lambda progress, text: said.append(text))
    nl.compress(model, steps, data, workdir=tmp_path / "work")
    assert any("done before, going on" in text for text in said)


def test_an_older_saved_form_is_refused_in_words(tmp_path: Path) -> None:
    model, data = tiny.tiny("mlp")
    folder = nl.compress(model, [nl.Quantize()], data).save(tmp_path)
    text = (folder / "compressed.json").read_text()
    (folder / "compressed.json").write_text(text.replace('"format": 4', '"format": 2', 1))
    with pytest.raises(nl.StorageError, match="has format 2; expected 4: use the version that wrote it"):
        Compressed.load(folder, model)


def test_inputs_of_another_size_are_not_read(tmp_path: Path) -> None:
    model, data = tiny.tiny("mlp")
    folder = nl.compress(model, [nl.Quantize()], data).save(tmp_path)
    (folder / "inputs.bin").write_bytes(bytes(84))
    with pytest.raises(nl.StorageError, match="84 bytes of inputs, where their shape"):
        Compressed.load(folder, model)


def test_loading_fits_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, data = tiny.tiny("mlp")
    result = nl.compress(model, [nl.Cluster(values=8), nl.Quantize(bits=4)], data)
    folder = result.save(tmp_path)

    def fitted(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("k-means was run on weights that the file overwrites")

    monkeypatch.setattr("sklearn.cluster.KMeans.fit", fitted)
    loaded = Compressed.load(folder, model)
    assert torch.equal(predict(loaded.model, data.validation), predict(result.model, data.validation))
    with shapes_only():
        assert Codebook.fit(torch.randn(20), count=4).shared.tolist() == [0.0] * 4


def test_a_run_and_its_replay_are_one_code() -> None:
    model, data = tiny.tiny("cnn")
    result = nl.compress(model, [nl.Quantize(), nl.PruneChannels(ratio=0.3)], data)
    replayed = copy.deepcopy(model)
    for step in result.steps[1:]:
        replayed = apply_plan(type(method_from_dict(step.method)), replayed, step.plan, result.example)
    found, wanted = replayed.state_dict(), result.model.state_dict()
    assert {name: value.shape for name, value in found.items()} == {name: v.shape for name, v in wanted.items()}
    assert isinstance(replayed, InstrumentedModel)
    assert [(edit.step, edit.zero_point) for edit in replayed.by_site.values()] == [
        (edit.step, edit.zero_point)
        for edit in result.model.by_site.values()  # type: ignore[operator]
    ]


def test_a_file_that_differs_names_the_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, data = tiny.tiny("mlp")
    original = exporter.slim

    def lost(proto: Any) -> None:
        original(proto)
        for tensor in proto.graph.initializer:
            if list(tensor.dims) == [tiny.CLASSES]:  # the bias of the last layer
                tensor.raw_data = bytes(len(tensor.raw_data))

    monkeypatch.setattr(exporter, "slim", lost)
    with pytest.raises(nl.ExportError, match=r"is 0\..* of its answers away .* first at fc2/linear/0"):
        nl.export_onnx(model, tmp_path / "model.onnx", data.calibration.x[:2])
    assert not (tmp_path / "model.onnx").exists()


def test_a_site_that_the_runtime_computes_otherwise_stays_in_floating_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, data = tiny.tiny("mlp")
    result = nl.compress(model, [nl.Quantize()], data)
    site = list(result.model.by_site)[-1]  # type: ignore[arg-type]

    def wrong(content: bytes, model: Any, x: Tensor) -> str:
        return "the file is wrong" if site in model.by_site else ""

    monkeypatch.setattr(exported, "disagreement", wrong)
    monkeypatch.setattr(exported, "_first_apart", lambda *args: (site, "0.5 of the largest value"))
    with pytest.warns(UserWarning, match=f"the activations at {site} are left in floating point in this file"):
        path = result.export(tmp_path / "model.onnx")
    found = next(iter(exported._in_runtime(path.read_bytes(), data.calibration.x)))[1]
    wanted = predict(model, data.calibration)
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


def test_values_that_codes_do_not_give_back_are_said_to_be_stored_as_floats() -> None:
    model, data = tiny.tiny("mlp")
    steps = [nl.Cluster(values=256, keep_zeros=False, include=("block1.fc1",)), nl.PruneWeights(sparsity=0.5)]
    said = [note for note in nl.compress(model, steps, data).steps[2].notes if "stored as 32-bit floats" in note]
    assert [note.partition(":")[0] for note in said] == ["block1.fc1"]


def test_plain_weights_are_those_in_force() -> None:
    model, data = tiny.tiny("cnn")
    small = nl.compress(model, [nl.PruneWeights(sparsity=0.5), nl.Quantize(activations=False)], data).model
    torch.testing.assert_close(plain(small, quantized=True)(data.train.x), small(data.train.x), atol=1e-5, rtol=1e-5)
