"""Whom a chain may be given as a teacher, and what it costs to ask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from endpoint_server import CLASSES, serving, victim
from job import Job
from nutlet.compression.pipeline import compress
from nutlet.data.examples import Data, Examples, split
from nutlet.errors import BudgetError, ConfigError, DataError, ModelError
from nutlet.formats.onnx.export import export_onnx
from nutlet.measurement import measure
from nutlet.methods import Distill, DropBlocks, FineTune
from nutlet.oracle import Disclosure, Endpoint, Oracle
from nutlet.tasks.predict import predict
from nutlet.training.context import BlackBoxTeacher, Context
from nutlet.training.losses import softened


def rows(count: int = 60) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0))


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, CLASSES)).eval()


@pytest.fixture
def data() -> Data:
    x = rows()
    return split(Examples.from_arrays(x, victim(x).argmax(1)), calibration=8)


def agreement(model: nn.Module) -> float:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(9))
    return float((model(x).argmax(1) == victim(x).argmax(1)).float().mean())


LEARN = Distill(epochs=20, batch_size=16, lr=0.1, kd_weight=1.0)


def test_an_endpoint_is_asked_about_each_training_example_once(data: Data, tmp_path: Path) -> None:
    shaking = replace(data, augment=lambda x, _: 0 * x)  # would teach nothing at all
    with serving() as server:
        endpoint = Endpoint(url=server.url, classes=CLASSES, i_own_this_endpoint=True)
        result = compress(student(), [LEARN], shaking, teacher=endpoint, workdir=tmp_path)
        assert server.inputs == len(data.train)  # the examples for calibration are among them
        again = compress(student(), [replace(LEARN, epochs=21)], shaking, teacher=endpoint, workdir=tmp_path)
        assert server.inputs == len(data.train)
    assert agreement(result.model) > 0.9
    # Two were asked about before the step, to see how many classes it tells apart.
    assert f"sent {len(data.train) - 2} queries" in result.steps[1].notes[-1]
    assert "without augmentation" in result.steps[1].notes[-1]
    assert "sent 0 queries" in again.steps[1].notes[-1]


def test_labels_alone_teach_too_and_a_budget_is_kept(data: Data) -> None:
    source = Oracle(victim, answers=Disclosure("labels"), budget=len(data.train))
    assert agreement(compress(student(), [LEARN], data, teacher=source).model) > 0.85
    assert source.queries == len(data.train)
    decoupled = replace(LEARN, targets="decoupled")
    assert agreement(compress(student(), [decoupled], data, teacher=Oracle(victim)).model) > 0.85
    with pytest.raises(BudgetError):
        compress(student(), [LEARN], data, teacher=Oracle(victim, budget=30))


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Distill(hints=1.0), "compares hidden features, and this teacher only answers; expected hints"),
        (Distill(targets="logits"), "gives probabilities; expected targets='kl'"),
    ],
)
def test_what_needs_more_than_answers_is_refused(data: Data, method: Distill, says: str) -> None:
    oracle = Oracle(victim)
    with pytest.raises(ModelError, match=says):
        compress(student(), [method], data, teacher=oracle)
    assert oracle.queries == 2


def test_an_oracle_of_logits_teaches_them(data: Data) -> None:
    oracle = Oracle(lambda x: victim(x).log(), answers=Disclosure("logits"))
    assert agreement(compress(student(), [replace(LEARN, targets="logits")], data, teacher=oracle).model) > 0.85


def test_other_methods_do_not_ask_about_augmented_views(data: Data) -> None:
    context = Context(data=replace(data, augment=lambda x, _: x), teacher=BlackBoxTeacher(_Free()))
    with pytest.raises(ConfigError, match="one more query; expected data without `augment`, or Distill"):
        softened(context, 4.0, 0.9)


class _Free:
    sent = 0

    def __call__(self, x: Tensor) -> Tensor:
        return victim(x)


def test_another_module_teaches(data: Data) -> None:
    big = nn.Sequential(nn.Linear(4, CLASSES, bias=False), nn.Softmax(1))  # ends in probabilities
    with torch.no_grad():
        big[0].weight.copy_(torch.linspace(-1, 1, 4 * CLASSES).view(4, CLASSES).T)
    assert agreement(compress(student(), [LEARN], data, teacher=big).model) > 0.9
    assert not big[1]._forward_hooks
    assert big[0].weight.requires_grad
    same = compress(student(), [replace(LEARN, targets="logits")], data, teacher=big[0]).model
    assert agreement(same) > 0.85


def test_a_file_teaches(tmp_path: Path) -> None:
    data = tiny.tiny_data((3, 8, 8))
    teacher = tiny.settled(tiny.TinyCNN(), data.train.x)
    path = export_onnx(teacher, tmp_path / "teacher.onnx", data.train.x[:2])
    method = Distill(epochs=2, batch_size=16, kd_weight=1.0)
    pupil = tiny.settled(tiny.TinyCNN(), data.train.x, seed=1)
    one, other = (compress(pupil, [method], data, teacher=given).model for given in (path, teacher))
    torch.testing.assert_close(predict(one, data.train), predict(other, data.train), atol=1e-3, rtol=1e-3)
    with pytest.raises(Exception, match=r"the teacher: .*missing\.onnx"):
        compress(pupil, [method], data, teacher=tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("teacher", "error", "says"),
    [
        (nn.Linear(4, CLASSES + 1), ModelError, "the teacher gives 4 classes, the model 3; expected as many"),
        (nn.Linear(5, CLASSES), ModelError, "the teacher: the data give 4.*5"),
        (Oracle(lambda x: x), ModelError, "the teacher gives 4 classes, the model 3"),
        (3, ConfigError, "the teacher: found a int; expected a module, the path of a shipped file, an Oracle"),
    ],
)
def test_who_cannot_teach_is_told_why(data: Data, teacher: nn.Module, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        compress(student(), [LEARN], data, teacher=teacher)


def test_without_labels() -> None:
    data = split(Examples.from_arrays(rows()), calibration=8)
    assert not data.train.labelled
    oracle = Oracle(victim)
    result = compress(student(), [LEARN], data, teacher=oracle)
    assert agreement(result.model) > 0.9
    assert result.steps[1].accuracy > 0.8  # agreement with the teacher
    assert result.steps[0].notes == (
        "the validation and calibration examples have no labels: those of the teacher stand in for them, and accuracy "
        "is agreement with it",
    )
    assert oracle.queries == 60
    for method in (FineTune(epochs=1), Distill(epochs=1), Distill(epochs=1, kd_weight=1.0, targets="decoupled")):
        with pytest.raises(DataError, match=r"needs labels, and \d+ of \d+ examples have none; expected"):
            compress(student(), [method], data)


def test_accuracy_is_not_measured_without_labels(tmp_path: Path) -> None:
    path = export_onnx(student(), tmp_path / "model.onnx", rows(2))
    with pytest.raises(DataError, match="have no labels; expected some"):
        measure(path, Examples.from_arrays(rows()))


def test_blocks_are_chosen_without_labels() -> None:
    data = tiny.tiny_data((10,))
    bare = split(Examples.from_arrays(data.train.x))
    model = tiny.settled(tiny.TinyMLP(), data.train.x)
    assert compress(model, [DropBlocks(drop=1)], bare).steps[1].plan["dropped"]


def test_another_teacher_is_another_run(data: Data, tmp_path: Path) -> None:
    torch.manual_seed(1)
    teachers = [nn.Linear(4, CLASSES) for _ in range(2)]
    first, second, third = (
        compress(student(), [LEARN], data, teacher=teachers[k], workdir=tmp_path).model for k in (0, 1, 0)
    )
    assert torch.equal(predict(first, data.train), predict(third, data.train))
    assert not torch.equal(predict(first, data.train), predict(second, data.train))


def test_the_command_takes_a_teacher(tmp_path: Path) -> None:
    job = Job(tmp_path)
    recipe = "steps: [{Distill: {epochs: 1}}]"
    done = job.compress("--teacher", f"{tmp_path / 'net_of_job.py'}:make", recipe=recipe)
    assert done.exit_code == 0, done.output
    wrong = job.compress("--teacher", f"{tmp_path / 'net_of_job.py'}:make(4)", recipe=recipe)
    assert wrong.exit_code == ModelError.exit_code
    assert "the teacher gives 4 classes, the model 3; expected" in wrong.stderr
    mine = job.compress("--teacher", "https://models.example.org/digits", recipe=recipe)
    assert mine.exit_code == ConfigError.exit_code
    assert "the endpoint has no classes" in mine.stderr
