"""Options are declared once: what validates them, what lists them, and the schema of files all say the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

import nutlet as nl
from nutlet.attacks import known_attacks
from nutlet.catalogue import build, file_schema
from nutlet.cli import app
from nutlet.compression.recipe import dump_recipe
from nutlet.errors import ConfigError
from nutlet.methods import known_methods
from nutlet.options import Count, Hidden, Option, Range, Share, Validated, options_of, schema
from nutlet.oracle import Endpoint


@dataclass(frozen=True, kw_only=True)
class Everything(Validated):
    needed: Count
    share: Share = 0.5
    even: Annotated[int, Range(2, multiple_of=2, noun="an even number")] | None = None
    open: Annotated[float, Range(0, 1, left_open=True, right_open=True)] = 0.5
    mode: Literal["a", "b"] = "a"
    scales: Literal[1, 2] = 1
    widths: tuple[Annotated[int, Range(2, 8)], ...] = (2, 4)
    flag: bool = False
    names: Annotated[Mapping[str, str] | None, Hidden] = None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"needed": 0}, "Everything.needed is 0; expected a whole number of 1 or more"),
        ({"needed": True}, "Everything.needed is True (bool); expected a whole number of 1 or more"),
        ({"needed": 1.0}, "Everything.needed is 1.0 (float); expected"),
        ({"share": "half"}, "Everything.share is 'half' (str); expected a share from 0 to 1"),
        ({"share": math.nan}, "Everything.share is nan (float); expected a share from 0 to 1"),
        ({"share": 10**400}, "expected a share from 0 to 1"),
        ({"even": 3}, "Everything.even is 3; expected an even number of 2 or more or none"),
        ({"open": 0}, "Everything.open is 0; expected a number above 0 and below 1"),
        ({"open": 1}, "Everything.open is 1; expected a number above 0 and below 1"),
        ({"mode": "c"}, "Everything.mode is 'c' (str); expected one of 'a', 'b'"),
        ({"scales": True}, "Everything.scales is True (bool); expected one of 1, 2"),
        ({"widths": [2, 9]}, "expected a list, each entry a whole number from 2 to 8"),
        ({"widths": 4}, "Everything.widths is 4 (int); expected a list"),
        ({"flag": 1}, "Everything.flag is 1 (int); expected True or False"),
        ({"names": "secret"}, "Everything.names is a str; expected a mapping of name to value or none"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Everything(**{"needed": 1, **options})
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    plain = {key: value for key, value in options.items() if value == value and key != "names"}
    if plain and True not in plain.values():  # JSON takes 1.0 for a whole number, and true for none
        assert jsonschema.Draft202012Validator(schema(Everything)).is_valid({"needed": 1, **plain}) == (
            plain == {"needed": 1.0}
        )


def test_lists_become_tuples() -> None:
    assert Everything(needed=1, widths=[2, 8]).widths == (2, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"Everything": {"neded": 1}}, "Everything has no option 'neded'; did you mean 'needed'?"),
        ({"Everything": {}}, "Everything needs the option 'needed'; expected a whole number of 1 or more"),
        ("Evrything", "found the thing 'Evrything', which does not exist; did you mean 'Everything'?"),
        ({"Everything": 3}, "the options of Everything are 3; expected a mapping"),
        ([], "found the thing []; expected one name"),
    ],
)
def test_what_cannot_be_built_is_said(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build("thing", {"Everything": Everything}, spec)
    assert message in str(caught.value)


def test_options_tell_all() -> None:
    options = options_of(Everything)
    assert next(iter(options)) == "needed"
    assert [name for name, option in options.items() if option.required] == ["needed"]
    assert options["even"] == Option("even", options["even"].hint, None)
    assert options["even"].range is not None
    assert options["even"].range.low == 2
    assert schema(Everything)["required"] == ["needed"]


EVERY = {**known_methods(), **known_attacks(), "Protocol": nl.Protocol, "Endpoint": Endpoint}


@pytest.mark.parametrize("name", [name for name, kind in EVERY.items() if kind.__module__.startswith("nutlet.")])
def test_every_default_fits_its_own_declaration(name: str) -> None:
    for option in options_of(EVERY[name]).values():
        assert option.expected
        assert "typing." not in option.expected
    rules = schema(EVERY[name])
    jsonschema.Draft202012Validator.check_schema(rules)
    json.dumps(rules)
    for rule in rules["properties"].values():
        if "default" in rule:
            jsonschema.validate(rule["default"], rule)


def test_a_recipe_fits_the_schema_that_the_command_line_prints() -> None:
    printed = CliRunner().invoke(app, ["methods", "--schema"])
    assert printed.exit_code == 0
    validator = jsonschema.Draft202012Validator(json.loads(printed.stdout))
    steps = [nl.PruneChannels(ratio=0.5), nl.Distill(epochs=2), nl.Quantize(bits=4)]
    assert validator.is_valid(yaml.safe_load(dump_recipe(steps)))
    assert validator.is_valid({"steps": ["Quantize", {"Quantize": None}]})
    assert not validator.is_valid({"steps": [{"Quantize": {"bits": 9}}]})
    assert not validator.is_valid({"steps": [{"Quantize": {"bit": 8}}]})
    assert not validator.is_valid({"steps": ["DropBlocks"]})
    assert not validator.is_valid({"step": ["Quantize"]})
    alone = json.loads(CliRunner().invoke(app, ["methods", "Quantize", "--schema"]).stdout)
    assert not jsonschema.Draft202012Validator(alone).is_valid({"steps": ["Binarize"]})


def test_a_file_of_attacks_fits_its_schema() -> None:
    validator = jsonschema.Draft202012Validator(file_schema("attacks", known_attacks()))
    assert validator.is_valid({"attacks": ["Knockoff", {"RMIA": {"models": 16}}]})
    assert not validator.is_valid({"attacks": [{"RMIA": {"models": 3}}]})
    printed = CliRunner().invoke(app, ["attacks", "--schema"])
    assert json.loads(printed.stdout)["required"] == ["attacks"]
