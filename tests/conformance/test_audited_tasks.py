"""The audit of every task: what is not for a task says so, and what is brings figures in the metric of the task."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest

import nutlet as nl
from conformance.task_world import TASKS, world
from nutlet.attacks import known_attacks
from nutlet.attacks.base import EVERY_TASK
from nutlet.report import render_audit
from nutlet.report.load import check_audit

PROTOCOL = nl.Protocol(queries=(16,), seeds=1, effort=0.05, shadow_models=2, attacks=("all",))
every_task = pytest.mark.parametrize("name", TASKS)


@cache
def audited(name: str) -> nl.Audit:
    """Return an audit of the tiny net of a task by every attack that is for it."""
    model, data = world(name)
    return nl.audit(model, data, model, protocol=PROTOCOL)


def ran(name: str) -> dict[str, dict[str, Any]]:
    return {attack["name"]: attack for attack in audited(name).value["attacks"] if attack["status"] == "run"}


@every_task
def test_what_is_for_other_tasks_says_so_and_nothing_else_fails(name: str) -> None:
    for attack in audited(name).value["attacks"]:
        kind = known_attacks()[attack["name"]]
        if kind.tasks == EVERY_TASK or name in kind.tasks:
            assert attack["error"] is None, attack["reason"]
        else:
            assert attack["reason"].startswith("for "), attack
            assert attack["reason"].endswith(f"only; the victim does {name}")
    assert {"Knockoff", "ActiveThief", "SemiSupervised", "LossThreshold", "RMIA"} <= set(ran(name))


@every_task
def test_a_clone_is_scored_as_the_task_scores(name: str) -> None:
    task = TASKS[name]
    for attack in ("Knockoff", "ActiveThief", "SemiSupervised"):
        for victim in ran(name)[attack]["victims"]:
            (point,) = victim["curve"]
            assert 0 <= point["agreement"]["value"] <= 1
            assert 0 <= point["chance_agreement"] <= 1
            assert point["baseline_agreement"] is not None
            assert (point["agreement_where_wrong"] is not None) == task.zero_one
            assert point["accuracy"].get("unit", "%") == task.unit
            assert point["accuracy"]["low"] <= point["accuracy"]["value"] <= point["accuracy"]["high"]
    assert any(measure.startswith(f"{task.metric} of the clone") for measure in audited(name).verdicts())


@every_task
def test_members_are_told_apart_by_their_loss(name: str) -> None:
    for attack in ("LossThreshold", "RMIA"):
        for victim in ran(name)[attack]["victims"]:
            assert 0 <= victim["auc"]["value"] <= 1
            assert not math.isnan(victim["auc"]["value"])


@every_task
def test_the_page_and_the_terminal_name_the_metric(name: str) -> None:
    audit, task = audited(name), TASKS[name]
    check_audit(audit.value)
    assert task.metric in render_audit(audit.value)
    assert task.metric in str(audit).replace("\n", " ")
    assert audit.value["protocol"]["task"]["name"] == name


@every_task
def test_a_release_against_itself_is_no_different(name: str) -> None:
    verdicts = set(audited(name).verdicts().values())
    assert verdicts == {"no measurable difference", "not measured"}
