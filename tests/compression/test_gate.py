"""The gate before anything long: kinds of models that people hand in, and advice that works."""

from __future__ import annotations

import argparse
import copy
import re
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import tiny
from nutlet.compression.check import check
from nutlet.compression.gate import admit
from nutlet.compression.pipeline import compress
from nutlet.data.examples import Data
from nutlet.errors import DataError, ModelError, StorageError
from nutlet.formats.onnx.export import export_onnx
from nutlet.formats.onnx.trial import export_problem
from nutlet.graph.training_path import training_path
from nutlet.loading import load_model
from nutlet.loading.weights import load_into
from nutlet.measurement.intervals import top1
from nutlet.methods import Distill, FineTune, PruneChannels, Quantize, TrainSparse
from nutlet.tasks.outputs import to_logits

TRAIN = FineTune(epochs=1, batch_size=16, lr=0.01)


@pytest.fixture(scope="module")
def data() -> Data:
    return tiny.tiny_data((3, 8, 8))


def net(classes: int = tiny.CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def weight_normed() -> nn.Module:
    model = net()
    nn.utils.weight_norm(model[0])
    model(torch.randn(4, 3, 8, 8))
    return model


def spectral_normed() -> nn.Module:
    model = net()
    nn.utils.spectral_norm(model[3])
    model(torch.randn(4, 3, 8, 8))
    return model


def pruned() -> nn.Module:
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[7], "bias", 0.5)
    model(torch.randn(4, 3, 8, 8))
    return model


class Keeps(nn.Module):
    """Keeps features on itself, in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.kept = net(), {"features": [torch.zeros(1)]}

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.net[0](x)
        self.kept["features"].append(self.last)
        return self.net(x)


def keeps() -> nn.Module:
    model = Keeps()
    model(torch.randn(4, 3, 8, 8))
    return model


def compiled_inside() -> nn.Module:
    model = net()
    model[3] = torch.compile(model[3], backend="eager")  # type: ignore[assignment]
    return model


HANDED_IN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weight_norm": (weight_normed, "weight_norm was taken off"),
    "spectral_norm": (spectral_normed, "spectral_norm was taken off"),
    "prune": (pruned, "prune was taken off"),
    "kept features": (keeps, ""),
    "half": (lambda: net().half(), "values of float16"),
    "bfloat16 in part": (lambda: nn.Sequential(net().bfloat16(), nn.Identity()), "values of bfloat16"),
    "double": (lambda: net().double(), "values of float64"),
    "compiled": (lambda: torch.compile(net(), backend="eager"), ""),
    "compiled inside": (compiled_inside, ""),
    "parallel and compiled": (lambda: nn.DataParallel(torch.compile(net(), backend="eager")), ""),
    "averaged": (lambda: torch.optim.swa_utils.AveragedModel(net()), ""),
    "channels last": (lambda: net().to(memory_format=torch.channels_last), ""),
    "in training mode": (lambda: net().train(), ""),
}


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("kind", HANDED_IN)
def test_a_clean_copy_answers_as_the_model_in_evaluation_mode(kind: str, data: Data) -> None:
    make, says = HANDED_IN[kind]
    model = make()
    names = list(model.state_dict())
    ready = admit(model, data)
    plain = copy.deepcopy(net()) if "compiled" in kind else model
    x = data.calibration.x
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        wanted = plain.eval()(x.to(dtype)).float()
    torch.testing.assert_close(ready.model(x), wanted, atol=0.05 if dtype.itemsize == 2 else 1e-6, rtol=0)
    assert any(says in note for note in ready.notes) or not says
    assert list(model.state_dict()) == names
    assert all(p.is_leaf and p.dtype == torch.float32 and p.is_contiguous() for p in ready.model.parameters())
    compress(model, [PruneChannels(ratio=0.25)], data)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().flatten(1))


def test_lazy_layers_get_their_sizes_and_keep_loaded_values(data: Data) -> None:
    known = Lazy()
    known(data.train.x[:4])
    loaded = Lazy()
    load_into(loaded, known.state_dict(), "weights")
    ready = admit(loaded, data).model
    assert ready.conv.in_channels == 3
    assert ready.norm.num_features == 8
    torch.testing.assert_close(ready(data.train.x), known.eval()(data.train.x))
    assert any("drawn at random" in note for note in admit(Lazy(), data).notes)
    assert check(Lazy(), data, [Quantize()]).ok


def exported() -> nn.Module:
    return torch.export.export(net().eval(), (torch.zeros(2, 3, 8, 8),)).module()


def locked() -> nn.Module:
    model = net()
    model[0].lock = threading.Lock()
    return model


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: torch.jit.script(net()), "TorchScript"),
        (exported, "from torch.export"),
        (locked, r"the attribute '0\.lock' of the model cannot be copied"),
        (lambda: net().to("meta"), "on the meta device"),
    ],
)
def test_what_cannot_be_worked_on_is_refused_by_name(make: Callable[[], nn.Module], says: str, data: Data) -> None:
    with pytest.raises(ModelError, match=says):
        compress(make(), [Quantize()], data)


def test_frozen_models_are_refused_before_a_step_that_trains(data: Data) -> None:
    model = net().requires_grad_(False)
    with pytest.raises(ModelError, match=r"model\.requires_grad_\(True\)"):
        compress(model, [Quantize(), TRAIN], data)
    compress(model.requires_grad_(True), [Quantize(), TRAIN], data)


class Heads(NamedTuple):
    aux: Tensor
    logits: Tensor


class Auxiliary(nn.Module):
    """Another head beside the logits in training mode, in the place and container that is asked for."""

    def __init__(self, build: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.fc, self.aux = net()[:-1], nn.Linear(8, tiny.CLASSES), nn.Linear(8, tiny.CLASSES)
        self.build = build

    def forward(self, x: Tensor) -> Any:
        h = self.body(x)
        return self.build(self.fc(h), self.aux(h)) if self.training else self.fc(h)


@pytest.mark.parametrize(
    ("build", "position"),
    [
        (lambda z, a: (z, a), 0),
        (lambda z, a: Heads(a, z), 1),
        (lambda z, a: {"aux": a, "out": z}, 1),
        (lambda z, a: [a[:, :2], z], 1),
    ],
    ids=["tuple", "named tuple", "dict", "other shape first"],
)
def test_training_finds_the_logits_among_outputs(build: Any, position: int, data: Data) -> None:
    model = Auxiliary(build)
    assert training_path(model, data.train.x[:4]).output == position
    result = compress(model, [TRAIN], data)
    assert not torch.equal(result.model.fc.weight, model.fc.weight)
    assert any("in training mode forward returns" in note for note in result.steps[1].notes)
    again = compress(model, [PruneChannels(ratio=0.25), Quantize(), TRAIN], data)
    assert any("along the path of evaluation" in note for note in again.steps[3].notes)


class Noisy(nn.Module):
    """Skips a block at random, adds noise, or writes numbers of the batch, in training mode alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.stem, self.conv = kind, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        inner = F.relu(self.conv(x))
        if self.training and self.kind == "drop path":
            inner = inner * torch.empty(len(x), 1, 1, 1).bernoulli_(0.8).div_(0.8)
        if self.training and self.kind == "noise":
            inner = inner + 0.1 * torch.randn_like(inner)
        if not self.training or self.kind != "skips":
            x = x + inner
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("kind", ["drop path", "noise", "skips"])
def test_training_with_quantized_activations_though_training_takes_another_path(kind: str, data: Data) -> None:
    model = Noisy(kind)
    chain = [Quantize(bits=4, learn=True), Distill(epochs=1, batch_size=16)]
    assert check(model, data, chain).ok
    result = compress(model, chain, data)
    assert any("left out" in note for note in result.steps[2].notes)


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).relu()
        return self.fc(h.view(h.size(0), -1))


class Clips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Conv3d(1, 4, 3), nn.Linear(4, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.deep(self.flat(x).unsqueeze(1)).relu().mean((2, 3, 4)))


@pytest.mark.parametrize("kind", [Views, Clips])
def test_memory_formats_are_those_that_the_model_can_take(kind: type[nn.Module], data: Data) -> None:
    for step in (TRAIN, Distill(epochs=1, batch_size=16)):
        assert not compress(kind(), [step], data).steps[1].notes


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        (nn.Softmax(1), "probabilities"),
        (nn.LogSoftmax(1), "log-probabilities"),
        (nn.Sigmoid(), "independent probabilities"),
        (nn.Identity(), "logits"),
    ],
)
def test_training_goes_through_the_last_layer(last: nn.Module, kind: str, data: Data) -> None:
    body = net()
    model = nn.Sequential(body, last)
    ready = admit(model, data)
    assert ready.outputs == kind
    assert any("losses are computed on the logits" in note for note in ready.notes) == (kind != "logits")
    with torch.no_grad():
        z, back = body.eval()(data.train.x), to_logits(ready.model(data.train.x), ready.outputs)
    if kind in ("independent probabilities", "logits"):
        torch.testing.assert_close(back, z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(back.softmax(1), z.softmax(1), atol=1e-5, rtol=1e-4)
    trained = compress(model, [Distill(epochs=2, batch_size=16, precision="fp32")], data)
    plain = compress(body, [Distill(epochs=2, batch_size=16, precision="fp32")], data)
    if kind != "independent probabilities":
        difference = trained.model(data.train.x).argmax(1) != plain.model(data.train.x).argmax(1)
        assert float(difference.float().mean()) < 0.05


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("last", [nn.Identity(), nn.Sigmoid()])
def test_one_output_gets_a_recipe_for_two_that_works(last: nn.Module, squeezed: bool) -> None:
    data = tiny.tiny_data((10,))
    for part in (data.train, data.validation, data.calibration):
        part.y.remainder_(2)
    one = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1), last, nn.Flatten(0 if squeezed else 1)).eval()
    with pytest.raises(ModelError, match="one number for each example") as caught:
        compress(one, [Quantize()], data)
    space: dict[str, Any] = {"torch": torch, "model": one}
    exec(textwrap.dedent(str(caught.value).partition("\n")[2]), space)
    assert compress(space["model"], [Quantize()], data).model(data.train.x).shape == (64, 2)
    with pytest.raises(DataError, match="give it two"):
        top1(torch.zeros(3, 1).numpy(), torch.tensor([0, 1, 0]).numpy())


class Awkward(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.fc = kind, nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if self.kind == "rrelu":
            h = F.rrelu(h, 0.1, 0.3, self.training)
        if self.kind == "leaky_relu":
            h = F.leaky_relu(h, 0.2)
        if self.kind == "adaptive_max_pool2d":
            h = F.adaptive_max_pool2d(h, (2, 4))
        if self.kind == "max_pool2d":
            h = F.max_pool2d(h, (4, 2))
        if self.kind == "torch.where" and h.max() > 1e6:
            h = h / h.max()
        return self.fc(h.mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "says", "instead"),
    [
        ("rrelu", "aten.rrelu has no ONNX form.*leaky_relu", "leaky_relu"),
        ("adaptive_max_pool2d", "aten.adaptive_max_pool2d has no ONNX form.*max_pool2d", "max_pool2d"),
        ("torch.where", "(?s)choose with torch.where", ""),
    ],
)
def test_what_cannot_be_exported_is_said_before_training(kind: str, says: str, instead: str, data: Data) -> None:
    model = Awkward(kind).eval()
    assert re.search(says, check(model, data, [TRAIN]).problems[0])
    assert any(re.search(says, note) for note in compress(model, [TRAIN], data).steps[0].notes)
    if instead:
        mended = Awkward(instead).eval()
        mended.load_state_dict(model.state_dict())
        torch.testing.assert_close(mended(data.train.x), model(data.train.x))
        assert not export_problem(mended, data.train.x[:2])


def test_what_can_be_exported_is_not_warned_of(data: Data, tmp_path: Path) -> None:
    for kind in ("cnn", "mlp", "attention"):
        model, own = tiny.tiny(kind)
        assert export_problem(model, own.calibration.x[:2]) == ""
        export_onnx(model, tmp_path / "model.onnx", own.calibration.x[:2])


PREFIXES = ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_under_the_names_of_wrappers(prefix: str, wrapped: bool) -> None:
    trained, model = net(), net()
    weights = {prefix + name: torch.rand_like(t.float()) for name, t in trained.state_dict().items()}
    load_into(nn.DataParallel(model) if wrapped else model, weights, "weights")
    assert torch.equal(model[0].weight, weights[prefix + "0.weight"])


class Config:
    def __init__(self) -> None:
        self.lr = 0.1


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (lambda m: {"model": m.state_dict(), "args": argparse.Namespace(lr=0.1)}, r"argparse\.Namespace at \['args'\]"),
        (lambda m: {"epoch": 3, "ema": m.state_dict(), "hyper": {"config": Config()}}, r"Config at \['hyper'\]\['con"),
        (lambda m: {"model": m, "epoch": 3}, r"at \['model'\]"),
        (lambda m: m, "at the top"),
    ],
)
def test_the_recipe_for_a_checkpoint_with_objects_works(
    held: Callable[[nn.Module], Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    (tmp_path / "net_of_gate.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), "
        "nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), "
        "nn.Flatten(), nn.Linear(8, 4))\n"
    )
    torch.save(held(model), tmp_path / "w.pt")
    spec = f"{tmp_path / 'net_of_gate.py'}:make"
    with pytest.raises(StorageError, match="was not executed") as caught:
        load_model(spec, tmp_path / "w.pt")
    assert re.search(says, str(caught.value)), caught.value
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(str(caught.value).partition("\n")[2]), {})
    loaded = load_model(spec, tmp_path / "w.safetensors")
    assert torch.equal(loaded.state_dict()["0.weight"], model[0].weight)


class _KeepsFeatures(nn.Module):
    """Keeps the features of its last forward, and the way they were computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.features = F.relu(self.first(x))
        return self.fc(F.relu(self.second(self.features)).mean((2, 3)))


@pytest.mark.parametrize(
    "method",
    [
        PruneChannels(ratio=0.25, criterion="taylor"),
        Distill(epochs=1, batch_size=16, lr=0.01),
        TrainSparse(epochs=1, batch_size=16, lr=0.01),
    ],
    ids=lambda method: type(method).__name__,
)
def test_methods_that_need_gradients_work_where_a_forward_keeps_features(method: Any) -> None:
    compress(_KeepsFeatures(), [method], tiny.tiny_data((3, 8, 8)))
