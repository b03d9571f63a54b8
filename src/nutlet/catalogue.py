"""What there is to choose from: registered methods and attacks, with their options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from nutlet.errors import ConfigError, nearest, shown
from nutlet.options import check_names, options_of, schema
from nutlet.tables import Table

__all__ = ["build", "file_schema", "listed", "listing", "options_table"]


T = TypeVar("T")


def build(what: str, known: Mapping[str, type[T]], spec: Any) -> T:
    """Return an instance of one of ``known`` from ``{name: {option: value}}``, or from its bare name.

    Args:
        what: how one is called in messages, as ``method``; ``nutlet <what>s`` lists them.
        known: dataclasses by name.
        spec: as JSON and YAML hold it.

    Raises:
        ConfigError: there is no such class or option (the nearest name is suggested), an option is missing, or a value
            does not fit.
    """
    if isinstance(spec, str):
        spec = {spec: {}}
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise ConfigError(f"found the {what} {shown(spec)}; expected one name with its options, as `Name: {{}}`")
    ((name, given),) = spec.items()
    if name not in known:
        raise ConfigError(f"found the {what} {shown(name)}, which does not exist; {nearest(str(name), known)}")
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ConfigError(f"the options of {name} are {shown(given)}; expected a mapping of option to value")
    check_names(known[name], given, see=f", see `nutlet {what}s {name}`")
    return known[name](**given)


def listed(what: str, known: Mapping[str, type[Any]], name: str | None = None) -> list[dict[str, Any]]:
    """Return every kind with ``use_when`` to pick it and its options, as plain JSON; one alone where ``name`` is given.

    An option is a JSON Schema of its values, with what is ``expected`` in words and whether it is ``required``.

    Args:
        what: how the kinds are called, for the error.
        known: dataclasses by name.
        name: of one.

    Raises:
        ConfigError: there is none of that name.
    """
    if name is not None and name not in known:
        raise ConfigError(f"there is no {what} {name!r}; {nearest(name, known)}")
    chosen = known if name is None else {name: known[name]}
    return [{"name": kind, "when": chosen[kind].use_when, "options": _options(chosen[kind])} for kind in chosen]


def listing(what: str, kinds: Sequence[dict[str, Any]], shared: tuple[str, ...] = ()) -> Table:
    """Return what :func:`listed` found as a table; options in ``shared`` are said once for all."""
    rows = tuple(
        (
            kind["name"],
            kind["when"],
            ", ".join(f"{name}={_default(option)}" for name, option in kind["options"].items() if name not in shared),
        )
        for kind in kinds
    )
    notes = (f"every {what} also takes {' and '.join(shared)}: patterns of module names",) if shared else ()
    return Table(f"{what.capitalize()}s", (what, "when to pick it", "options"), rows, notes)


def options_table(kind: dict[str, Any]) -> Table:
    """Return the options of one entry of :func:`listed` as a table, with what each may be."""
    rows = tuple((name, str(_default(option)), option["expected"]) for name, option in kind["options"].items())
    return Table(f"Options of {kind['name']}", ("option", "default", "expected"), rows, ())


def file_schema(key: str, known: Mapping[str, type[Any]]) -> dict[str, Any]:
    """Return the JSON Schema of a YAML file that lists kinds with their options under ``key``, for editors and tools.

    Args:
        key: ``steps`` of a recipe, ``attacks`` of an audit.
        known: dataclasses by name.
    """
    bare = [name for name, kind in known.items() if not any(option.required for option in options_of(kind).values())]
    one = []
    for name, kind in known.items():
        options = schema(kind) | ({"type": ["object", "null"]} if name in bare else {})
        one.append({"type": "object", "properties": {name: options}, "required": [name], "additionalProperties": False})
    entry = {"anyOf": [{"enum": bare}, *one]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {key: {"type": "array", "items": entry, "minItems": 1}},
        "required": [key],
    }


def _options(kind: type[Any]) -> dict[str, Any]:
    properties = schema(kind)["properties"]
    return {
        name: {**properties[name], "expected": option.expected, "required": option.required}
        for name, option in options_of(kind).items()
    }


def _default(option: dict[str, Any]) -> Any:
    return "required" if option["required"] else option["default"]
