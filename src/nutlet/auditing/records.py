"""One attack in a report: what it is, whether it ran, why not, and what it got from each release."""

from __future__ import annotations

import dataclasses
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nutlet.attacks.base import Attack, AttackerKnowledge
from nutlet.auditing.claims import Row
from nutlet.errors import NutletError, printable
from nutlet.oracle import Oracle

__all__ = ["Failure", "Section", "failure", "not_run", "obstacle", "record", "victim"]


@dataclass(frozen=True)
class Failure:
    """Why an attack did not run, or did not get to its end.

    Args:
        reason: for the reader of a report.
        error: class name of the error it ended with; None where it was never begun.
        fault: whether that is no error of ours, so that the code of the attack is at fault and not what it met.
    """

    reason: str
    error: str | None = None
    fault: bool = False


@dataclass(frozen=True)
class Section:
    """What one part of an audit found.

    Args:
        records: of the attacks.
        surface: rows of the first claim.
        copying: of the second.
        worth: of the third.
        warnings: what failed without ending an attack.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    surface: list[Row] = field(default_factory=list)
    copying: list[Row] = field(default_factory=list)
    worth: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __add__(self, other: Section) -> Section:
        """Return what both found, this one first."""
        names = [part.name for part in dataclasses.fields(self)]
        return Section(**{name: getattr(self, name) + getattr(other, name) for name in names})


def failure(error: Exception) -> Failure:
    """Return what a report says of the error that an attack ended with.

    >>> failure(ZeroDivisionError("division by zero")).reason
    'ended with ZeroDivisionError: division by zero'
    """
    kind, fault = type(error).__name__, not isinstance(error, NutletError)
    message = printable(" ".join(str(error).split()), 1_000)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if fault and frames else ""
    return Failure(f"ended with {kind}: {message}{place}" if message else f"ended with {kind}{place}", kind, fault)


def obstacle(attack: Attack, oracle: Oracle, knowledge: AttackerKnowledge) -> Failure | None:
    """Return why ``attack`` cannot run here, or None where it can; an error of its own is a reason too."""
    try:
        reason = attack.obstacle(oracle, knowledge)
    except Exception as error:  # an attack may be anybody's
        return failure(error)
    return None if reason is None else Failure(reason)


def record(attack: Attack, victims: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Return an attack that ran, as plain JSON."""
    head = _head(type(attack), attack)
    return {**head, "status": "run", "reason": None, "error": None, "seconds": round(seconds, 2), "victims": victims}


def not_run(kind: type[Attack], why: Failure) -> dict[str, Any]:
    """Return an attack that did not run, with the reason: one that is missing must not read as one that failed."""
    error = None if why.error is None else {"type": why.error, "fault": why.fault}
    head = _head(kind, None)
    return {**head, "status": "not run", "reason": why.reason, "error": error, "seconds": 0.0, "victims": []}


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


def _head(kind: type[Attack], attack: Attack | None) -> dict[str, Any]:
    return {
        "name": kind.__name__,
        "options": None if attack is None else attack.options(),
        "goal": kind.goal,
        "access": kind.access,
        "source": kind.source,
        "when": kind.use_when,
    }
