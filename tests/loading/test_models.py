from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nutlet.errors import DataError, ModelError, StorageError
from nutlet.loading import check_model, load_model

ARCH = """
import torch.nn as nn
class Net(nn.Sequential):
    def __init__(self, width=4, classes=3):
        super().__init__(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 36, classes))
def make(): return Net()
def wrong(): return 3
ready = nn.Linear(2, 2)
"""


@pytest.fixture
def arch(tmp_path: Path) -> str:
    path = tmp_path / f"arch_{tmp_path.name}.py"
    path.write_text(ARCH)
    return str(path)


def test_factory_by_path_with_arguments(arch: str) -> None:
    model = load_model(f"{arch}:Net(6, classes=5)")
    assert not model.training
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    assert type(load_model(f"{arch}:make")) is type(model)
    assert isinstance(load_model(f"{arch}:ready"), nn.Linear)


def test_factory_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here_only.py").write_text(ARCH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert isinstance(load_model("here_only:make"), nn.Module)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (":Nett", "did you mean 'Net'"),
        (":Net(__import__('os'))", "not literals"),
        (":Net(**{})", "not literals"),
        (":Net(1, 2, 3, 4)", "raised TypeError"),
        (":wrong", "gave a int"),
        (":ready(1)", "exists already"),
    ],
)
def test_factories_that_do_not_work(arch: str, call: str, says: str) -> None:
    with pytest.raises(ModelError, match=says.replace("(", r"\(")):
        load_model(arch + call)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere_at_all:f", "found no module"),
        ("gone.py:f", "found no file"),
        ("net.keras", "a Keras model"),
        ("hf:bert", "Hugging Face"),
        ("net.pt", "without their architecture"),
        ("what", "expected `package.module:factory`"),
    ],
)
def test_specs_that_are_refused(spec: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load_model(spec)


@pytest.mark.parametrize("form", ["plain", "nested", "parallel", "safetensors"])
def test_weights(arch: str, tmp_path: Path, form: str) -> None:
    model = load_model(f"{arch}:Net")
    state = {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in model.state_dict().items()}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "nested":
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        torch.save({f"module.{n}": t for n, t in state.items()} if form == "parallel" else state, path)
    loaded = load_model(f"{arch}:Net", path).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize("what", [Evil(), nn.Linear(2, 2)])
def test_pickles_are_not_executed(arch: str, tmp_path: Path, what: object) -> None:
    torch.save({"state_dict": what}, tmp_path / "w.pt")
    with pytest.raises(StorageError, match=r"was not executed(.|\n)*save_file"):
        load_model(f"{arch}:Net", tmp_path / "w.pt")


def test_files_that_are_no_weights(arch: str, tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors", "w.pth", "w.bin"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(StorageError, match=r"expected|damaged"):
            load_model(f"{arch}:Net", tmp_path / name)
    with pytest.raises(StorageError, match="found no file"):
        load_model(f"{arch}:Net", tmp_path / "gone.pt")
    torch.save({"a": 3}, tmp_path / "w.pt")
    with pytest.raises(StorageError, match="no named tensor"):
        load_model(f"{arch}:Net", tmp_path / "w.pt")


def test_weights_that_do_not_fit(arch: str, tmp_path: Path) -> None:
    state = load_model(f"{arch}:Net").state_dict()
    state["3.wieght"] = state.pop("3.weight")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"3\.weight \(did you mean '3\.wieght'"):
        load_model(f"{arch}:Net", tmp_path / "w.pt")
    torch.save(load_model(f"{arch}:Net").state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"0\.weight is 4x1x3x3 in the file and 8x1x3x3 in the model"):
        load_model(f"{arch}:Net(8)", tmp_path / "w.pt")


def test_weights_that_are_not_finite(arch: str, tmp_path: Path) -> None:
    state = load_model(f"{arch}:Net").state_dict()
    state["3.bias"][0] = float("nan")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"NaN or infinity in 3\.bias;"):
        load_model(f"{arch}:Net", tmp_path / "w.pt")


def test_real_checkpoint(real_data: Path) -> None:
    model = load_model(f"{real_data / 'models' / 'arch.py'}:CifarResNet(20)", real_data / "models/resnet20_cifar10.pt")
    assert check_model(model, torch.rand(2, 3, 32, 32), 10) == 10


def test_check_model_in_words() -> None:
    rgb = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    assert check_model(rgb, torch.zeros(2, 3, 8, 8), 5) == 5
    assert rgb.training
    with pytest.raises(ModelError, match=r"data give 1x8x8, the model's first layer \(0\) expects 3 channels"):
        check_model(rgb, torch.zeros(2, 1, 8, 8), 5)
    with pytest.raises(ModelError, match=r"data give 3x9x9, and the layer 2 gets 196 features but expects 144"):
        check_model(rgb, torch.zeros(2, 3, 9, 9), 5)
    with pytest.raises(ModelError, match="gets 2 axes"):
        check_model(rgb, torch.zeros(2, 3), 5)
    with pytest.raises(DataError, match="labels up to 9, the model has 5 outputs"):
        check_model(rgb, torch.zeros(2, 3, 8, 8), 10)


def test_check_model_of_outputs() -> None:
    class Two(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return (input, input)  # type: ignore[return-value]

    x = torch.ones(2, 4)
    with pytest.raises(ModelError, match="gives a tuple"):
        check_model(Two(4, 2), x, 2)
    with pytest.raises(ModelError, match=r"returned shape \(2, 2, 2\)"):
        check_model(nn.Unflatten(1, (2, 2)), x, 2)
    with pytest.raises(ModelError, match="NaN or infinity"):
        check_model(nn.Threshold(9.0, float("inf")), x, 2)
    with pytest.raises(ModelError, match="raised RuntimeError"):
        check_model(nn.Unflatten(1, (3, 2)), x, 2)


def test_import_needs_no_extras() -> None:
    code = "import nutlet.loading, sys; assert not {'PIL', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
