from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import nutlet as nl
from endpoint_server import Handler, Server, serving
from nutlet.cli import app
from nutlet.data.columns import Column, Columns
from nutlet.errors import ConfigError
from nutlet.oracle import load_endpoint
from nutlet.oracle.template import Template, rows_of
from sklearn_files import adult_rows, write_csv

COLUMNS = Columns((Column("age", whole=True), Column("job", ("clerk", "cook")), Column("pay")), "rich", ("no", "yes"))
X = torch.tensor(COLUMNS.encode({"age": np.array([39.0, 50.0]), "job": np.array(["cook", "clerk"], object),
                                 "pay": np.array([0.1, 2.0])}))  # fmt: skip
ROWS = [{"age": 39, "job": "cook", "pay": 0.1}, {"age": 50, "job": "clerk", "pay": 2}]


def test_rows_are_plain_values() -> None:
    assert rows_of(COLUMNS, X.numpy()) == ROWS


@pytest.mark.parametrize(
    ("body", "filled"),
    [
        ({"a": ["${*}"], "v": 1}, {"a": ROWS, "v": 1}),
        ([["${age}", "${job}"]], [[39, "cook"], [50, "clerk"]]),
        ({"age": ["${age}"], "job": ["${job}"]}, {"age": [39, 50], "job": ["cook", "clerk"]}),
        (
            {"rows": [{"years": "${age}", "kind": [1, "x"]}]},
            {"rows": [{"years": a, "kind": [1, "x"]} for a in (39, 50)]},
        ),
    ],
)
def test_many_rows(body: Any, filled: Any) -> None:
    template = Template(body)
    assert template.many
    assert template.filled(ROWS) == filled


def test_one_row() -> None:
    template = Template({"person": {"age": "${age}", "job": "${job}"}})
    assert not template.many
    assert template.filled(ROWS[:1]) == {"person": {"age": 39, "job": "cook"}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"a": 1}, "no place for a value"),
        ({"a": "I am ${age} years old"}, "expected a place to be all of a text"),
        ({"user": "${age}", "rows": [{"job": "${job}"}]}, "inside and outside of the list"),
        ({"a": float("nan"), "b": "${age}"}, "what JSON does not know"),
        ({"a": "x" * 70_000}, "expected at most"),
    ],
)
def test_templates_that_say_nothing_clear(body: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Template(body)


def test_places_are_columns() -> None:
    with pytest.raises(ConfigError, match="names the column 'agee'; did you mean 'age'"):
        nl.Endpoint(url="https://a.example/x", classes=2, i_own_this_endpoint=True, template={"a": "${agee}"},
                    columns=COLUMNS)  # fmt: skip
    with pytest.raises(ConfigError, match=r"takes named fields .* expected a table"):
        nl.Endpoint(url="https://a.example/x", classes=2, i_own_this_endpoint=True, template={"a": "${age}"})
    with pytest.raises(ConfigError, match="both `request` and `template`"):
        nl.Endpoint(url="https://a.example/x", classes=2, i_own_this_endpoint=True, template={"a": "${age}"},
                    request="rows", columns=COLUMNS)  # fmt: skip


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def giving(make: Any) -> Any:
    def deed(handler: Handler, _: torch.Tensor) -> None:
        state = handler.server.state  # type: ignore[attr-defined]
        handler.give(json.dumps(make(state.bodies[-1])).encode())

    return deed


@pytest.mark.parametrize(
    ("fields", "make", "bodies"),
    [
        ({}, lambda body: {"probabilities": [[0.2, 0.8]] * len(body["inputs"])}, [{"inputs": ROWS}]),
        (
            {"template": {"rows": ["${*}"]}, "response": "predictions.*.scores"},
            lambda body: {"predictions": [{"scores": {"yes": 0.8, "no": 0.2}} for _ in body["rows"]]},
            [{"rows": ROWS}],
        ),
        (
            {"template": {"age": "${age}"}, "response": "p"},
            lambda body: {"p": [0.2, 0.8]},
            [{"age": 39}, {"age": 50}],
        ),
        (
            {"template": {"age": "${age}"}, "response": "label", "outputs": "labels"},
            lambda body: {"label": "yes"},
            [{"age": 39}, {"age": 50}],
        ),
    ],
)
def test_an_endpoint_with_named_fields(server: Server, fields: dict[str, Any], make: Any, bodies: list[Any]) -> None:
    server.deeds.extend([giving(make)] * len(bodies))
    endpoint = nl.Endpoint(url=server.url, classes=2, i_own_this_endpoint=True, columns=COLUMNS, retries=0, **fields)
    expected = [0.0, 1.0] if fields.get("outputs") == "labels" else [0.2, 0.8]
    assert torch.allclose(endpoint(X), torch.tensor([expected] * 2))
    assert server.bodies == bodies


def test_audit_an_endpoint_with_named_fields(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def answer(body: Any) -> Any:
        rich = [row["age"] / 40 + (row["school"] == "Masters") > 1.5 for row in body["people"]]
        return {"predictions": [{"scores": {"<=50K": 1 - 0.9 * r, ">50K": 0.9 * r}} for r in map(float, rich)]}

    server.deeds.extend([giving(answer)] * 100)
    path = tmp_path / "endpoint.yaml"
    template = {"people": [{"age": "${age}", "school": "${education}"}]}
    path.write_text(yaml.safe_dump({"template": template, "response": "predictions.*.scores"}))
    data = write_csv(tmp_path / "adult.csv", 200)
    options = ["--endpoint-config", str(path), "--i-own-this-endpoint", "--label", "income", "--seeds", "1"]
    options += ["--queries", "50", "--effort", "0.02", "--attacks", "Knockoff", "--out", str(tmp_path / "out")]
    command = ["audit", server.url, "-d", str(data), *options]
    asked = CliRunner().invoke(app, command)
    assert asked.exit_code == 2
    assert "about 70 inputs will be sent to" in asked.output
    assert "expected your agreement: give --yes" in asked.output
    assert server.bodies == []
    done = CliRunner().invoke(app, [*command, "--yes"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out/audit.html").is_file()
    sent = sum(len(body["people"]) for body in server.bodies)
    assert 0 < sent <= 70
    assert f"{sent} inputs were sent to" in done.output
    assert set(server.bodies[0]["people"][0]) == {"age", "school"}
    assert server.bodies[0]["people"][0]["school"] in set(adult_rows()["education"])


def test_an_endpoint_file_needs_no_number_of_classes_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(
        "url: https://a.example/x\ntemplate:\n  people:\n    - age: ${age}\n      all: ${*}\n"
    )
    endpoint = load_endpoint(tmp_path / "e.yaml", i_own_this_endpoint=True, columns=COLUMNS)
    assert endpoint.classes == 2
    assert endpoint.per_request == 64
    other = load_endpoint(tmp_path / "e.yaml", i_own_this_endpoint=True, classes=2, columns=COLUMNS)
    assert other.fingerprint() == endpoint.fingerprint()
