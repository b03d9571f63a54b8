"""Wrong use of a sound model is told in `check`, in the terminal of `compress`, and in the headline of the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nutlet as nl
from nutlet.cli import app
from nutlet.compression.sanity import look
from nutlet.loading import load_data
from nutlet.training.context import Context

MEAN, STD = (0.5,), (0.1,)

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
"""


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return grey images of little contrast: the brighter, the higher the class."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % 4)
    x = random.normal(98 + 20 * labels[:, None, None], 8, (count, 8, 8))
    return x.round().clip(0, 255).astype("uint8"), labels


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `net.py`, `weights.pt`, `data.npz` and images by class; the net was trained with mean and std."""
    folder = tmp_path_factory.mktemp("sane")
    (folder / "net.py").write_text(NET)
    (x, y), (test_x, test_y) = images(800, 0), images(200, 1)
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=test_x, y_test=test_y)
    model = nl.load_model(f"{folder / 'net.py'}:make")
    data = nl.split(nl.Examples.from_arrays(x, y, mean=MEAN, std=STD))
    nl.FineTune(epochs=8, lr=0.05, batch_size=32).train(model, Context(data=data, teacher=model))
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder


@pytest.fixture
def told(trained, tmp_path, capfd):
    """Run `check` and `compress`; return what each says, and the headline of the page."""

    def run(*options: str, data: Path | None = None, weights: bool = True) -> tuple[str, str, str]:
        given = [f"{trained / 'net.py'}:make", "--data", str(data or trained / "data.npz"), *options]
        given += ["--weights", str(trained / "weights.pt")] if weights else []
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("steps:\n- PruneWeights: {sparsity: 0.3}\n")
        capfd.readouterr()
        app(["check", *given], standalone_mode=False)
        checked = capfd.readouterr().out
        app(
            ["compress", *given, "--recipe", str(recipe), "--out", str(tmp_path / "out"), "--seconds", "0.01"],
            standalone_mode=False,
        )
        terminal = capfd.readouterr()
        page = (tmp_path / "out" / "report.html").read_text()
        headline = page.split('<p class="verdict">')[1].split("</p>")[0]
        return " ".join(checked.split()), " ".join((terminal.out + terminal.err).split()), headline

    return run


def everywhere(told: tuple[str, str, str], words: str) -> bool:
    return all(words in place for place in told)


def test_a_sound_setup_is_not_warned_of(told):
    places = told("--mean", "0.5", "--std", "0.1")
    assert not any("WARNING" in place or "Doubtful" in place for place in places), places


def test_forgotten_weights(told):
    places = told("--mean", "0.5", "--std", "0.1", weights=False)
    assert everywhere(places, "The original looks untrained: its layers hold what new ones start with.")
    assert "Give its weights with --weights FILE" in places[0]


def test_forgotten_mean(told):
    places = told()
    assert everywhere(places, "scaled to [0, 1] and no mean and std the original is right on")
    assert "(--mean, --std" in places[1]


def test_wrong_mean(told):
    places = told("--mean", "128", "--std", "25.5")
    assert everywhere(places, "before mean 128 and std 25.5 are applied, which would fit 0 to 255.")
    assert "Divide mean and std by 255" in places[0]


def test_val_folder(told, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    for part, (x, y) in {"train": images(60, 2), "val": images(40, 3)}.items():
        for k, (image, label) in enumerate(zip(x, y, strict=True)):
            place = tmp_path / "images" / part / f"class{label}" / f"{k}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            pillow.fromarray(image).save(place)
    places = told("--mean", "0.5", "--std", "0.1", data=tmp_path / "images")
    assert everywhere(places, "images in `val` are the validation set")
    data = load_data(str(tmp_path / "images"))
    assert (len(data.train), len(data.validation), data.test) == (60, 40, None)
    (tmp_path / "images" / "holdout").symlink_to(tmp_path / "images" / "val")
    assert "in `holdout`, which were not read" in str(load_data(str(tmp_path / "images")).findings[-1])
    with pytest.raises(nl.ConfigError, match="leave the share out"):
        load_data(str(tmp_path / "images"), validation=0.2)
    (tmp_path / "images" / "valid").symlink_to(tmp_path / "images" / "val")
    with pytest.raises(nl.DataError, match="val and valid; expected one validation set"):
        load_data(str(tmp_path / "images"))


def test_shuffled_labels(told, trained, tmp_path):
    arrays = dict(np.load(trained / "data.npz"))
    for name in ("y_train", "y_test"):
        arrays[name] = np.random.default_rng(0).permutation(arrays[name])
    np.savez(tmp_path / "shuffled.npz", **arrays)
    assert everywhere(told("--mean", "0.5", "--std", "0.1", data=tmp_path / "shuffled.npz"), "near chance")


def test_classes_in_another_order(told, trained, tmp_path):
    arrays = dict(np.load(trained / "data.npz"))
    for name in ("y_train", "y_test"):
        arrays[name] = (arrays[name] + 1) % 4
    np.savez(tmp_path / "turned.npz", **arrays)
    places = told("--mean", "0.5", "--std", "0.1", data=tmp_path / "turned.npz")
    assert everywhere(places, "the original mostly answers 3 where the label is 0")


def test_what_the_user_expects(told, trained):
    places = told("--mean", "0.5", "--std", "0.1", "--expect", "50")
    assert everywhere(places, "50 % was expected.")
    data = load_data(str(trained / "data.npz"), mean=MEAN, std=STD)
    model = nl.load_model(f"{trained / 'net.py'}:make", trained / "weights.pt")
    assert look(model, data, expect=99.5) == ()
    with pytest.raises(nl.ConfigError, match="expect is nan"):
        look(model, data, expect=float("nan"))


def test_validation_that_the_original_has_seen(trained, tmp_path):
    """A net that knows the training examples by heart."""
    torch.manual_seed(0)
    x, y = torch.randn(300, 400), torch.arange(300) % 3
    model = nn.Sequential(nn.Linear(400, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.linalg.lstsq(x, nn.functional.one_hot(y).float()).solution.T)
        model[0].bias.zero_()
    data = nl.split(nl.Examples.from_arrays(x, y), nl.Examples.from_arrays(torch.randn(300, 400), y), validation=0.5)
    result = nl.compress(model, nl.PruneWeights(sparsity=0.1), data)
    nl.ship(result, model, data, tmp_path, seconds=0.01)
    report = json.loads((tmp_path / "report.json").read_text())
    assert "probably trained on the former" in " ".join(report["history"][0]["notes"])
    assert [finding["about"] for finding in report["findings"]] == ["chance", "seen"]


def test_majority_class_and_a_rare_one():
    labels = torch.tensor([0] * 90 + [1] * 10).repeat(3)
    rows = torch.stack([torch.ones(300), labels.float()], 1)
    data = nl.split(nl.Examples.from_arrays(rows, labels), validation=0.5)
    always, knows = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        for model, weight in ((always, [[9.0, 0.0], [0.0, 0.0]]), (knows, [[9.0, 0.0], [8.0, 2.0]])):
            model.weight.copy_(torch.tensor(weight))
            model.bias.zero_()
    assert "always answering class 0" in look(always, data)[0].words
    assert look(knows, data) == ()
