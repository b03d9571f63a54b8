"""What every registered attack must do, in worlds so tiny that it runs in a moment."""

from __future__ import annotations

import dataclasses
import inspect
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conformance.attack_cases import CASES, SHOWN, World
from conformance.examples import same_state
from nutlet.attacks import known_attacks
from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult, Goal
from nutlet.errors import BudgetError, ConfigError
from nutlet.oracle import ACCESS, Disclosure

every_case = pytest.mark.parametrize("name", sorted(CASES))
every_asking = pytest.mark.parametrize("name", sorted(n for n, case in CASES.items() if case.budgets and case.asks))
every_kind = pytest.mark.parametrize("kind", sorted({type(c.attack) for c in CASES.values()}, key=lambda k: k.__name__))


FIELDS: dict[Goal, set[str]] = {
    "clone": {"clone"},
    "weights": {"clone", "facts"},
    "width": {"facts"},
    "file": {"clone", "facts"},
    "reuse": {"clone", "facts"},
    "membership": {"scores"},
    "inversion": {"images"},
}
"""Where the loot of each goal lies."""


@dataclasses.dataclass(frozen=True)
class Raid:
    """What a run brought: the loot, and what the ledger said as each was handed over."""

    loot: list[AttackResult]
    sent: list[int]


def raid(name: str, world: World, shown: Disclosure, budgets: Sequence[int] | None = None, disturb: int = 0) -> Raid:
    """Run a case as an audit would; ``disturb`` sets every global generator first."""
    case = CASES[name]
    budgets = case.budgets if budgets is None else budgets
    oracle = world.oracle(shown, max(budgets, default=0))
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(disturb)
    loot, sent = [], []
    for found in case.attack.run(oracle, world.knowledge, budgets):
        loot.append(found)
        sent.append(oracle.queries)
    return Raid(loot, sent)


@cache
def plain(name: str) -> Raid:
    """Return what the attack brings from the real world, at the access that it declares and no more."""
    case = CASES[name]
    return raid(name, case.real(), SHOWN[case.attack.access])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, nn.Module):
        return isinstance(other, nn.Module) and str(one) == str(other) and same_state(one, other)
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    return type(one) is type(other) and one == other


def same_loot(one: AttackResult, other: AttackResult) -> bool:
    return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(AttackResult))


def test_every_registered_attack_is_tested_and_the_reverse() -> None:
    ours = {name for name, kind in known_attacks().items() if kind.__module__.startswith("nutlet.")}
    assert ours == {type(case.attack).__name__ for case in CASES.values()}
    assert all(name.startswith(type(case.attack).__name__) for name, case in CASES.items())


@every_kind
def test_says_what_it_is_for(kind: type[Attack]) -> None:
    assert known_attacks()[kind.__name__] is kind
    assert kind.use_when
    assert "\n" not in kind.use_when
    assert len(kind.use_when) < 120
    assert re.search(r"\b(19|20)\d\d\b", kind.source), "a source has a year"
    assert kind.goal in get_args(Goal)
    assert kind.access in ACCESS
    assert set(kind.needs) <= {field.name for field in dataclasses.fields(AttackerKnowledge)}
    # Of its Args alone: what it raises is described in the same form.
    doc = inspect.cleandoc(kind.__doc__ or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    described = set(re.findall(r"^ {4}(\w+): ", doc, re.MULTILINE))
    assert described == {option.name for option in dataclasses.fields(kind)}, "options and their documentation differ"


@every_kind
def test_refuses_bad_values(kind: type[Attack]) -> None:
    bad = [values for case in CASES.values() if type(case.attack) is kind for values in case.bad]
    assert {option for values in bad for option in values} == {option.name for option in dataclasses.fields(kind)}
    for values in bad:
        with pytest.raises(ConfigError, match=rf"{kind.__name__}.*expected"):
            kind(**values)


@every_case
def test_options_are_plain(name: str) -> None:
    attack = CASES[name].attack
    options = attack.options()
    assert json.loads(json.dumps(options)) == options
    assert type(attack)(**options) == attack
    assert hash(attack) == hash(type(attack)(**options))


@every_case
def test_says_what_is_missing(name: str) -> None:
    case = CASES[name]
    world, shown = case.real(), SHOWN[case.attack.access]
    knowledge = world.knowledge
    if case.attack.of_images:
        assert "are no images" in (case.attack.obstacle(world.oracle(shown), replace(knowledge, shape=(10,))) or "")
        knowledge = replace(knowledge, shape=(1, 2, 5))
    assert case.attack.obstacle(world.oracle(shown), knowledge) is None
    for need in case.attack.needs:
        empty: object = () if isinstance(getattr(knowledge, need), tuple) else None
        bare = replace(knowledge, **{need: empty})
        assert "needs" in (case.attack.obstacle(world.oracle(shown), bare) or ""), need
    for less in ACCESS[: ACCESS.index(case.attack.access)] if case.attack.access != "file" else ():
        found = case.attack.obstacle(world.oracle(SHOWN[less]), knowledge)
        assert found is not None
        assert case.attack.access in found
        assert less in found


@every_case
def test_never_sends_more_than_its_budget_by_the_ledger(name: str) -> None:
    case, found = CASES[name], plain(name)
    assert found.loot
    assert [loot.queries for loot in found.loot] == found.sent, "a loot counts other queries than the ledger"
    assert len(found.loot) in (1, len(case.budgets))
    budgets = sorted(case.budgets or (0,))[-len(found.loot) :]
    assert all(sent <= budget for sent, budget in zip(found.sent, budgets, strict=True))
    assert found.sent == sorted(found.sent)


@every_case
def test_brings_what_its_goal_says(name: str) -> None:
    case, world = CASES[name], CASES[name].real()
    for loot in plain(name).loot:
        found = {f.name for f in dataclasses.fields(loot) if getattr(loot, f.name) is not None}
        found -= {"queries", "share"}
        # A clone that cost no queries says in facts what it did cost.
        assert len(found) == 1 or found == {"clone", "facts"}
        assert found <= FIELDS[case.attack.goal]
        if loot.clone is not None:
            outputs = loot.clone(torch.zeros(3, *world.knowledge.shape))
            groups = (loot.facts or {}).get("groups", range(world.knowledge.classes))
            assert outputs.shape == (3, len(set(groups)))
            assert bool(outputs.isfinite().all())
        if loot.scores is not None:
            assert world.knowledge.pool is not None
            assert loot.scores.shape == (len(world.knowledge.pool),)
            assert bool(loot.scores.isfinite().all())
        if loot.images is not None:
            assert loot.images.shape == (world.knowledge.classes, *world.knowledge.shape)
            assert bool(loot.images.isfinite().all())
        if loot.facts is not None:
            assert json.loads(json.dumps(loot.facts)) == loot.facts
            assert loot.clone is not None or loot.share is not None
        if loot.share is not None:
            assert 0 <= loot.share <= 1


@every_asking
def test_a_smaller_allowance_ends_in_an_error_and_is_kept(name: str) -> None:
    case, world = CASES[name], CASES[name].real()
    oracle = world.oracle(SHOWN[case.attack.access], budget=plain(name).sent[0] - 1)
    with pytest.raises(BudgetError):
        for _ in case.attack.run(oracle, world.knowledge, case.budgets):
            pass
    assert oracle.queries <= plain(name).sent[0] - 1


@every_case
def test_same_seed_same_bytes_whatever_the_global_generators(name: str) -> None:
    case = CASES[name]
    again = raid(name, case.real(), SHOWN[case.attack.access], disturb=1234)
    assert len(again.loot) == len(plain(name).loot)
    assert all(same_loot(one, other) for one, other in zip(again.loot, plain(name).loot, strict=True))


@every_case
def test_beats_who_asks_nothing(name: str) -> None:
    case, world = CASES[name], CASES[name].real()
    assert case.judge(plain(name).loot[-1], world) >= case.baseline(world) + case.margin


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (name, shown)
        for name, case in sorted(CASES.items())
        if case.budgets
        for shown in (Disclosure(), Disclosure("rounded", digits=1), Disclosure("top-k"), Disclosure("logits"))
        if ACCESS.index(shown.access) > ACCESS.index(case.attack.access)
    ],
    ids=str,
)
def test_beats_who_asks_nothing_when_shown_more(name: str, shown: Disclosure) -> None:
    case, world = CASES[name], CASES[name].real()
    found = raid(name, world, shown, case.budgets[-1:])
    assert case.judge(found.loot[-1], world) >= case.baseline(world) + case.margin


@every_case
def test_finds_nothing_where_there_is_nothing(name: str) -> None:
    case, world = CASES[name], CASES[name].null()
    found = raid(name, world, SHOWN[case.attack.access])
    assert abs(case.judge(found.loot[-1], world) - case.chance) <= case.slack


@pytest.mark.parametrize("name", sorted(n for n, case in CASES.items() if case.nested and len(case.budgets) > 1))
def test_a_larger_budget_goes_on_from_a_smaller_one(name: str) -> None:
    case, world = CASES[name], CASES[name].real()
    alone = raid(name, world, SHOWN[case.attack.access], sorted(case.budgets)[:1])
    assert same_loot(alone.loot[0], plain(name).loot[0])
