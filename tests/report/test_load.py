"""report.json: described in full, and refused with a reason where it is broken."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest

from nutlet.errors import StorageError
from nutlet.report import load, load_report
from nutlet.report.load import LARGEST, check, schema


def plain(value):
    return json.loads(json.dumps(value))


def test_sample_fits_the_schema_and_the_schema_is_valid(report):
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(plain(report), schema(), jsonschema.Draft202012Validator)
    check(report)


def rules(rule):
    yield rule
    for part in (*rule.get("properties", {}).values(), *rule.get("$defs", {}).values()):
        yield from rules(part)
    for key in ("items", "additionalProperties"):
        if key in rule:
            yield from rules(rule[key])


def test_every_field_is_described_and_only_known_keywords_are_used():
    known = {"$schema", "$ref", "$defs", "title", "description", "type", "const", "minimum", "maximum", "minItems",
             "maxItems", "items", "properties", "required", "additionalProperties", "enum"}  # fmt: skip
    for rule in rules(schema()):
        assert set(rule) <= known
        assert "$ref" in rule or rule.get("description"), rule


def test_no_name_is_defined_twice():
    def once(pairs):
        names = [name for name, _ in pairs]
        assert len(set(names)) == len(names), names
        return dict(pairs)

    text = Path(load.__file__).with_name("schema.json").read_text(encoding="utf-8")
    json.loads(text, object_pairs_hook=once)


def test_every_field_of_the_sample_is_in_the_schema(report):
    def walk(value, rule, field):
        if "$ref" in rule:
            rule = schema()["$defs"][rule["$ref"].rsplit("/", 1)[1]]
        if isinstance(value, dict) and "properties" in rule:
            for key, item in value.items():
                assert key in rule["properties"], f"{field}.{key}"
                walk(item, rule["properties"][key], f"{field}.{key}")
        elif isinstance(value, list):
            for item in value:
                walk(item, rule.get("items", {}), field)

    walk(plain(report), schema(), "report")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, "schema is 2"),
        ("history", [], "history has 0 entries; expected 1 to 1,001"),
        ("history.1.accuracy", 1e10, r"history\[1\]\.accuracy is 1e\+10|10000000000"),
        ("history.1.accuracy", float("nan"), r"history\[1\]\.accuracy is nan"),
        ("history.0.size.bytes", "many", r"history\[0\]\.size\.bytes is 'many' \(string\); expected integer"),
        ("history.0.size.bytes", 10**30, "expected a number from 0 to 1e"),
        ("history.0.plan", {"deep": float("inf")}, "plan.deep is inf"),
        ("history.0.plan", {"kept": {1, 2}}, "plan.kept is .* expected"),
        ("measurement.compressed.latency", [{"batch": 0, "threads": 1}], "batch is 0"),
        ("measurement.compressed.bytes", True, "bytes is True"),
        ("model", "resnet", "model is 'resnet'"),
        ("warnings", "none", "warnings is 'none'"),
    ],
)
def test_wrong_fields_are_named(report, path, value, message):
    *parents, last = path.split(".")
    target = report = plain(report)
    for key in parents:
        target = target[int(key)] if key.isdigit() else target[key]
    target[last] = value
    with pytest.raises(StorageError, match=message):
        check(report)


@pytest.mark.parametrize("field", schema()["required"])
def test_missing_fields_are_named(report, field):
    del report[field]
    with pytest.raises(StorageError, match=f"'{field}' is missing; expected it as"):
        check(report)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff\xfe garbage",
        b"[]",
        b"null",
        b'"report"',
        b"[" * 200_000,
        b'{"schema": NaN}',
        b'{"schema": 1e999}',
    ],
    ids=["empty", "garbage", "list", "null", "text", "nested", "nan", "infinity"],
)
def test_garbage_is_refused(tmp_path, raw):
    path = tmp_path / "report.json"
    path.write_bytes(raw)
    with pytest.raises(StorageError, match=r"report\.json"):
        load_report(path)


def test_truncated_file_is_refused_at_every_length(report, tmp_path):
    path = tmp_path / "report.json"
    raw = json.dumps(report).encode()
    for length in range(0, len(raw) - 1, len(raw) // 23):
        path.write_bytes(raw[:length])
        with pytest.raises(StorageError, match="not JSON"):
            load_report(path)


def test_huge_file_is_refused_without_reading_it_all(tmp_path):
    path = tmp_path / "report.json"
    with path.open("wb") as file:
        file.truncate(LARGEST * 100)  # sparse
    with pytest.raises(StorageError, match="more than 33,554,432 bytes"):
        load_report(path)


def test_missing_file_and_deep_nesting_are_refused(report, tmp_path):
    with pytest.raises(StorageError, match="could not read"):
        load_report(tmp_path / "nothing.json")
    deep = copy.deepcopy(report)
    inner = deep["history"][0]["plan"]
    for _ in range(300):
        inner["x"] = {}
        inner = inner["x"]
    with pytest.raises(StorageError, match="nested too deeply"):
        check(deep)
