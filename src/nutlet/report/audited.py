"""Looking things up in an audit: which file is which, what ran, which attack got furthest."""

from __future__ import annotations

from typing import Any

__all__ = [
    "ROLES",
    "best_clone",
    "best_membership",
    "in_order",
    "last",
    "names",
    "ran",
    "strictest",
    "task_of",
    "victims",
]

ROLES = ("before", "after")
"""The original and the file that ships, in the order in which they are shown."""


def names(audit: dict[str, Any]) -> dict[str, str]:
    """Return the names of the audited files by role; ``before`` is missing where one file was audited alone."""
    return {artifact["role"]: artifact["name"] for artifact in audit["artifacts"]}


def victims(audit: dict[str, Any], attack: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what an attack got, by the role of the file."""
    roles = {name: role for role, name in names(audit).items()}
    return {roles[victim["artifact"]]: victim for victim in attack["victims"]}


def in_order(audit: dict[str, Any], attack: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the same as pairs, the original first."""
    sides = victims(audit, attack)
    return [(role, sides[role]) for role in ROLES if role in sides]


def task_of(audit: dict[str, Any]) -> dict[str, Any]:
    """Return name, metric and unit of the task; audits of before there were several are of classifiers."""
    task: dict[str, Any] = audit["protocol"].get("task") or {
        "name": "classification", "metric": "accuracy", "unit": "share"
    }  # fmt: skip
    return task


def ran(audit: dict[str, Any], *goals: str) -> list[dict[str, Any]]:
    """Return the attacks with one of these goals that were run on the file that ships."""
    return [
        attack
        for attack in audit["attacks"]
        if attack["goal"] in goals and attack["status"] == "run" and "after" in victims(audit, attack)
    ]


def last(victim: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the copy after the largest budget."""
    return max((victim or {}).get("curve") or [], key=lambda point: point["queries"], default=None)


def strictest(victim: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the lowest false-positive rate that may be spoken of, with the members found there."""
    rates = [rate for rate in (victim or {}).get("tpr_at") or [] if rate["claimable"] and rate["tpr"]]
    return min(rates, key=lambda rate: rate["fpr"], default=None)


def best_clone(audit: dict[str, Any]) -> dict[str, Any] | None:
    """Return the attack whose copy of the shipped file agrees most with it after the largest budget."""
    scored = [
        (point["agreement"]["value"], index, attack)
        for index, attack in enumerate(ran(audit, "clone"))
        if (point := last(victims(audit, attack)["after"]))
    ]
    return max(scored, key=lambda entry: (entry[0], -entry[1]), default=(0, 0, None))[2]


def best_membership(audit: dict[str, Any]) -> dict[str, Any] | None:
    """Return the attack that finds most members at the lowest rate that may be spoken of; then by AUC."""

    def score(attack: dict[str, Any]) -> tuple[float, float]:
        victim = victims(audit, attack)["after"]
        rate, auc = strictest(victim), victim.get("auc")
        return rate["tpr"]["value"] if rate else -1.0, auc["value"] if auc else -1.0

    measured = [attack for attack in ran(audit, "membership") if max(score(attack)) >= 0]
    return max(measured, key=score, default=None)
