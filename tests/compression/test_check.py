"""What is known before a run: layers, methods, time, and every problem at once."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from conformance.test_odd_models import Normed
from job import MODULE, Job, invoke
from nutlet import errors
from nutlet.compression.check import check
from nutlet.compression.pipeline import compress
from nutlet.compression.time_estimate import Estimate, Stopwatch
from nutlet.data.examples import Data, Examples
from nutlet.errors import NutletError
from nutlet.formats.onnx.export import export_onnx
from nutlet.methods import (
    Distill,
    DropBlocks,
    Factorize,
    FineTune,
    LotteryTicket,
    PruneChannels,
    PruneGradually,
    PruneWeights,
    Quantize,
    ReestimateNorms,
    TrainSparse,
)
from nutlet.methods.base import Method


@pytest.fixture(scope="module")
def cnn() -> tuple[nn.Module, Data]:
    return tiny.tiny("cnn")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(sys, "path", sys.path[:])
    return Job(tmp_path)


def test_layers_and_who_leaves_them_alone(cnn: tuple[nn.Module, Data]) -> None:
    model, data = cnn
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = check(model, data)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert found.ok
    assert found.steps == ()
    layers = {layer.name: layer for layer in found.layers}
    assert list(layers)[:3] == ["stem", "norm", "block1.conv1"]
    assert (layers["stem"].kind, layers["stem"].shape, layers["stem"].parameters) == ("Conv2d", (8, 3, 3, 3), 216)
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)
    assert layers["depthwise"].left_alone["Factorize"] == "a grouped convolution"
    assert layers["stem"].left_alone["DropBlocks"] == "in no block that can go"
    assert "Quantize" not in layers["stem"].left_alone
    assert json.loads(json.dumps(found.to_dict()))["ok"] is True
    assert "no problem found" in str(found)


def test_a_good_recipe(cnn: tuple[nn.Module, Data]) -> None:
    model, data = cnn
    steps = [PruneChannels(ratio=0.3), Distill(epochs=3, batch_size=16, lr=0.01), Quantize()]
    found = check(model, data, steps)
    assert found.problems == found.advice == ()
    assert found.methods == ("PruneChannels", "Distill", "Quantize")
    assert [step.step for step in found.steps] == ["1 PruneChannels", "2 Distill", "3 Quantize"]
    assert all(0 < step.low < step.high for step in found.steps)
    low, high = found.seconds
    assert low < sum(step.seconds for step in compress(model, steps, data).steps) < 10 * high
    assert "1 PruneChannels: " in str(found)


def test_time_grows_with_what_is_asked_for(cnn: tuple[nn.Module, Data]) -> None:
    watch = Stopwatch(*cnn)
    short, long = (watch.estimate("x", FineTune(epochs=epochs, batch_size=16)) for epochs in (10, 1000))
    assert 20 < long.high / short.high < 300
    assert str(Estimate("x", 1800, 9000)) == "x: 0.5 to 2.5 h"
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    watch.estimate("x", FineTune(epochs=1, batch_size=16))
    assert torch.equal(torch.rand(1), expected), "randomness of the caller was used up"


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ([PruneWeights(sparsity=0.5, exclude=("nowhere",))], "step 1: .*'nowhere' matches no module"),
        ([DropBlocks(drop=9)], "only 2 blocks can go"),
        ([Factorize(rank=9, include=("block1",))], "rank is 9, but block1.conv1 is a 8 x 72 matrix"),
        ([Factorize(rank=17)], "would leave every layer alone"),
        ([Quantize(), "Quantise"], "step 2: .*did you mean 'Quantize'"),
        ([{"PruneWeights": {"sparsity": 2}}], "step 1: .*sparsity is 2"),
        ([], "the recipe is empty"),
        (Path("nowhere.yaml"), "could not read the recipe nowhere.yaml"),
    ],
)
def test_problems_of_a_recipe(cnn: tuple[nn.Module, Data], recipe: object, says: str) -> None:
    found = check(*cnn, recipe)  # type: ignore[arg-type]
    assert not found.ok
    assert len(found.problems) == 1
    assert re.search(says, found.problems[0]), found.problems


def test_all_problems_are_told_at_once(cnn: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, data = cnn
    (tmp_path / "file").write_text("")
    (tmp_path / "recipe.yaml").write_text("steps: [Quantise, {PruneWeights: {sparsity: 5}}, {DropBlocks: {drop: 9}}]")
    found = check(model, data, tmp_path / "recipe.yaml", teacher=tiny.TinyMLP(), workdir=tmp_path / "file" / "steps")
    wanted = [
        "did you mean 'Quantize'",
        "sparsity is 5",
        "the teacher: the data give 3x8x8",
        "could not write",
        "only 2 blocks",
    ]
    assert len(found.problems) == len(wanted)
    for problem, text in zip(found.problems, wanted, strict=True):
        assert re.search(text, problem), problem


def test_a_teacher_of_other_classes(cnn: tuple[nn.Module, Data]) -> None:
    model, data = cnn
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 9))
    found = check(model, data, [Distill(epochs=1)], teacher=teacher)
    assert len(found.problems) == 1
    assert found.problems[0].startswith("the teacher gives 9 classes, the model 4; expected as many")
    assert check(model, data, [Distill(epochs=1)], teacher=3).problems[0].startswith("the teacher: found a int")  # type: ignore[arg-type]


def test_a_teacher_in_a_file(cnn: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, data = cnn
    file = export_onnx(model, tmp_path / "teacher.onnx", data.calibration.x[:2])
    assert check(model, data, [Distill(epochs=1)], teacher=file).ok


@pytest.mark.parametrize(
    "method",
    [
        PruneGradually(sparsity=0.5, epochs=2, batch_size=16),
        LotteryTicket(sparsity=0.5, epochs=2, rewind=1, batch_size=16),
        TrainSparse(strength=0.01, epochs=1, batch_size=16),
    ],
    ids=lambda method: type(method).__name__,
)
def test_methods_that_prune_while_they_train_are_timed(cnn: tuple[nn.Module, Data], method: Method) -> None:
    found = check(*cnn, [method])
    assert found.ok
    assert found.steps[0].high > found.steps[0].low > 0


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Quantize(granularity="group", group_size=7), "divides the weights of no channel"),
        (PruneWeights(pattern="3:7"), "no layer in scope can take"),
        (PruneWeights(sparsity=0.5, pattern="block", block=(5, 5)), "no layer in scope can take"),
        (ReestimateNorms(include=("mix",)), "matches no module"),
    ],
)
def test_options_that_fit_no_layer_are_foreseen(cnn: tuple[nn.Module, Data], method: Method, says: str) -> None:
    found = check(*cnn, [method])
    assert len(found.problems) == 1
    assert says in found.problems[0]
    with pytest.raises(NutletError, match=says):
        compress(cnn[0], [method], cnn[1])


def test_labels_and_weights_that_do_not_fit(cnn: tuple[nn.Module, Data]) -> None:
    model, data = cnn
    wrong = Examples(data.train.x, data.train.y + 3)
    found = check(model, dataclasses.replace(data, train=wrong), [Quantize()])
    assert "labels up to 6, the model has 4 outputs" in found.problems[0]
    assert found.steps == ()
    broken = tiny.tiny("cnn")[0]
    broken.get_parameter("fc.weight").data[0, 0] = float("nan")
    assert "NaN or infinity in fc.weight" in check(broken, data).problems[0]
    assert "fc1" in check(tiny.TinyMLP(), data).problems[0]


def test_a_weight_that_somebody_else_makes() -> None:
    found = check(Normed(), tiny.tiny_data((10,)), [Quantize()])
    assert "something else makes the weight of a" in found.problems[0]
    assert check(Normed(), tiny.tiny_data((10,)), [Quantize(exclude=("a",))]).ok


def test_what_cannot_be_told_yet_is_no_problem(cnn: tuple[nn.Module, Data]) -> None:
    found = check(*cnn, [Factorize(energy=0.5), PruneWeights(sparsity=0.5, include=("mix.0",))])
    assert found.ok
    assert any("step 2, told of the original" in note for note in found.notes)
    assert found.advice == ()
    assert check(*cnn, [Quantize(), PruneWeights(sparsity=0.5)]).advice[0].startswith("PruneWeights after Quantize")


def test_the_command(job: Job) -> None:
    model, data = f"{job.folder / MODULE}:make", ("-d", job.folder / "data.npz", "--calibration", 40)
    (job.folder / "good.yaml").write_text("recover: {FineTune: {epochs: 1}}\nsteps: [{PruneChannels: {ratio: 0.5}}]")
    good = invoke("check", model, *data, "-r", job.folder / "good.yaml", "-o", job.out)
    assert good.exit_code == 0, good.output
    assert "no problem found" in good.stdout
    assert "2 FineTune: " in good.stdout
    (job.folder / "bad.yaml").write_text("steps: [Quantize, {PruneWeights: {sparsity: 0.5, include: [conf]}}]")
    bad = invoke("check", model, *data, "-r", job.folder / "bad.yaml", "--json")
    assert bad.exit_code == 1
    content = json.loads(bad.stdout)
    assert "did you mean 'conv'" in content["problems"][0]
    assert content["advice"]
    assert bad.stderr == ""
    everything = invoke("check", model, *data)
    assert everything.exit_code == 0
    assert "left alone by" in everything.stdout
    silent = invoke("check", model, *data, "-q")
    assert (silent.exit_code, silent.output) == (0, "")
    missing = invoke("check", model, "-d", job.folder / "none.npz")
    assert missing.exit_code == errors.StorageError.exit_code
