"""One attack in a report: what it is, whether it ran, and what it got from each release."""

from __future__ import annotations

from typing import Any

from nutlet.attack import Attack

__all__ = ["not_run", "record", "victim"]


def record(attack: type[Attack], victims: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Return an attack that ran, as plain JSON."""
    return {**_head(attack), "status": "run", "reason": None, "seconds": round(seconds, 2), "victims": victims}


def not_run(attack: type[Attack], reason: str) -> dict[str, Any]:
    """Return an attack that did not run, with the reason: one that is missing must not read as one that failed."""
    return {**_head(attack), "status": "not run", "reason": reason, "seconds": 0.0, "victims": []}


def victim(name: str, queries: int, **got: Any) -> dict[str, Any]:
    """Return what an attack got from one release; what it does not measure is null.

    Args:
        name: of the release.
        queries: inputs sent to it, all seeds together.
        got: any of the fields of the schema.
    """
    empty = dict.fromkeys(("curve", "queries_to", "auc", "tpr_at", "roc", "facts", "share"))
    assert set(got) <= set(empty), set(got) - set(empty)
    return {"artifact": name, "queries_sent": queries, **empty, **got}


def _head(attack: type[Attack]) -> dict[str, Any]:
    return {
        "name": attack.__name__,
        "goal": attack.goal,
        "access": attack.access,
        "source": attack.source,
        "when": attack.when,
    }
