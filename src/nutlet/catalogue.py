"""What there is to choose from: registered methods and attacks, with their options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from nutlet.errors import ConfigError, nearest
from nutlet.tables import Table

__all__ = ["listed", "listing"]


def listed(what: str, known: Mapping[str, type[Any]], name: str | None = None) -> list[dict[str, Any]]:
    """Return every kind with ``use_when`` to pick it and its options, as plain JSON; one alone where ``name`` is given.

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
        (kind["name"], kind["when"], ", ".join(f"{k}={v}" for k, v in kind["options"].items() if k not in shared))
        for kind in kinds
    )
    notes = (f"every {what} also takes {' and '.join(shared)}: patterns of module names",) if shared else ()
    return Table(f"{what.capitalize()}s", (what, "when to pick it", "options"), rows, notes)


def _options(kind: type[Any]) -> dict[str, Any]:
    return {
        option.name: "required" if option.default is dataclasses.MISSING else option.default
        for option in dataclasses.fields(kind)
    }
