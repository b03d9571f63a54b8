"""Every task through recipes of three families, the file and its measurement; and a new task in one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nutlet as nl
from conformance.task_nets import NETS, Recurrent, Transformer, random, sequences, trained
from nutlet.graph.trace import InstrumentedModel
from nutlet.measurement.parity import parity
from nutlet.methods.base import Method
from nutlet.tasks import known_tasks
from nutlet.tasks.base import REGISTRY, Scores, metric_of
from nutlet.tasks.inputs import as_tensors

TRAINING = {"epochs": 2, "batch_size": 32, "lr": 0.01}
RECIPES: dict[str, list[Method]] = {
    "quantization": [nl.Quantize()],
    "pruning": [nl.PruneChannels(ratio=0.2), nl.FineTune(**TRAINING)],  # type: ignore[arg-type]
    "low_rank": [nl.Factorize(energy=0.9), nl.Distill(**TRAINING)],  # type: ignore[arg-type]
}
LEAST_AGREEMENT = {"quantization": 0.9, "pruning": 0.55, "low_rank": 0.6}


def test_there_is_a_net_for_every_task_of_ours() -> None:
    ours = {name for name, task in known_tasks().items() if type(task).__module__.startswith("nutlet.")}
    assert {name.partition("-")[0] for name in NETS} == ours


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", NETS)
def test_through_a_recipe_the_file_and_the_measurement(name: str, recipe: str, tmp_path: Path) -> None:
    model, data = trained(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = len(model._forward_hooks) + len(model._forward_pre_hooks)
    small = nl.compress(model, RECIPES[recipe], data)
    path = small.export(tmp_path / "model.onnx")
    found = nl.measure(path, data, model, seconds=0.01, batches=(1, 3), threads=(1,))
    task = data.task
    assert (found.task.task, found.task.metric, found.task.unit) == (task.name, task.metric, task.unit)
    assert found.original is not None
    assert found.score_drop is not None
    assert found.agreement is not None
    assert found.score_drop == pytest.approx(found.original.accuracy - found.compressed.accuracy, abs=1e-6)
    assert found.score_drop_low <= found.score_drop <= found.score_drop_high  # type: ignore[operator]
    assert found.compressed.accuracy_low < found.compressed.accuracy < found.compressed.accuracy_high
    assert found.agreement > LEAST_AGREEMENT[recipe]
    assert task.metric in str(found)
    # The file does what its module does, for any number of rows.
    same = parity(small.model, path, data.test)  # type: ignore[arg-type]
    assert same.agreement > 0.97
    # What was saved is the same again, inputs by name and their dtypes included.
    small.save(tmp_path / "saved")
    again = nl.Compressed.load(tmp_path / "saved", model)
    x = data.validation.batch(slice(0, 3))[0]
    with torch.no_grad():
        assert torch.equal(again.model(x), small.model(x))
    assert again.task == task
    assert type(again.example) is type(small.example)
    # The user's model is the user's.
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len(model._forward_hooks) + len(model._forward_pre_hooks) == hooks
    if recipe != "quantization":
        assert small.steps[-1].size.macs < small.steps[0].size.macs


@pytest.mark.parametrize("name", ["regression", "language_modeling", "language_modeling-lstm"])
def test_integers_and_masks_are_never_quantized(name: str) -> None:
    model, data = trained(name)
    small = nl.compress(model, [nl.Quantize()], data)
    assert isinstance(small.model, InstrumentedModel)
    floating = [t for t in as_tensors(small.example).values() if t.is_floating_point()]
    assert len([site for site in small.model.by_site if site.startswith("/input/")]) <= len(floating)


def test_an_additive_mask_beside_the_tokens_stays_in_floating_point() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.last = nn.Linear(6, 3)

        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            scores = self.first(x) @ self.second(x).transpose(1, 2) + bias
            return self.last((scores.softmax(-1) @ x).mean(1))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    x, bias = random(64, 4, 6), torch.zeros(64, 4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -1e9)
    data = nl.split(nl.Examples.from_arrays({"x": x, "bias": bias}, torch.arange(64) % 3))
    small = nl.compress(Masked().eval(), [nl.Quantize()], data)
    assert isinstance(small.model, InstrumentedModel)
    assert "/input/1" not in small.model.by_site


@pytest.mark.parametrize("name", ["multi_label", "language_modeling"])
def test_diagnose_and_check(name: str) -> None:
    model, data = trained(name)
    small = nl.compress(model, [nl.Quantize(bits=2)], data)
    found = nl.diagnose(small, model, data)
    assert found.layers
    assert found.before > found.after
    assert data.task.metric in str(found)
    assert nl.check(model, data, [nl.Quantize(), nl.Distill(epochs=1)]).ok


@nl.register_task
@dataclass(frozen=True)
class Counts:
    """Poisson regression: outputs are logarithms of rates ``(N, 1)``, targets counts."""

    name: ClassVar[str] = "counts"
    metric: ClassVar[str] = "Poisson deviance"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = False
    zero_one: ClassVar[bool] = False
    chance: ClassVar[float | None] = None
    class_dim: ClassVar[int | None] = None
    disclosures: ClassVar[tuple[str, ...]] = ("values",)

    output: str | int | None = None

    def as_targets(self, values: Tensor) -> Tensor:
        return values.float().view(-1, 1)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.shape != targets.shape:
            raise nl.ModelError(f"outputs have shape {tuple(outputs.shape)}; expected (N, 1)")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.poisson_nll_loss(outputs, targets)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        return (outputs - reference).square().mean()

    def score(self, outputs: Tensor, targets: Tensor) -> Scores:
        return np.asarray(-F.poisson_nll_loss(outputs, targets, reduction="none")[:, 0].double())

    def agree(self, outputs: Tensor, reference: Tensor) -> Scores:
        return np.asarray((-(outputs - reference).abs()).exp()[:, 0].double())

    def target(self, outputs: Tensor) -> Tensor:
        return outputs.detach().exp()


def test_a_new_task_in_one_file(tmp_path: Path) -> None:
    assert known_tasks()["counts"] == Counts()
    x = random(160, 10)
    data = nl.split(nl.Examples.from_arrays(x, torch.poisson(x[:, 0].exp()), task="counts"), calibration=64)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1)).eval()
    small = nl.compress(model, [nl.FineTune(epochs=3, lr=0.01, batch_size=16), nl.Quantize()], data)
    assert small.steps[1].accuracy > small.steps[0].accuracy
    path = small.export(tmp_path / "m.onnx")
    found = nl.measure(path, data, model, seconds=0.01, batches=(1,), threads=(1,))
    assert "Poisson deviance" in str(found)
    assert found.compressed.accuracy == pytest.approx(-metric_of(Counts(), found.compressed.accuracy))
    protocol = nl.Protocol(queries=(64,), seeds=1, effort=0.05, attacks=("Knockoff", "LossThreshold", "FileLeaks"))
    audit = nl.audit(path, data, model, protocol=protocol)
    assert {a["name"] for a in audit.value["attacks"] if a["status"] == "run"} == set(protocol.attacks)
    assert any(measure.startswith("Poisson deviance of the clone") for measure in audit.verdicts())


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(nl.ConfigError, match="registered already"):
        nl.register_task(type("Others", (Counts,), {}))
    assert "Others" not in REGISTRY.kinds


def refused(error: type[Exception], match: str, model: nn.Module, data: nl.Data, *recipe: Method) -> None:
    with pytest.raises(error, match=match):
        nl.compress(model, list(recipe) or [nl.Quantize()], data)


def test_what_is_for_classification_only_says_so() -> None:
    for name in ("regression", "language_modeling"):
        model, data = trained(name)
        refused(
            nl.ConfigError, f"for classification; the data are for {name}", model, data, nl.Distill(targets="decoupled")
        )
    model, data = trained("regression")
    refused(nl.ConfigError, "tasks with logits; the data are for regression", model, data, nl.Distill(targets="logits"))
    refused(nl.ConfigError, "temperature softens logits", model, data, nl.Distill(temperature=2.0))


def data_of(x: Tensor | dict[str, Tensor], y: Tensor, task: nl.Task | str) -> nl.Data:
    return nl.split(nl.Examples.from_arrays(x, y, task=task), calibration=32)


def test_inputs_that_forward_does_not_know() -> None:
    x, y = sequences()
    task = nl.LanguageModeling(output="logits")
    wrong = data_of({"input_ids": x, "mask": torch.ones_like(x)}, y, task)
    refused(
        nl.ModelError,
        "the data give the inputs input_ids, mask, and forward takes input_ids, attention_mask",
        Transformer(),
        wrong,
    )
    short = data_of({"input_ids": x, "attention_mask": torch.ones_like(x)[:, :5]}, y, task)
    refused(nl.ModelError, r"input_ids \(2, 8\), attention_mask \(2, 5\)", Transformer(), short)
    with pytest.raises(nl.DataError, match="input_ids 288, attention_mask 287"):
        data_of({"input_ids": x, "attention_mask": torch.ones_like(x)[1:]}, y, task)
    unnamed = data_of({"input_ids": x, "attention_mask": torch.ones_like(x)}, y, "language_modeling")
    refused(nl.ModelError, r"dict with 'hidden', 'logits'; expected one output", Transformer(), unnamed)
    missing = data_of({"input_ids": x, "attention_mask": torch.ones_like(x)}, y, nl.LanguageModeling(output="scores"))
    refused(nl.ModelError, "expected the output 'scores'", Transformer(), missing)


def test_targets_of_another_task() -> None:
    x, y = sequences()
    with pytest.raises(nl.DataError, match="choose their task"):
        data_of(random(40, 10), random(40, seed=1), "classification")
    with pytest.raises(nl.DataError, match="other numbers than 0 and 1"):
        data_of(random(40, 10), random(40, 3, seed=1), "multi_label")
    with pytest.raises(nl.DataError, match=r"segmentation expects one class index for each pixel"):
        data_of(random(40, 1, 6, 6), torch.zeros(40, 2, 6, 6, dtype=torch.int64), "segmentation")
    with pytest.raises(nl.DataError, match="language_modeling expects one token for each position"):
        data_of(x, random(len(x), seed=1), "language_modeling")
    with pytest.raises(nl.ConfigError, match="did you mean 'regression'"):
        data_of(random(40, 10), random(40, seed=1), "regresion")
    refused(
        nl.DataError,
        "the largest label is 12, but the model gives 12 classes",
        Recurrent(),
        data_of(x, y + 1, "language_modeling"),
    )
    refused(nl.DataError, r"expects \(2, 8\)", Recurrent(), data_of(x, y[:, :7], "language_modeling"))
    refused(
        nl.ModelError,
        "segmentation expects logits",
        nn.Linear(10, 3),
        data_of(random(40, 10), torch.zeros(40, 6, 6, dtype=torch.int64), "segmentation"),
    )
    probabilities = nn.Sequential(nn.Linear(10, 3), nn.Sigmoid())
    refused(
        nl.ModelError, "as those of a sigmoid", probabilities, data_of(random(40, 10), torch.ones(40, 3), "multi_label")
    )
    classes = data_of(random(40, 10), torch.arange(40) % 2, "classification")
    numbers = data_of(random(40, 10), torch.arange(40) % 2, "regression")
    with pytest.raises(nl.DataError, match="the calibration set is for"):
        nl.Data(classes.train, classes.validation, numbers.calibration)
