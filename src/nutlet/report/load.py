"""Reading reports, audits and diagnoses back from JSON: bounded, and checked against the schema before any use."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NoReturn

from nutlet.errors import StorageError

__all__ = [
    "LARGEST",
    "check",
    "check_audit",
    "check_diagnosis",
    "load_audit",
    "load_diagnosis",
    "load_report",
    "schema",
]

LARGEST = 32 * 2**20
"""Bytes above which a file is not read: a report of a thousand layers and ten steps has about 2 MiB."""

_DEEPEST = 60
_BIGGEST = 10**18
_JSON = ("null", "boolean", "integer", "number", "string", "object", "array")


@functools.cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of ``report.json``, with a description and a unit for every field."""
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
    return loaded


def load_report(path: Path) -> dict[str, Any]:
    """Read and check a ``report.json``.

    Raises:
        StorageError: the file is missing, empty, too big, not JSON, or not a report; the message names the field.
    """
    value = _read(path, "report.json")
    check(value, where=str(path))
    assert isinstance(value, dict)  # checked just above; for the type checker
    return value


def load_audit(path: Path) -> dict[str, Any]:
    """Read and check an ``audit.json``.

    Raises:
        StorageError: the file is missing, empty, too big, not JSON, or not an audit; the message names the field.
    """
    value = _read(path, "audit.json")
    check_audit(value, where=str(path))
    assert isinstance(value, dict)
    return value


def load_diagnosis(path: Path) -> dict[str, Any]:
    """Read and check a ``diagnosis.json``.

    Raises:
        StorageError: the file is missing, empty, too big, not JSON, or not a diagnosis; the message names the field.
    """
    value = _read(path, "diagnosis.json")
    check_diagnosis(value, where=str(path))
    assert isinstance(value, dict)
    return value


def _read(path: Path, kind: str) -> Any:
    try:
        with path.open("rb") as file:
            # One byte more than allowed is enough to know, and a size asked beforehand may be stale or a lie.
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise StorageError(f"could not read {path}: {error.strerror}; expected {kind}") from error
    if len(raw) > LARGEST:
        raise StorageError(f"{path} has more than {LARGEST:,} bytes; expected {kind} of at most that size")
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError as error:
        raise StorageError(f"{path} is nested too deeply; expected {kind} as nutlet writes it") from error
    except ValueError as error:
        raise StorageError(
            f"{path} is not JSON ({error}); expected {kind} as nutlet writes it. "
            "If the file was cut off, copy it again or write it anew"
        ) from error


def check(value: Any, where: str = "report") -> None:
    """Check plain data against the schema of a report.

    Raises:
        StorageError: a required field is missing, or a field has another type or range than the schema says.

    >>> check({"schema": 1})
    Traceback (most recent call last):
    nutlet.errors.StorageError: report: the field 'nutlet' is missing; expected it as: version of nutlet that wrote it
    """
    _check(value, schema(), "", where, 0)
    if value.get("audit") is not None:
        _check_names(value["audit"], f"{where}: audit")


def check_audit(value: Any, where: str = "audit") -> None:
    """Check plain data against the part of the schema that describes an audit.

    Raises:
        StorageError: a required field is missing, a field has another type or range than the schema says, or an attack
            names a file that is not among the audited ones.

    >>> check_audit(None)
    Traceback (most recent call last):
    nutlet.errors.StorageError: audit: the whole is None (null); expected object: How hard the shipped file is to steal
    """
    _check(value, {"$ref": "#/$defs/audit", "type": "object"}, "", where, 0)
    _check_names(value, where)


def check_diagnosis(value: Any, where: str = "diagnosis") -> None:
    """Check plain data against the part of the schema that describes a diagnosis.

    Raises:
        StorageError: a required field is missing, or a field has another type or range than the schema says.
    """
    _check(value, {"$ref": "#/$defs/diagnosis", "type": "object"}, "", where, 0)


def _check_names(audit: dict[str, Any], where: str) -> None:
    """Check what a schema cannot say: figures belong to a file by its name, so names must tell the files apart."""
    roles = {artifact["name"]: artifact["role"] for artifact in audit["artifacts"]}
    if len(set(roles.values())) != len(audit["artifacts"]) or "after" not in roles.values():
        found = ", ".join(f"{artifact['name'][:80]!r} as {artifact['role']}" for artifact in audit["artifacts"])
        raise StorageError(
            f"{where}: artifacts are {found}; expected one 'after' and at most one 'before', of two names"
        )
    for attack in audit["attacks"]:
        for victim in attack["victims"]:
            if victim["artifact"] not in roles:
                raise StorageError(
                    f"{where}: {attack['name'][:80]} attacked {victim['artifact'][:80]!r}; "
                    f"expected one of the audited files: {', '.join(name[:80] for name in roles)}"
                )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"found {name}")


def _check(value: Any, rule: dict[str, Any], field: str, where: str, depth: int) -> None:
    """Apply the part of JSON Schema that schema.json uses; a test holds that it uses no other."""
    if "$ref" in rule:
        target = schema()["$defs"][rule["$ref"].removeprefix("#/$defs/")]
        rule = {**target, **{key: item for key, item in rule.items() if key != "$ref"}}
    if depth > _DEEPEST:
        raise StorageError(f"{where}: {field[:80]} is nested too deeply; expected at most {_DEEPEST} levels")
    kinds = rule.get("type", _JSON)
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if _kind(value) not in kinds and not (_kind(value) == "integer" and "number" in kinds):
        _refuse(where, field, value, f"{' or '.join(kinds)}: {rule.get('description', 'plain JSON')}")
    if "const" in rule and value != rule["const"]:
        _refuse(where, field, value, f"{rule['const']}; this version of nutlet reads no other")
    if "enum" in rule and value not in rule["enum"]:
        _refuse(where, field, value, f"one of {', '.join(map(str, rule['enum']))}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # A whole number that no file can hold would overflow when it is divided.
        low, high = rule.get("minimum", -_BIGGEST), rule.get("maximum", _BIGGEST)
        if not low <= value <= high:
            _refuse(where, field, value, f"a number from {low:g} to {high:g}")
    elif isinstance(value, (list, tuple)):
        if not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", math.inf):
            limits = f"{rule.get('minItems', 0):,} to {rule.get('maxItems', math.inf):,}"
            raise StorageError(f"{where}: {field} has {len(value):,} entries; expected {limits}")
        for index, item in enumerate(value):
            _check(item, rule.get("items", {}), f"{field}[{index}]", where, depth + 1)
    elif isinstance(value, dict):
        prefix = f"{field}." if field else ""
        for name in rule.get("required", ()):
            if name not in value:
                description = rule["properties"][name].get("description", "see the schema")
                raise StorageError(f"{where}: the field {prefix + name!r} is missing; expected it as: {description}")
        others = rule.get("additionalProperties", {})
        for name, item in value.items():
            _check(item, rule.get("properties", {}).get(name, others), f"{prefix}{name}", where, depth + 1)


def _kind(value: Any) -> str:
    if isinstance(value, float):
        return "number" if math.isfinite(value) else "infinity or not a number"
    names = {type(None): "null", bool: "boolean", int: "integer", str: "string", dict: "object"}
    return "array" if isinstance(value, (list, tuple)) else names.get(type(value), type(value).__name__)


def _refuse(where: str, field: str, value: Any, expected: str) -> NoReturn:
    found = repr(value) if not isinstance(value, (dict, list, tuple)) else f"{len(value)} entries"
    found = found if len(found) <= 80 else found[:79] + "…"
    raise StorageError(f"{where}: {field or 'the whole'} is {found} ({_kind(value)}); expected {expected}")
