"""An attack that cannot run, or fails, is listed with its reason and never ends an audit."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import onnx
import pytest
import torch
from onnx import helper

import nutlet as nl
from nutlet.attacks import RMIA, Knockoff, LiRA
from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult, Goal
from nutlet.auditing import audit_files
from nutlet.auditing.chosen import read_attacks
from nutlet.data.examples import Data
from nutlet.errors import ConfigError, DataError, OracleError
from nutlet.formats import DEFAULT
from nutlet.jobs import Job, Workers
from nutlet.oracle import Access, Oracle
from nutlet.report import render_audit

QUICK = nl.Protocol(queries=(16,), seeds=1, effort=0.02, shadow_models=4, attacks=("Knockoff", "Reuse"))
Shipped = tuple[Path, Path, Data]


@dataclass(frozen=True, kw_only=True)
class Broken(Attack):
    """Fails in one of several ways, on one or both releases."""

    way: str = "fault"
    on: str = "both"

    goal: ClassVar[Goal] = "clone"
    access: ClassVar[Access] = "labels"

    def obstacle(self, oracle: Oracle, knowledge: AttackerKnowledge) -> str | None:
        if self.way == "preflight":
            raise KeyError("no such thing")
        return None

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        if self.way == "refusal":
            raise OracleError("the endpoint gave 503; expected an answer")
        if self.way == "nothing":
            return iter(())
        return iter([AttackResult(queries=1, facts={"x": 1 // 0})])


@dataclass(frozen=True, kw_only=True)
class BrokenScores(Broken):
    goal: ClassVar[Goal] = "membership"


@dataclass(frozen=True, kw_only=True)
class BrokenFacts(Broken):
    goal: ClassVar[Goal] = "weights"


def of(value: dict[str, Any], name: str) -> dict[str, Any]:
    return next(record for record in value["attacks"] if record["name"] == name)


@pytest.mark.parametrize("kind", [Broken, BrokenScores, BrokenFacts])
@pytest.mark.parametrize(
    ("way", "reason", "fault"),
    [
        ("fault", "ended with ZeroDivisionError", True),
        ("preflight", "ended with KeyError", True),
        ("refusal", "ended with OracleError: the endpoint gave 503", False),
    ],
)
def test_a_failure_is_recorded_and_the_audit_goes_on(
    kind: type[Broken], way: str, reason: str, fault: bool, shipped: Shipped
) -> None:
    file, _, data = shipped
    found = nl.audit(file, data, protocol=replace(QUICK, attacks=("FileLeaks", kind(way=way))))
    record = of(found.value, kind.__name__)
    assert record["status"] == "not run"
    assert record["reason"].startswith(reason)
    assert record["error"] == {"type": record["error"]["type"], "fault": fault}
    assert of(found.value, "FileLeaks")["status"] == "run"
    assert any(warning.startswith(kind.__name__) for warning in found.value["warnings"])
    assert len(found.faults) == fault
    assert reason in html.unescape(re.sub(r"<[^>]+>", "", render_audit(found.value)))
    assert reason in str(found).replace("\n", " ")


def test_an_attack_that_gives_nothing_did_not_run(shipped: Shipped) -> None:
    file, _, data = shipped
    value = nl.audit(file, data, protocol=replace(QUICK, attacks=("FileLeaks", Broken(way="nothing")))).value
    assert "expected one for each budget" in of(value, "Broken")["reason"]


def test_errors_are_not_kept(tmp_path: Path) -> None:
    workers = Workers(folder=tmp_path)
    fails, works = Job(lambda: {"x": 1 // 0}, {}), Job(lambda: {"x": 1}, {})
    error, result = workers.attempt([fails, works], "both")
    assert isinstance(error, ZeroDivisionError)
    assert result == {"x": 1}
    assert len(list(tmp_path.glob("*.npz"))) == 1
    with pytest.raises(ZeroDivisionError):
        workers.run([fails, works], "both")


def with_node(path: Path, to: Path, operator: str) -> Path:
    """Put an operator behind the scores that changes nothing and that the reader does not know."""
    model = onnx.load(path)
    output = model.graph.output[0].name
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == output:
                node.output[place] = "before"
    attributes: dict[str, Any] = {"Einsum": {"equation": "ij->ij"}, "Softsign": {}}[operator]
    made = [helper.make_node(operator, ["before"], [output], **attributes)]
    model.graph.node.extend(made)
    onnx.save(model, to)
    return to


@pytest.mark.parametrize("operator", ["Einsum", "Softsign"])
def test_an_operator_that_cannot_be_read_stops_only_what_looks_inside(
    operator: str, shipped: Shipped, tmp_path: Path
) -> None:
    file, original, data = shipped
    odd = with_node(file, tmp_path / "odd.onnx", operator)
    value = nl.audit(odd, data, original, protocol=QUICK).value
    assert of(value, "Knockoff")["status"] == "run"
    assert operator in of(value, "Reuse")["reason"]
    value = nl.audit(original, data, odd, protocol=QUICK).value
    assert [victim["artifact"] for victim in of(value, "Reuse")["victims"]] == ["original.onnx"]
    assert any(operator in warning for warning in value["warnings"])


def test_what_is_read_otherwise_than_the_runtime_computes_is_not_attacked(
    shipped: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _, data = shipped
    monkeypatch.setattr(type(DEFAULT.need_reader()), "load", staticmethod(lambda *_, **__: torch.nn.Linear(10, 4)))
    value = nl.audit(file, data, protocol=QUICK).value
    assert "answers otherwise than its runtime" in of(value, "Reuse")["reason"]


def test_a_real_page_holds_what_was_measured(shipped: Shipped) -> None:
    file, original, data = shipped
    value = nl.audit(file, data, original, protocol=QUICK).value
    page = render_audit(value)
    for path in (file, original):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in page
    assert "not measured" not in page.split('id="protocol"')[1].split("</section>")[0]


def test_more_outputs_than_labels(shipped: Shipped, tmp_path: Path) -> None:
    file, _, data = shipped
    few = replace(
        data, train=data.train.subset(data.train.y < 3), validation=data.validation.subset(data.validation.y < 3)
    )
    value = audit_files(file, few, None, tmp_path, protocol=QUICK, processes=1).value
    assert of(value, "Knockoff")["status"] == "run"


def test_a_label_without_an_output_is_refused(shipped: Shipped, tmp_path: Path) -> None:
    file, _, data = shipped
    far = replace(data, train=replace(data.train, y=data.train.y.clone().index_fill_(0, torch.tensor([0]), 3_000_000)))
    with pytest.raises(DataError, match="largest label of the training set is 3000000"):
        audit_files(file, far, None, tmp_path, protocol=QUICK, processes=1)


def test_an_architecture_of_another_number_of_outputs_is_refused(shipped: Shipped, tmp_path: Path) -> None:
    file, _, data = shipped
    with pytest.raises(ConfigError, match="architecture has 3 outputs, the victim 4"):
        audit_files(file, data, None, tmp_path, protocol=QUICK, processes=1, architecture=torch.nn.Linear(10, 3))


def test_options_of_attacks_are_taken_and_recorded(shipped: Shipped) -> None:
    file, _, data = shipped
    asked = read_attacks("RMIA(models=6, a=0.25), LossThreshold")
    value = nl.audit(file, data, protocol=replace(QUICK, attacks=asked)).value
    assert of(value, "RMIA")["options"] == {"mode": "online", "models": 6, "a": 0.25, "gamma": 1.0}
    assert value["protocol"]["members"]["shadow_models"] == 6


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("RMIA(model=16)", "did you mean 'models'"),
        ("RMIA(models='x')", "expected an even number"),
        ("RMIA(models=3)", "even number"),
        ("RMIA(gamma=1e999)", "expected a finite number of 1 or more"),
        ("RMIA(16)", "options in parentheses"),
        ("RMIA(models=__import__('os').getpid())", "expected a plain value"),
        ("RMIA(", "options in parentheses"),
        ("Knockoff(seed=1)", "it takes no options"),
        ("Knokoff", "did you mean 'Knockoff'"),
        ("RMIA,RMIA(models=8)", "asked for twice"),
        ("(" * 5_000, "options in parentheses"),
    ],
)
def test_wrong_options_are_refused_at_once(asked: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        nl.Protocol(attacks=read_attacks(asked))


@pytest.mark.parametrize("text", ["attacks: [Knockoff, {RMIA: {models: 16}}]", "- Knockoff\n- RMIA: {models: 16}"])
def test_attacks_from_a_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "attacks.yaml"
    path.write_text(text)
    asked = read_attacks(str(path))
    assert asked == (Knockoff(), RMIA(models=16)) == read_attacks("Knockoff, RMIA(models=16)")
    assert nl.Protocol(attacks=("Knockoff", RMIA(models=16))).asked == nl.Protocol(attacks=asked).asked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- RMIA: {model: 16}", "RMIA has no option 'model'; did you mean 'models'?"),
        ("- RMIA: {models: 3}", "RMIA.models is 3; expected an even number of 2 or more (they come in pairs) or none"),
        ("- {RMIA: {}, Knockoff: {}}", "expected one name with its options"),
        ("- RMIA: 16", "the options of RMIA are 16; expected a mapping"),
        ("- Knokoff", "did you mean 'Knockoff'"),
        ("Knockoff", "expected `attacks:` with a list"),
        ("attack: [Knockoff]", "expected `attacks:` with a list"),
        ("[]", "expected `attacks:` with a list"),
        ("- !!python/object/apply:os.getpid []", "found the tag"),
        ("- [Knockoff]", "expected one name with its options"),
    ],
)
def test_a_wrong_file_of_attacks_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "attacks.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_attacks(str(path))


def test_every_attack_may_be_asked_for_beside_options() -> None:
    protocol = nl.Protocol(attacks=read_attacks("all, RMIA(models=8)"))
    assert protocol.excluded(LiRA) is None
    assert protocol.asked == {"RMIA": RMIA(models=8)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"queries": (float("nan"),)},
        {"queries": (2.5,)},
        {"seeds": 0},
        {"seeds": 1.5},
        {"effort": float("inf")},
        {"effort": float("nan")},
        {"shadow_models": float("nan")},
        {"price_per_query": float("nan")},
        {"price_per_query": float("inf")},
        {"attacks": "Knockoff"},
        {"first_seed": -1},
    ],
)
def test_numbers_of_a_protocol(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        nl.Protocol(**wrong)
