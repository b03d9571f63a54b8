from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nutlet.errors import ModelError, NutletError, StorageError
from nutlet.loading import load_model


class Everything(nn.Module):
    """Residual, depthwise, concat, split, tied weights, a layer used twice, odd layers, and a size taken from x."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depth = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.act = nn.PReLU(8)
        self.group = nn.GroupNorm(2, 8)
        self.fc = nn.Linear(8 * 16, 16)
        self.again = nn.Linear(16, 16)
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.again.weight
        self.norm = nn.BatchNorm1d(16)
        self.layer_norm = nn.LayerNorm(16)
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.act(self.depth(x))
        x = F.max_pool2d(self.group(self.up(x)), 2)
        x = F.adaptive_avg_pool2d(x, 4)
        x = x.view(x.size(0), -1)
        x = self.norm(self.again(self.again(self.fc(x))))
        x = self.tied(F.gelu(x)) * self.scale
        x += 1
        left, right = self.layer_norm(x).chunk(2, 1)
        x = torch.cat([left, right.sigmoid(), x], dim=1)
        return self.head(self.drop(x))


def trained(model: nn.Module, *shape: int) -> nn.Module:
    torch.manual_seed(0)
    for _ in range(3):
        model(torch.randn(8, *shape))
    return model.eval()


def export(model: nn.Module, path: Path, *shape: int, dynamic: bool = True) -> torch.export.ExportedProgram:
    free = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    program = torch.export.export(model, (torch.randn(4, *shape),), dynamic_shapes=free)
    torch.export.save(program, path)
    return program


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    path = tmp_path_factory.mktemp("program") / "everything.pt2"
    model = trained(Everything(), 3, 16, 16)
    export(model, path, 3, 16, 16)
    return path, model


def test_same_outputs_and_real_layers(everything: tuple[Path, nn.Module]) -> None:
    path, model = everything
    rebuilt = load_model(str(path))
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 16, 16)
        torch.testing.assert_close(rebuilt(x), model(x), rtol=1e-6, atol=1e-6)
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.Dropout)
    own = {name: type(m) for name, m in rebuilt.named_modules() if isinstance(m, kinds)}
    wanted = {name: type(m) for name, m in model.named_modules() if isinstance(m, kinds)}
    assert wanted.pop("drop") is own.pop("dropout")
    assert own == wanted
    assert {n for n, _ in rebuilt.named_parameters()} == {n for n, _ in model.named_parameters()}
    assert rebuilt.get_submodule("tied").weight is rebuilt.get_submodule("again").weight
    assert rebuilt.get_submodule("depth").groups == 8  # type: ignore[union-attr]


def test_the_result_trains_copies_and_exports(everything: tuple[Path, nn.Module], tmp_path: Path) -> None:
    model = copy.deepcopy(load_model(str(everything[0]))).train()
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    x = torch.randn(3, 3, 16, 16)
    export(model.eval(), tmp_path / "again.pt2", 3, 16, 16)
    torch.testing.assert_close(load_model(str(tmp_path / "again.pt2"))(x), model(x), rtol=1e-6, atol=1e-6)


def test_channels_may_be_removed_before_the_flattening(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.conv(x).reshape(x.shape[0], 16))

    export(Net().eval(), tmp_path / "net.pt2", 1, 4, 4)
    model = load_model(str(tmp_path / "net.pt2"))
    model.conv = nn.Conv2d(1, 3, 3)
    model.fc = nn.Linear(12, 2)
    assert model(torch.zeros(5, 1, 4, 4)).shape == (5, 2)


def test_training_mode_and_fixed_batches(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    export(model.train(), tmp_path / "train.pt2", 1, 4, 4)
    with pytest.raises(ModelError, match="in training mode"):
        load_model(str(tmp_path / "train.pt2"))

    # A fixed batch is no obstacle where nothing in the graph depends on it, and is refused where something does.
    export(model.eval(), tmp_path / "fixed.pt2", 1, 4, 4, dynamic=False)
    assert load_model(str(tmp_path / "fixed.pt2"))(torch.zeros(3, 1, 4, 4)).shape == (3, 2)

    class Mixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(x.shape[0], 2, 2).view(x.shape[0] * 2, 2).view(x.shape[0], 4)

    export(Mixed(), tmp_path / "mixed.pt2", 4, dynamic=False)
    with pytest.raises(ModelError, match="dynamic batch"):
        load_model(str(tmp_path / "mixed.pt2"))


def test_real_network(real_data: Path, tmp_path: Path) -> None:
    model = load_model(f"{real_data / 'models/arch.py'}:CifarResNet(20)", real_data / "models/resnet20_cifar10.pt")
    export(model, tmp_path / "net.pt2", 3, 32, 32)
    x = torch.randn(3, 3, 32, 32)
    rebuilt = load_model(str(tmp_path / "net.pt2"))
    torch.testing.assert_close(rebuilt(x), model(x), rtol=1e-6, atol=1e-6)
    assert sum(isinstance(m, nn.Conv2d) for m in rebuilt.modules()) == 19
    assert sum(p.numel() for p in rebuilt.parameters()) == sum(p.numel() for p in model.parameters())


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return target


def edit_json(suffix: str, edit: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith(suffix):
            return data
        value = json.loads(data)
        edit(value)
        return json.dumps(value).encode()

    return change


def first_node(model: Any) -> Any:
    return model["graph_module"]["graph"]["nodes"][0]


EVIL = "__import__('os')._exit(1)"


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: first_node(m).update(target="torch.serialization.os.system"),
        lambda m: first_node(m).update(target="torch.ops.aten.from_file.default"),
        lambda m: first_node(m).update(target="_operator.attrgetter"),
        lambda m: first_node(m)["inputs"].append({"name": f"a={EVIL},b", "arg": {"as_int": 1}, "kind": 2}),
        lambda m: first_node(m)["inputs"][0].update(arg={"as_custom_obj": {"name": "x", "class_fqn": "y"}}),
        lambda m: first_node(m)["inputs"][0].update(arg={"as_tensor": {"name": "nothing"}}),
        lambda m: m["graph_module"]["signature"]["input_specs"][-1]["user_input"]["arg"]["as_tensor"].update(name=EVIL),
        lambda m: m["graph_module"]["signature"]["input_specs"][0]["parameter"].update(parameter_name=EVIL),
        lambda m: m["schema_version"].update(major=99),
        lambda m: m.pop("graph_module"),
    ],
)
def test_hostile_graphs(everything: tuple[Path, nn.Module], tmp_path: Path, edit: Callable[[Any], None]) -> None:
    path = rewrite(everything[0], tmp_path / "evil.pt2", edit_json("models/model.json", edit))
    with pytest.raises(NutletError):
        load_model(str(path))


def test_shape_expressions_are_never_evaluated(everything: tuple[Path, nn.Module], tmp_path: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        return data.replace(b"Symbol('s", f"({EVIL}) + Symbol('s".encode()) if name.endswith("model.json") else data

    path = rewrite(everything[0], tmp_path / "evil.pt2", change)
    assert load_model(str(path))(torch.zeros(1, 3, 16, 16)).shape == (1, 5)


def weight_entry(config: Any) -> Any:
    return config["config"]["head.weight"]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda c: weight_entry(c).update(use_pickle=True), "pickled object"),
        (lambda c: weight_entry(c).update(path_name="custom_obj_0"), "pickled object"),
        (lambda c: weight_entry(c)["tensor_meta"].update(sizes=[{"as_int": 10**6}, {"as_int": 10**6}]), "declares"),
        (lambda c: weight_entry(c)["tensor_meta"].update(storage_offset={"as_int": 5}), "declares"),
        (lambda c: weight_entry(c)["tensor_meta"].update(strides=[{"as_int": -1}, {"as_int": 1}]), "layout"),
        (lambda c: c["config"].update({EVIL: weight_entry(c)}), "named"),
    ],
)
def test_hostile_weights(
    everything: tuple[Path, nn.Module], tmp_path: Path, edit: Callable[[Any], None], says: str
) -> None:
    path = rewrite(everything[0], tmp_path / "evil.pt2", edit_json("model_weights_config.json", edit))
    with pytest.raises(StorageError, match=says):
        load_model(str(path))


def test_other_archives(everything: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    path.write_bytes(everything[0].read_bytes()[:5000])
    with pytest.raises(StorageError, match="cannot be read"):
        load_model(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b", "c")
    with pytest.raises(StorageError, match="holds no program"):
        load_model(str(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/models/model.json", "0" * 10_000)
    with pytest.raises(StorageError, match="compressed"):
        load_model(str(path))
    with pytest.raises(StorageError, match="found no file"):
        load_model(str(tmp_path / "gone.pt2"))
    with pytest.raises(ModelError, match="holds its weights already"):
        load_model(str(path), tmp_path / "w.pt")
