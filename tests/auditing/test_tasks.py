"""What an audit of other tasks than classification refuses, and how it says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nutlet as nl
from conformance.task_world import TASKS, named_world, world
from nutlet.attacks import ActiveThief, RecoverWeights
from nutlet.attacks.base import AttackerKnowledge
from nutlet.attacks.extraction.surrogate import architecture_for
from nutlet.auditing.scoring import chance_agreement, metric_difference, metric_summary
from nutlet.data.examples import Examples
from nutlet.errors import ConfigError, DataError, ModelError
from nutlet.oracle import Disclosure, Oracle, usual_disclosure
from nutlet.tasks import LanguageModeling, MultiLabel, Regression, Segmentation, Task

PROTOCOL = nl.Protocol(queries=(16,), seeds=1, effort=0.02, shadow_models=2, attacks=("Knockoff",))


@pytest.mark.parametrize("name", [name for name in TASKS if name != "classification"])
def test_an_attack_for_classifiers_alone_leaves_nothing_to_run(name: str) -> None:
    model, data = world(name)
    with pytest.raises(ConfigError, match=rf"ShadowClassifier: for classification only; the victim does {name}"):
        nl.audit(model, data, protocol=replace(PROTOCOL, attacks=("ShadowClassifier",)))


@pytest.mark.parametrize(
    ("name", "kind"), [("regression", "labels"), ("embedding", "probabilities"), ("multi_label", "top-k")]
)
def test_answers_that_the_task_does_not_have(name: str, kind: str) -> None:
    model, data = world(name)
    answers = Disclosure(kind)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"the answers are .*, which {name} does not have; expected one of"):
        nl.audit(model, data, protocol=replace(PROTOCOL, answers=answers))


def test_a_transfer_set_of_another_task() -> None:
    model, data = world("regression")
    other = Examples(torch.randn(64, 10), torch.zeros(64, dtype=torch.long))
    with pytest.raises(DataError, match="transfer set is for classification, the evaluation set for regression"):
        nl.audit(model, data, transfer=other, protocol=PROTOCOL)


def test_outputs_of_another_task() -> None:
    _, data = world("segmentation")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(ModelError, match="segmentation expects"):
        nl.audit(flat, data, protocol=PROTOCOL)


def test_releases_of_other_shapes() -> None:
    model, data = world("segmentation")
    more = nn.Conv2d(3, 5, 1)
    with pytest.raises(DataError, match="original has 5x8x8 outputs, victim 3x8x8; expected as many"):
        nl.audit(model, data, more, protocol=PROTOCOL)


def test_training_targets_that_the_victim_has_no_outputs_for() -> None:
    model, data = world("segmentation")
    far = replace(data, train=data.train.with_targets(torch.full_like(data.train.y, 7)))
    with pytest.raises(DataError, match="the training set does not fit victim: the largest label is 7"):
        nl.audit(model, far, protocol=PROTOCOL)


def test_a_thief_of_another_shape() -> None:
    model, data = world("regression")
    thief = nl.Surrogate(architecture=nn.Linear(10, 3))
    with pytest.raises(ConfigError, match="architecture has 3 outputs, the victim 2"):
        nl.audit(model, data, surrogate=thief, protocol=PROTOCOL)


def test_several_inputs_need_an_architecture() -> None:
    model, data = named_world()
    with pytest.raises(ConfigError, match=r"no architecture of ours for the inputs a, b; .*Surrogate\(architecture="):
        nl.audit(model, data, protocol=PROTOCOL)


@pytest.mark.parametrize(
    ("shape", "outputs", "tokens"), [((3, 8, 8), (2, 4, 4), 0), ((6,), (5, 7), 9), ((2, 6), (6, 7), 0)]
)
def test_shapes_without_an_architecture(shape: tuple[int, ...], outputs: tuple[int, ...], tokens: int) -> None:
    with pytest.raises(ConfigError, match="no architecture of ours"):
        architecture_for(shape, outputs, tokens=tokens)


@pytest.mark.parametrize(
    ("shape", "outputs", "tokens"),
    [((3, 8, 8), (2, 8, 8), 0), ((6,), (6, 7), 9), ((6,), (4,), 9), ((3, 8, 8), (4,), 0), ((2, 6), (4,), 0)],
)
def test_a_thief_of_ours_has_the_shape_of_the_victim(
    shape: tuple[int, ...], outputs: tuple[int, ...], tokens: int
) -> None:
    x = torch.randint(0, tokens, (5, *shape)) if tokens else torch.randn(5, *shape)
    assert architecture_for(shape, outputs, tokens=tokens).eval()(x).shape == (5, *outputs)


def test_a_thief_of_tokens_sees_nothing_of_what_comes() -> None:
    net, x = architecture_for((6,), (6, 7), tokens=9), torch.arange(6)[None]
    later = x.clone()
    later[0, 4:] = 8
    assert torch.equal(net(x)[0, :4], net(later)[0, :4])


@pytest.mark.parametrize("task", [MultiLabel(), Segmentation(), LanguageModeling()], ids=lambda task: task.name)
@pytest.mark.parametrize("kind", ["logits", "probabilities", "rounded", "labels"])
def test_what_is_shown_stands_for_the_same_answer(task: Task, kind: str) -> None:
    shape = {"multi_label": (5, 4), "segmentation": (5, 4, 3, 3), "language_modeling": (5, 3, 4)}[task.name]
    outputs = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    shown = Disclosure(kind, digits=3)  # type: ignore[arg-type]
    found = shown.restore(Oracle(lambda x: outputs, answers=shown, task=task).query(outputs), task)
    assert found.shape == outputs.shape
    assert bool(found.isfinite().all())
    assert task.agree(found, outputs).mean() > 0.95
    if kind == "probabilities" and task.class_dim is not None:
        assert torch.allclose(found.softmax(task.class_dim), outputs.softmax(task.class_dim), atol=1e-4)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_usual_answers_are_those_of_the_task(task: Task) -> None:
    assert usual_disclosure(task).kind in task.disclosures


def test_uncertainty_needs_probabilities() -> None:
    knowledge = AttackerKnowledge(classes=2, shape=(10,), task=Regression())
    oracle = Oracle(nn.Identity(), task=Regression())
    found = ActiveThief(strategy="uncertainty").obstacle(oracle, knowledge)
    assert found == "uncertainty needs a task with probabilities; the victim does regression"


def test_a_regression_of_two_layers_gives_its_weights_away() -> None:
    torch.manual_seed(0)
    victim = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    knowledge = AttackerKnowledge(classes=2, shape=(10,), task=Regression(), seed=3)
    oracle = Oracle(lambda x: victim(x.double()).detach(), task=Regression())
    assert RecoverWeights().obstacle(oracle, knowledge) is None
    (loot,) = RecoverWeights().run(oracle, knowledge, [1500])
    assert loot.share == 1


def test_an_error_is_shown_without_its_sign_and_its_verdict_turns() -> None:
    task = Regression(unit="h")
    worse, better = np.array([[-2.0, -3.0, -4.0, np.nan]]), np.array([[-1.0, -2.0, -3.0, np.nan]])
    found = metric_summary(worse, task)
    assert (found.value, found.unit) == (3.0, "h")
    assert 0 < found.low < 3 < found.high
    gap = metric_difference(worse, better, task)
    assert (gap.value, gap.half()) == (-1.0, 0.0)


def test_a_guess_agrees_as_far_as_one_answer_to_everything_can() -> None:
    outputs: Tensor = torch.tensor([[0.0], [0.0], [0.0], [10.0]])
    assert chance_agreement(outputs, Regression(scale=2.0)) == pytest.approx(0.75)
