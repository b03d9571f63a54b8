"""The audit of every task: what is not for a task says so, and what is brings figures in the metric of the task."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import nutlet as nl
from conformance.task_world import TASKS, TOKENS, TinyTransformer, named_world, trained, world
from nutlet.attacks import known_attacks
from nutlet.attacks.base import EVERY_TASK
from nutlet.attacks.white_box.reuse import new_labels
from nutlet.data.examples import Data
from nutlet.data.streamed import Streamed
from nutlet.formats.onnx.reader import load_onnx
from nutlet.report import render_audit
from nutlet.report.load import check_audit

PROTOCOL = nl.Protocol(queries=(16,), seeds=1, effort=0.05, shadow_models=2, attacks=("all",))
# Those that are for classifiers alone are tested as such, and take their time.
QUICK = ("Knockoff", "ActiveThief", "SemiSupervised", "LossThreshold", "RMIA", "BaVarIA")
every_task = pytest.mark.parametrize("name", TASKS)


@cache
def audited(name: str) -> nl.Audit:
    """Return an audit of the tiny net of a task by every attack, of a classifier by those that are for every task."""
    model, data = world(name)
    protocol = replace(PROTOCOL, attacks=QUICK) if name == "classification" else PROTOCOL
    return nl.audit(model, data, model, protocol=protocol)


def ran(audit: nl.Audit) -> dict[str, dict[str, Any]]:
    return {attack["name"]: attack for attack in audit.value["attacks"] if attack["status"] == "run"}


@every_task
def test_what_is_for_other_tasks_says_so_and_nothing_else_fails(name: str) -> None:
    audit = audited(name)
    for attack in audit.value["attacks"]:
        tasks = known_attacks()[attack["name"]].tasks
        assert attack["error"] is None, attack["reason"]
        if tasks != EVERY_TASK and name not in tasks:
            assert attack["reason"].startswith("for classification")
            assert attack["reason"].endswith(f"only; the victim does {name}")
    assert set(QUICK) <= set(ran(audit))


@every_task
def test_a_clone_is_scored_as_the_task_scores(name: str) -> None:
    task, audit = TASKS[name], audited(name)
    for attack in ("Knockoff", "ActiveThief", "SemiSupervised"):
        for victim in ran(audit)[attack]["victims"]:
            (point,) = victim["curve"]
            assert 0 <= point["agreement"]["value"] <= 1
            assert 0 <= point["chance_agreement"] <= 1
            assert point["baseline_agreement"] is not None
            assert (point["agreement_where_wrong"] is not None) == task.zero_one
            assert point["accuracy"].get("unit", "%") == task.unit
            assert point["accuracy"]["low"] <= point["accuracy"]["value"] <= point["accuracy"]["high"]
    assert any(measure.startswith(f"{task.metric} of the clone") for measure in audit.verdicts())


@every_task
def test_members_are_told_apart_by_their_loss(name: str) -> None:
    for attack in ("LossThreshold", "RMIA", "BaVarIA"):
        for victim in ran(audited(name))[attack]["victims"]:
            # The nets are overfitted; of so few candidates a little less than a half may be chance.
            assert victim["auc"]["value"] > (0.5 if attack == "LossThreshold" else 0.4)
            assert not math.isnan(victim["auc"]["high"])


@every_task
def test_the_page_and_the_terminal_name_the_metric(name: str) -> None:
    audit, task = audited(name), TASKS[name]
    check_audit(audit.value)
    assert task.metric in render_audit(audit.value)
    assert task.metric in str(audit).replace("\n", " ")
    assert audit.value["protocol"]["task"]["name"] == name


@every_task
def test_a_release_against_itself_is_no_different(name: str) -> None:
    assert set(audited(name).verdicts().values()) <= {"the same", "cannot tell", "no vote", "not measured"}


@every_task
def test_a_longer_theft_copies_better_than_a_guess(name: str) -> None:
    model, data = world(name)
    protocol = replace(PROTOCOL, queries=(64,), effort=0.4, attacks=("Knockoff",))
    (victim,) = ran(nl.audit(model, data, protocol=protocol))["Knockoff"]["victims"]
    (point,) = victim["curve"]
    assert point["agreement"]["value"] > point["chance_agreement"] + 0.1


@every_task
def test_labels_alone_or_rounded_answers_teach_too(name: str) -> None:
    model, data = world(name)
    shown = TASKS[name].disclosures
    for kind in ("rounded", "labels") if "labels" in shown else ("rounded",):
        answers = nl.Disclosure(kind)  # type: ignore[arg-type]
        protocol = replace(PROTOCOL, answers=answers, effort=0.2, attacks=("Knockoff", "LossThreshold"))
        found = ran(nl.audit(model, data, protocol=protocol))
        (point,) = found["Knockoff"]["victims"][0]["curve"]
        assert point["agreement"]["value"] > 0.05, kind
        assert found["LossThreshold"]["victims"][0]["auc"]["value"] >= 0.45, kind


@pytest.mark.parametrize("name", [name for name in TASKS if name != "classification"])
def test_the_file_in_hand(name: str, tmp_path: Path) -> None:
    model, data = world(name)
    file = nl.export_onnx(model, tmp_path / "model.onnx", data.calibration.batch(slice(0, 2))[0])
    protocol = replace(PROTOCOL, attacks=("FileLeaks", "Refine", "Reuse"))
    audit = nl.audit(file, data, protocol=protocol)
    found = ran(audit)
    assert "FileLeaks" in found
    if name == "language_modeling":  # the reader does not know LSTM
        assert "not understood: LSTM" in audit.attack("Refine")["reason"]
        return
    share = found["Refine"]["victims"][0]["share"]
    assert share.get("unit", "%") == TASKS[name].unit
    assert any(row.startswith(f"{TASKS[name].metric} of the file refined") for row in audit.verdicts())
    facts = found["Reuse"]["victims"][0]["facts"]
    groups = new_labels(facts, data.train.y, TASKS[name]).bincount()
    assert groups.tolist() == pytest.approx([32, 32], abs=8), "the groups are as equal as can be"


def test_a_transformer_is_read_from_its_file(tmp_path: Path) -> None:
    data = world("language_modeling").data
    torch.manual_seed(0)
    model, x = trained(TinyTransformer(), data.train, 40), data.calibration.batch(slice(0, 2))[0]
    file = nl.export_onnx(model, tmp_path / "model.onnx", x)
    assert torch.allclose(load_onnx(file)(x), model(x), atol=1e-5)
    audit = nl.audit(file, data, protocol=replace(PROTOCOL, attacks=("Refine", "Reuse"), effort=0.2))
    refined = ran(audit)["Refine"]["victims"][0]["share"]
    assert refined["value"] < audit.value["artifacts"][0]["accuracy"] + 0.05
    assert refined["unit"] == "nats"
    assert "Reuse" in ran(audit)


def test_several_inputs_and_outputs_by_name(tmp_path: Path) -> None:
    model, data = named_world()
    thief = nl.Surrogate(architecture=type(model)(), effort=0.05)
    audit = nl.audit(model, data, model, protocol=replace(PROTOCOL, attacks=QUICK), surrogate=thief)
    assert set(QUICK) <= set(ran(audit))
    check_audit(audit.value)
    small = nl.compress(model, [nl.PruneWeights(sparsity=0.2)], data)
    file = small.export(tmp_path / "model.onnx")
    protocol = replace(PROTOCOL, attacks=("Knockoff", "LossThreshold", "FileLeaks", "Refine"))
    audit = nl.audit(file, data, model, protocol=protocol, surrogate=thief)
    assert set(ran(audit)) == {"Knockoff", "LossThreshold", "FileLeaks"}
    assert "has the inputs ['a', 'b']" in audit.attack("Refine")["reason"]


def test_a_stream_of_examples_is_audited_as_those_in_memory() -> None:
    model, data = world("regression")
    protocol = replace(PROTOCOL, attacks=("Knockoff", "LossThreshold"))
    pairs = torch.utils.data.TensorDataset(data.train.tensor, data.train.y)
    streamed: Data = replace(data, train=Streamed(pairs, data.task))
    one, other = (ran(nl.audit(model, each, protocol=protocol)) for each in (data, streamed))
    for name in one:
        assert one[name]["victims"] == other[name]["victims"]


def test_tokens_that_only_the_transfer_set_holds_have_a_place() -> None:
    model, data = world("language_modeling")
    assert int(data.test.tensor.max()) < TOKENS  # type: ignore[union-attr]
    value = nl.audit(model, data, protocol=replace(PROTOCOL, attacks=("Knockoff",))).value
    assert value["protocol"]["thief"]["architecture"] == "_TokenNet"
