"""A whole audit of tiny files: what it says, what it refuses, and that it goes on from where it was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import nutlet as nl
import tiny
from nutlet.attacks import known_attacks
from nutlet.cli import app
from nutlet.data.examples import Data
from nutlet.errors import ConfigError
from nutlet.jobs import Workers
from nutlet.oracle import Disclosure
from nutlet.report import load_audit, render_audit
from nutlet.report.load import check_audit

QUICK = nl.Protocol(queries=(16, 48), seeds=2, effort=0.05, shadow_models=4, attacks=("Knockoff", "BaVarIA"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, nn.Module, Data]:
    folder = tmp_path_factory.mktemp("files")
    model, data = tiny.tiny("mlp")
    small = nl.compress(model, ["Quantize"], data)
    return (
        small.export(folder / "model.onnx"),
        nl.export_onnx(model, folder / "original.onnx", small.example),
        model,
        data,
    )


def test_a_file_against_itself_is_no_different(files: tuple[Path, Path, nn.Module, Data]) -> None:
    _, original, _, data = files
    result = nl.audit(original, data, original, protocol=QUICK)
    verdicts = {name: verdict for name, verdict in result.verdicts().items() if verdict != "not measured"}
    assert verdicts
    assert set(verdicts.values()) <= {"the same", "cannot tell", "no vote"}
    assert [artifact["name"] for artifact in result.value["artifacts"]] == [
        "original.onnx (before)",
        "original.onnx (after)",
    ]
    assert "cannot tell from fewer than 3 seeds" in result.sentence


def test_attacks_that_weigh_releases_together_and_those_with_a_baseline(
    files: tuple[Path, Path, nn.Module, Data],
) -> None:
    file, original, _, data = files
    protocol = replace(QUICK, queries=(16,), seeds=1, attacks=("RMIA", "TwoVersion", "Reuse"))
    result = nl.audit(file, data, original, protocol=protocol, recipe=[nl.Quantize()])
    # The audit settles on 4 shadow models, fewer than TwoVersion makes sense with: it gets as many as it needs.
    models = {name: result.attack(name)["options"]["models"] for name in ("RMIA", "TwoVersion")}
    assert models == {"RMIA": 4, "TwoVersion": 6}
    assert result.value["protocol"]["members"]["shadow_models"] == 6
    measures = list(result.verdicts())
    assert any("with the original beside it (TwoVersion; before: RMIA on the file alone)" in name for name in measures)
    assert "the same from nothing" in measures
    check_audit(json.loads(json.dumps(result.value)))


def test_queries_are_what_the_ledger_counted(files: tuple[Path, Path, nn.Module, Data]) -> None:
    file, original, _, data = files
    value = nl.audit(file, data, original, protocol=QUICK).value
    (clone,) = (attack for attack in value["attacks"] if attack["name"] == "Knockoff")
    for victim in clone["victims"]:
        assert victim["queries_sent"] == 2 * 48
        assert [point["queries"] for point in victim["curve"]] == [16, 48]
    assert value["protocol"]["evaluation"]["inputs_sent"] == 2 * len(data.validation)


def test_every_attack_is_in_the_record_with_a_reason_where_it_did_not_run(
    files: tuple[Path, Path, nn.Module, Data],
) -> None:
    file, _, _, data = files
    value = nl.audit(file, data, protocol=QUICK).value
    assert {attack["name"] for attack in value["attacks"]} >= set(known_attacks()) - {"Planted"}
    for attack in value["attacks"]:
        assert (attack["status"] == "run") == (attack["name"] in QUICK.attacks)
        assert attack["status"] == "run" or attack["reason"]
    assert any("No original was given" in warning for warning in value["warnings"])


def test_an_attack_that_needs_more_than_is_shown_is_not_run(files: tuple[Path, Path, nn.Module, Data]) -> None:
    file, _, _, data = files
    shown = nl.Protocol(queries=(16,), seeds=1, effort=0.05, answers=nl.Disclosure("labels"), attacks=("SAMIA",))
    with pytest.raises(ConfigError, match=r"SAMIA: needs probabilities; the victim shows labels"):
        nl.audit(file, data, protocol=shown)


def test_an_audit_goes_on_from_what_was_done(
    files: tuple[Path, Path, nn.Module, Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, original, _, data = files
    workers = Workers(folder=tmp_path / "jobs")
    first = nl.audit(file, data, original, protocol=QUICK, workers=workers).value
    done = sorted(path.name for path in (tmp_path / "jobs").glob("*.npz"))
    (tmp_path / "jobs" / done[0]).unlink()  # as if the run had been killed before it

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained anew")

    again = nl.audit(file, data, original, protocol=QUICK, workers=workers).value
    monkeypatch.setattr("nutlet.attacks.extraction.surrogate.train_on", refuse)
    monkeypatch.setattr("nutlet.attacks.membership.shadow_models.train_on", refuse)
    third = nl.audit(file, data, original, protocol=QUICK, workers=workers).value
    assert first["claims"] == again["claims"] == third["claims"]


def test_random_answers_cannot_be_copied(files: tuple[Path, Path, nn.Module, Data]) -> None:
    _, _, _, data = files

    def noise(x: torch.Tensor) -> torch.Tensor:
        mixed = (x.double() * 1e4).sin().sum(1, keepdim=True)
        return ((mixed * (1e4 + torch.arange(4))).sin() * 3).float()

    value = nl.audit(noise, data, protocol=QUICK).value
    (clone,) = (attack for attack in value["attacks"] if attack["name"] == "Knockoff")
    assert clone["victims"][0]["curve"][-1]["agreement"]["value"] < 0.55
    assert any("was no file" in warning for warning in value["warnings"])


def test_the_command_writes_the_pages_and_goes_on(
    files: tuple[Path, Path, nn.Module, Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, original, _, _ = files
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.py").write_text("import tiny\ndef data():\n    return tiny.tiny_data((10,))\n")
    command = [
        "audit",
        str(file),
        "--against",
        str(original),
        "--data",
        "given:data",
        "--out",
        "out",
        "--processes",
        "1",
    ]
    command += ["--queries", "16,48", "--seeds", "1", "--effort", "0.05", "--attacks", "Knockoff"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "harder to extract" in result.output
    value = load_audit(tmp_path / "out" / "audit.json")
    assert value["protocol"]["budgets"] == [16, 48]
    assert (tmp_path / "out" / "audit.html").read_text().startswith("<!doctype html>")
    again = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(again.stdout)["claims"] == value["claims"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--queries", "16,100000"], "fewer than the budget of 100,000"),
        (["--answers", "scores"], "expected labels, probabilities"),
        (["--attacks", "Knokoff"], "did you mean 'Knockoff'"),
        (["--queries", "many"], "expected numbers"),
    ],
)
def test_the_command_refuses_with_a_sentence(
    options: list[str],
    message: str,
    files: tuple[Path, Path, nn.Module, Data],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given2.py").write_text("import tiny\ndef data():\n    return tiny.tiny_data((10,))\n")
    result = CliRunner().invoke(app, ["audit", str(files[0]), "--data", "given2:data", *options])
    assert result.exit_code != 0
    assert message in result.output


def test_an_endpoint_needs_its_owners_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given3.py").write_text("import tiny\ndef data():\n    return tiny.tiny_data((10,))\n")
    (tmp_path / "endpoint.yaml").write_text("classes: 4\n")
    command = ["audit", "https://models.example.org/x", "--data", "given3:data", "--endpoint-config", "endpoint.yaml"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "--i-own-this-endpoint" in result.output


def test_ways_of_answering_stand_side_by_side(files: tuple[Path, Path, nn.Module, Data]) -> None:
    file, _, _, data = files
    shown = tuple(Disclosure.parse(text) for text in ("labels", "rounded-2"))
    protocol = replace(QUICK, seeds=1, attacks=("Knockoff", "ActiveThief"), compare_answers=shown)
    result = nl.audit(file, data, protocol=protocol)
    entries = result.value["answers"]
    assert [entry["answers"] for entry in entries] == ["labels", "rounded-2"]
    assert all(entry["attack"] in ("Knockoff", "ActiveThief") for entry in entries)
    page = render_audit(result.value)
    assert "by what the file shows" in page
    assert page.count("rounded-2") >= 1
