"""The step and the layer that ruined a model are named."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import tiny
from job import Job, invoke
from nutlet.compression.compressed import Compressed
from nutlet.compression.diagnose import diagnose
from nutlet.compression.history import Size, Step
from nutlet.compression.pipeline import compress
from nutlet.compression.won_back import accounts, recovery
from nutlet.data.examples import Data
from nutlet.errors import ConfigError
from nutlet.graph.diff import activation_errors, bare, changed_places, with_places
from nutlet.measurement.results import ACCURACY
from nutlet.methods import (
    Distill,
    DropBlocks,
    Factorize,
    FineTune,
    PruneChannels,
    PruneWeights,
    Quantize,
    known_methods,
)
from nutlet.methods import base as registry
from nutlet.methods.base import Method, Plan, register
from nutlet.report.load import schema
from nutlet.tasks.predict import predict
from nutlet.training.context import Context

GENTLE = PruneWeights(sparsity=0.05)


@pytest.fixture(scope="module")
def cnn() -> tuple[nn.Module, Data]:
    return tiny.tiny("cnn")


def ruin(layer: str) -> PruneWeights:
    """Return a step that leaves one weight of each row or so in a layer."""
    return PruneWeights(sparsity=0.99, include=(layer,), distribution="uniform")


@pytest.mark.parametrize("layer", ["mix", "fc", "block2.conv1"])
@pytest.mark.parametrize("number", [1, 2])
def test_the_ruined_layer_is_named(cnn: tuple[nn.Module, Data], layer: str, number: int) -> None:
    model, data = cnn
    chain = [GENTLE, Factorize(energy=0.999, include=("branch",)), Quantize()]
    chain.insert(number, ruin(layer))
    result = compress(model, chain, data)
    found = diagnose(result, model, data)
    assert (found.step, found.method, found.culprit) == (number + 1, "PruneWeights", layer)
    assert [(step.name, step.accuracy) for step in found.accuracies] == [(s.name, s.accuracy) for s in result.steps]
    assert f"The layer {layer} does it" in found.words[1]
    assert f"exclude: [{layer}]" in found.words[1]
    assert "milder setting: `PruneWeights: {" in found.words[2]
    assert "recover: Distill" in found.words[3]
    moved = [site.site for site in found.sites if site.error > 1e-3]
    assert moved[0].startswith(f"{layer}/"), "the first result that moved is that of the layer"


def test_one_of_many_layers_is_named_and_the_others_are_below(cnn: tuple[nn.Module, Data]) -> None:
    model, data = cnn
    broken = copy.deepcopy(model)
    for name in ("stem", "mix", "fc"):  # magnitudes such that a global ranking takes all from one layer
        broken.get_parameter(f"{name}.weight").data *= 1e-3 if name == "mix" else 1.0
    found = diagnose(compress(broken, [PruneWeights(sparsity=0.5)], data), broken, data, step="PruneWeights")
    assert found.culprit in dict(model.named_modules())
    assert [layer.accuracy for layer in found.layers] == sorted(layer.accuracy for layer in found.layers)
    assert len(found.layers) > 3


def test_folded_norms_are_exchanged_with_their_layer(cnn: tuple[nn.Module, Data]) -> None:
    model, data = cnn
    after = bare(compress(model, [Quantize()], data).model)
    places = changed_places(model, after, data.calibration.x[:2])
    assert places["stem"] == ("stem", "norm")
    assert places["block1.conv2"] == ("block1.conv2", "block1.bn2")
    assert places["fc"] == ("fc",)
    assert "norm" not in places
    plain = predict(model, data.validation)
    for together in places.values():
        assert float((predict(with_places(model, after, together), data.validation) - plain).abs().max()) < 0.5
    every = [name for together in places.values() for name in together]
    torch.testing.assert_close(
        predict(with_places(model, after, every), data.validation), predict(after, data.validation)
    )


def test_quantized_activations_are_told_from_weights(cnn: tuple[nn.Module, Data]) -> None:
    model, data = cnn
    result = compress(model, [Quantize()], data)
    for quantizer in result.model.edits.values():
        quantizer.scale *= 40  # type: ignore[operator,union-attr]
    steps = (result.steps[0], dataclasses.replace(result.steps[1], accuracy=0.3))
    found = diagnose(Compressed(result.model, steps, 0, result.example), model, data)
    assert found.unquantized == pytest.approx(1.0)
    assert any("quantized activations do it" in word for word in found.words)
    assert any("Quantize: {activations: false}" in word for word in found.words)


@pytest.mark.parametrize(
    ("chain", "step", "names"),
    [
        ([PruneChannels(ratio=0.5)], 1, {"stem", "mix"}),
        ([Quantize(), PruneChannels(ratio=0.5)], 2, {"stem", "mix"}),
        ([DropBlocks(drop=2)], 1, {"block1", "block2"}),
        ([Factorize(energy=0.4)], 1, {"fc", "stem"}),
        ([PruneWeights(sparsity=0.4), FineTune(epochs=1, batch_size=16)], 2, {"fc", "stem", "norm"}),
        ([Quantize(), FineTune(epochs=1, batch_size=16, lr=0.001)], 2, {"fc", "stem"}),
    ],
    ids=lambda value: "-".join(type(step).__name__ for step in value) if isinstance(value, list) else None,
)
def test_every_kind_of_step_can_be_looked_into(
    cnn: tuple[nn.Module, Data], chain: list[Method], step: int, names: set[str]
) -> None:
    model, data = cnn
    result = compress(model, chain, data)
    before = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    found = diagnose(result, model, data, step=step)
    assert names <= {layer.name for layer in found.layers}
    assert found.sites
    assert found.after == result.steps[step].accuracy
    assert all(torch.equal(before[name], tensor) for name, tensor in result.model.state_dict().items())
    assert str(found)


def test_no_loss_is_said_and_unknown_steps_are_refused(cnn: tuple[nn.Module, Data]) -> None:
    model, data = cnn
    result = compress(model, [GENTLE], data)
    found = diagnose(result, model, data)
    assert len(found.words) == 1
    assert "may be chance" in found.words[0]
    for wrong in (0, 2, "Quantise"):
        with pytest.raises(ConfigError, match=r"there is no step .*1 PruneWeights"):
            diagnose(result, model, data, step=wrong)
    with pytest.raises(ConfigError, match="no step but the original"):
        diagnose(Compressed(model, result.steps[:1], 0, result.example), model, data)


def test_later_training_wins_losses_back() -> None:
    size = Size(1, 4, 4, 1, 1, ())
    chain = [
        ({}, 0.9), ({"PruneChannels": {"ratio": 0.5}}, 0.8), ({"PruneWeights": {"sparsity": 0.5}}, 0.75),
        ({"FineTune": {}}, 0.82), ({"Quantize": {}}, 0.79), ({"CorrectBias": {}}, 0.8), ({"Distill": {}}, 0.95),
    ]  # fmt: skip
    found = accounts([Step(method, {}, accuracy, size, 0.0) for method, accuracy in chain])
    assert [step.lost for step in found] == pytest.approx([0, 0.1, 0.05, 0, 0.03, 0, 0])
    # Of the 7 points of FineTune 5 go to the step just before it; what comes without training is nobody's.
    assert [step.won_back for step in found] == pytest.approx([0, 0.1, 0.05, 0, 0.03, 0, 0])
    earlier = accounts([Step(method, {}, accuracy, size, 0.0) for method, accuracy in chain[:-1]])
    assert [step.won_back for step in earlier] == pytest.approx([0, 0.02, 0.05, 0, 0, 0])
    assert list(recovery(earlier, ACCURACY)) == [
        "Step 1, PruneChannels, lost 10.0 points; later training won back 2.0 points of it.",
        "Step 2, PruneWeights, lost 5.0 points; later training won back 5.0 points of it.",
        "Step 4, Quantize, lost 3.0 points; later training won back nothing of it.",
    ]
    untrained = accounts([Step(method, {}, accuracy, size, 0.0) for method, accuracy in chain[:3]])
    assert list(recovery(untrained, ACCURACY)) == []


def test_the_step_whose_loss_stayed_is_looked_into(cnn: tuple[nn.Module, Data]) -> None:
    model, data = cnn
    result = compress(model, [GENTLE, FineTune(epochs=1, batch_size=16, lr=0.001), Quantize()], data)
    told = [0.95, 0.5, 0.94, 0.7]
    steps = tuple(dataclasses.replace(step, accuracy=a) for step, a in zip(result.steps, told, strict=True))
    first = dataclasses.replace(steps[0], accuracy=result.steps[0].accuracy)
    found = diagnose(Compressed(result.model, (first, *steps[1:]), 0, result.example), model, data)
    assert found.step == 3
    assert found.to_dict()["accuracies"][1]["won_back"] == pytest.approx(0.44)
    assert "PruneWeights, lost" in str(found)
    assert "won back 44.0 points" in str(found)


def test_the_folder_of_the_run_saves_the_work(cnn: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, data = cnn
    chain = [FineTune(epochs=1, batch_size=16), ruin("fc"), Quantize()]
    compress(model, chain, data, workdir=tmp_path / "steps").save(tmp_path / "saved")
    folders = set((tmp_path / "steps").iterdir())
    found = diagnose(tmp_path / "saved", model, data, workdir=tmp_path / "steps")
    assert set((tmp_path / "steps").iterdir()) == folders
    again = diagnose(tmp_path / "saved", model, data)
    assert found == again
    assert found.culprit == "fc"


def test_an_original_that_is_not_that_of_the_run(cnn: tuple[nn.Module, Data]) -> None:
    model, data = cnn
    result = compress(model, [ruin("mix")], data)
    other = copy.deepcopy(model)
    other.get_parameter("fc.weight").data.neg_()
    with pytest.raises(ConfigError, match=r"the original has an accuracy of .*, the run began with .*; expected its"):
        diagnose(result, other, data)
    with pytest.raises(ConfigError, match="examples is 0; expected 1 or more"):
        diagnose(result, model, data, examples=0)


def test_the_teacher_of_the_run(tmp_path: Path) -> None:
    model, data = tiny.tiny("mlp")
    teacher = copy.deepcopy(model)
    for parameter in teacher.fc2.parameters():
        parameter.data.neg_()
    chain = [Distill(epochs=20, lr=0.05, kd_weight=1.0, batch_size=16), ruin("fc1")]
    result = compress(model, chain, data, teacher=teacher, workdir=tmp_path)
    folders = set(tmp_path.iterdir())
    found = diagnose(result, model, data, step=2, teacher=teacher, workdir=tmp_path)
    assert set(tmp_path.iterdir()) == folders
    assert {layer.name for layer in found.layers} == {"fc1"}
    without = diagnose(result, model, data, step=2)
    assert any("Was there a teacher?" in note for note in without.notes)


def test_several_ruined_layers_are_all_named(cnn: tuple[nn.Module, Data]) -> None:
    model, data = cnn
    found = diagnose(compress(model, [FineTune(epochs=1, lr=50.0, batch_size=16)], data), model, data)
    assert len(found.ruinous) > 1
    assert found.culprit == ""
    assert f"Each of {len(found.ruinous)} layers does it alone" in found.words[1]
    assert "exclude" not in found.words[1]


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> type[Method]:
    monkeypatch.setattr(registry.REGISTRY, "kinds", dict(known_methods()))

    @register
    @dataclass(frozen=True, kw_only=True)
    class Halve(Method):
        """Halve every value."""

        effect: ClassVar[str] = "width"

        def plan(self, model: nn.Module, context: Context) -> Plan:
            return {"by": 2}

        @staticmethod
        def apply(model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
            for parameter in model.parameters():
                parameter.data /= plan["by"]
            return model

    return Halve


def test_what_cannot_be_told_apart_is_said(cnn: tuple[nn.Module, Data], whole: type[Method]) -> None:
    model, data = cnn
    found = diagnose(compress(model, [whole()], data), model, data)
    assert found.layers == ()
    assert found.culprit == ""
    assert any("as a whole" in note for note in found.notes)


def test_errors_along_the_depth(cnn: tuple[nn.Module, Data]) -> None:
    model, data = cnn
    x = data.calibration.x
    assert all(site.error == 0 and site.cosine == pytest.approx(1) for site in activation_errors(model, model, x))
    other = copy.deepcopy(model)
    other.get_parameter("fc.weight").data *= -1
    other.get_parameter("fc.bias").data *= -1
    last = activation_errors(model, other, x)[-1]
    assert (last.site, last.error, last.cosine) == ("fc/linear/0", pytest.approx(2), pytest.approx(-1))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(sys, "path", sys.path[:])
    return Job(tmp_path)


def test_the_command(job: Job) -> None:
    import jsonschema

    recipe = """
steps:
- FineTune: {epochs: 5, lr: 0.1, batch_size: 32}
- PruneWeights: {sparsity: 0.998, include: [fc]}
- Quantize"""
    assert job.compress("-q", recipe=recipe).exit_code == 0
    arguments = ["diagnose", *job.arguments(recipe=recipe)[1:4], "-o", job.out, "--calibration", 40]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "The layer fc does it" in " ".join(result.stdout.split())
    content = json.loads((job.out / "diagnosis.json").read_text())
    assert content["layers"][0]["name"] == "fc"
    report = json.loads((job.out / "report.json").read_text())
    jsonschema.validate(report, schema())
    assert report["diagnosis"] == content
    assert ["sentence" in step for step in report["history"]] == [False, True, True, True]
    page = (job.out / "report.html").read_text()
    assert "Which step and which layer lost it?" in page
    assert invoke("report", job.out).exit_code == 0
    assert (job.out / "report.html").read_text() == page
    named = invoke(*arguments, "--step", "Quantize", "--json")
    assert json.loads(named.stdout)["method"] == "Quantize"
    assert invoke(*arguments, "--step", "Quantise").exit_code == ConfigError.exit_code
