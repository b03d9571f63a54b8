"""One attack in a report: what it is, whether it ran, why not, and what it got from each release."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nutlet.attacks.base import Attack, AttackerKnowledge
from nutlet.auditing.claims import Row
from nutlet.auditing.scoring import Reach
from nutlet.errors import NutletError, printable
from nutlet.measurement import Estimate
from nutlet.oracle import Oracle

__all__ = [
    "CurvePoint",
    "Failure",
    "Obtained",
    "RateFound",
    "Section",
    "failure",
    "not_run",
    "obstacle",
    "record",
]


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


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What a clone is worth after so many queries.

    Args:
        queries: inputs sent.
        agreement: it answers as the file does.
        agreement_original: as the original does; None where there is none.
        agreement_where_wrong: as the file does where that is wrong; None where it never is.
        accuracy: it answers rightly.
        baseline_agreement: the thief without a query answers as the file does; None where he has no labels.
        chance_agreement: who always says the same answers as the file does.
    """

    queries: int
    agreement: Estimate | None
    agreement_original: Estimate | None
    agreement_where_wrong: Estimate | None
    accuracy: Estimate | None
    baseline_agreement: Estimate | None
    chance_agreement: float


@dataclass(frozen=True, kw_only=True)
class RateFound:
    """Members found at one rate of false alarms.

    Args:
        fpr: the rate.
        tpr: share of the members found; None where there are too few candidates to claim it.
        claimable: whether there are enough.
    """

    fpr: float
    tpr: Estimate | None
    claimable: bool


@dataclass(frozen=True, kw_only=True)
class Obtained:
    """What an attack got from one release; what it does not measure is None.

    Args:
        artifact: name of the release.
        queries_sent: inputs sent to it, all seeds together.
        curve: of the clones, by budget.
        queries_to: queries to a level of agreement, by that level; None where it was not reached.
        auc: of membership.
        tpr_at: members found at low rates of false alarms.
        roc: points of the curve, ``fpr`` and ``tpr``.
        facts: what it found out, as plain JSON.
        share: how much it found of what it looked for.
    """

    artifact: str
    queries_sent: int
    curve: tuple[CurvePoint, ...] | None = None
    queries_to: dict[str, Reach | None] | None = None
    auc: Estimate | None = None
    tpr_at: tuple[RateFound, ...] | None = None
    roc: dict[str, list[float]] | None = None
    facts: dict[str, Any] | None = None
    share: Estimate | None = None


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


def record(attack: Attack, obtained: Sequence[Obtained], seconds: float) -> dict[str, Any]:
    """Return an attack that ran, as plain JSON."""
    head, victims = _head(type(attack), attack), [_plain(one) for one in obtained]
    return {**head, "status": "run", "reason": None, "error": None, "seconds": round(seconds, 2), "victims": victims}


def not_run(kind: type[Attack], why: Failure) -> dict[str, Any]:
    """Return an attack that did not run, with the reason: one that is missing must not read as one that failed."""
    error = None if why.error is None else {"type": why.error, "fault": why.fault}
    head = _head(kind, None)
    return {**head, "status": "not run", "reason": why.reason, "error": error, "seconds": 0.0, "victims": []}


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {part.name: _plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _head(kind: type[Attack], attack: Attack | None) -> dict[str, Any]:
    return {
        "name": kind.__name__,
        "options": None if attack is None else attack.options(),
        "goal": kind.goal,
        "access": kind.access,
        "source": kind.source,
        "when": kind.use_when,
    }
