"""What stands in each table and chart of an audit, worked out before the templates lay it out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nutlet.report.audit_charts import extraction_chart, roc_chart
from nutlet.report.audited import (
    ROLES,
    best_clone,
    best_membership,
    in_order,
    last,
    names,
    ran,
    task_of,
    victims,
)
from nutlet.report.exposure import exposed, level_name, reached
from nutlet.report.figures import NOT_MEASURED, amount, exact, interval, percent, rate, seconds, size
from nutlet.report.standards import ANALOGY, VERSIONS
from nutlet.report.view import Cell, flat
from nutlet.verdicts import Verdict

__all__ = ["audit_view", "summary"]

NOT_ASKED = "not asked for"
"""The reason of attacks that are one line together."""
ATTACKS_SHOWN = 12
"""Attacks of one kind whose figures are shown; the rest are in audit.json."""
ROWS_SHOWN = 200
"""Facts of one attack."""
ENTRIES_SHOWN = 12
"""Entries of one list among the facts."""

GOALS = {
    "clone": "copy what the file does, by asking",
    "weights": "recover its exact weights",
    "width": "find out the size of a hidden layer",
    "file": "read what lies open in the file",
    "reuse": "use the file as a start for something else",
    "membership": "tell who was in the training data",
    "inversion": "see what the training data look like",
}
SHARES = {
    "inversion": ("Recognised", "reconstructions that an independent classifier names right"),
    "reuse": ("Gained", "of what there is to gain by starting from the file"),
}
"""What the share of an attack counts, where it is not what it looked for."""
ACCESS = {
    "labels": "the name of the class",
    "probabilities": "the probabilities of the classes",
    "logits": "the raw outputs",
    "file": "the file itself",
}


@dataclass(frozen=True)
class Measure:
    """One row of the table of claims."""

    name: str
    note: str
    before: Cell
    after: Cell
    difference: Cell
    verdict: Verdict


@dataclass(frozen=True)
class Pair:
    """One figure of both files; ``before`` is None where one file was audited alone."""

    name: str
    detail: str
    before: Cell | None
    after: Cell


def summary(audit: dict[str, Any]) -> dict[str, Any]:
    """Return what a compression report shows of the audit: the claims and the two pictures that matter most."""
    clone, member = best_clone(audit), best_membership(audit)
    return {
        "claims": _claims(audit) if "before" in names(audit) else [],
        "exposed": exposed(audit),
        "extraction": extraction_chart(audit, clone, 1) if clone else None,
        "roc": roc_chart(audit, member, 1) if member else None,
    }


def audit_view(audit: dict[str, Any]) -> dict[str, Any]:
    """Return everything the page of an audit shows, as plain texts, cells and finished pictures."""
    files = names(audit)
    kinds = {
        "clones": [attack for attack in ran(audit, "clone") if last(victims(audit, attack)["after"])],
        "members": ran(audit, "membership"),
        "leaks": ran(audit, "file"),
        "others": ran(audit, "weights", "width", "reuse", "inversion"),
    }
    clones, members, leaks, others = (attacks[:ATTACKS_SHOWN] for attacks in kinds.values())
    rocs = [roc_chart(audit, attack, index) for index, attack in enumerate(members, 1)]
    return {
        "files": files,
        "paired": "before" in files,
        "claims": _claims(audit),
        "tiles": _tiles(audit),
        "exposed": exposed(audit),
        "shown": [_shown(audit, shown) for shown in audit.get("answers", ())],
        "tried": sorted(
            (_tried(attack) for attack in audit["attacks"] if attack["reason"] != NOT_ASKED),
            key=lambda entry: not entry["ran"],
        ),
        "not_asked": [attack["name"] for attack in audit["attacks"] if attack["reason"] == NOT_ASKED],
        "cost": [(attack["name"], rows) for attack in clones if (rows := _cost(audit, attack))],
        "extraction_charts": [extraction_chart(audit, a, i) for i, a in enumerate(clones, 1)],
        "columns": list((columns := _columns(audit, clones)).values()),
        "numbers": [(attack["name"], _numbers(audit, attack, columns)) for attack in clones],
        "roc_charts": [chart for chart in rocs if chart],
        "rates": [(attack["name"], _rates(audit, attack)) for attack in members],
        "candidates": _candidates(audit["protocol"]["members"]),
        "leaks": _found(audit, leaks),
        "others": _found(audit, others),
        "hidden": {kind: max(len(attacks) - ATTACKS_SHOWN, 0) for kind, attacks in kinds.items()},
        "why_not": {goal: _why_not(audit, goal) for goal in GOALS},
        "standards": [f"{standard} {version}" for standard, version in VERSIONS.items()],
        "findings": [_finding(finding) for finding in audit["findings"]],
        "analogy": ANALOGY,
        "protocol": _protocol(audit),
        "environment": flat(audit["environment"]),
    }


def _claims(audit: dict[str, Any]) -> list[tuple[str, list[Measure]]]:
    files = names(audit)
    first = [(claim["claim"], sorted(claim["rows"], key=lambda row: not row["primary"])) for claim in audit["claims"]]
    return [(claim, [_measure(row, files) for row in rows]) for claim, rows in first]


def _measure(row: dict[str, Any], files: dict[str, str]) -> Measure:
    def cell(role: str) -> Cell:
        # Nobody counts queries to a level that was not reached: of a file that was attacked, that is the answer.
        if row[role] is None and row["unit"] == "queries" and role in files:
            return Cell("not reached")
        return Cell(amount(row[role], row["unit"]))

    note = "; ".join(filter(None, [row["words"] if row["primary"] else "", row["note"]]))
    return Measure(row["measure"], note, cell("before"), cell("after"), _difference(row), Verdict(row["verdict"]))


def _difference(row: dict[str, Any]) -> Cell:
    found = row["difference"]
    if found is None:
        return Cell(NOT_MEASURED if row["verdict"] == Verdict.NOT_MEASURED else "–")
    low, high = (amount(found[end], row["unit"], sign=True) for end in ("low", "high"))
    span = f"{low.removesuffix(' points')} to {high}"
    if found["low"] is None or found["high"] is None:
        # What is counted in a file is exact and needs none.
        span = "" if row["unit"] in ("bytes", "count") else "no interval"
    return Cell(amount(found["value"], row["unit"], sign=True), span)


def _tiles(audit: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return what the page is about, in a few words each: the claims, or of a file alone what it is exposed to."""
    if "before" not in names(audit):
        return [(f"risk of {entry['question']}", entry["grade"], entry["answer"]) for entry in exposed(audit)]
    return [(claim["claim"], *_deciding(claim)) for claim in audit["claims"] if claim["rows"]]


def _deciding(claim: dict[str, Any]) -> tuple[str, str]:
    """Return the verdict of the row that decides a claim, and what that rests on."""
    deciding = next((row for row in claim["rows"] if row["primary"]), None)
    if deciding is None:
        return NOT_MEASURED, ""
    verdict, words = deciding["verdict"], deciding["words"]
    return verdict, words.removeprefix(verdict).strip(" ,:")


def _tried(attack: dict[str, Any]) -> dict[str, Any]:
    outcome = f"run, {seconds(attack['seconds'])}" if attack.get("seconds") is not None else "run"
    return {
        "name": attack["name"],
        "goal": GOALS[attack["goal"]],
        "when": attack["when"],
        "access": ACCESS.get(attack["access"], attack["access"]),
        "source": attack["source"],
        "ran": attack["status"] == "run",
        "outcome": outcome if attack["status"] == "run" else f"not run: {attack['reason'] or 'no reason given'}",
    }


def _pair(audit: dict[str, Any], name: str, detail: str, cells: dict[str, Cell]) -> Pair:
    before = cells.get("before", Cell(NOT_MEASURED)) if "before" in names(audit) else None
    return Pair(name, detail, before, cells.get("after", Cell(NOT_MEASURED)))


def _cost(audit: dict[str, Any], attack: dict[str, Any]) -> list[Pair]:
    """Return what each level of agreement takes."""
    budget = max(audit["protocol"]["budgets"], default=0)

    def cell(reach: dict[str, Any] | None) -> Cell:
        if reach is None:
            return Cell("not reached", f"with {exact(budget)} queries")
        return Cell(f"{reached(reach, budget)} queries", _money(reach["value"], audit["protocol"]["price"]))

    sides = {role: victim.get("queries_to") or {} for role, victim in victims(audit, attack).items()}
    rows = []
    for level in sorted({level for side in sides.values() for level in side}):
        cells = {role: cell(side[level]) for role, side in sides.items() if level in side}
        rows.append(_pair(audit, f"To agree on {level_name(level)}", "", cells))
    return rows


def _shown(audit: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """Return what a copy comes to under one way of answering."""
    budget = max(audit["protocol"]["budgets"], default=0)
    levels = [
        (level_name(level), reached(reach, budget)) for level, reach in sorted((shown["queries_to"] or {}).items())
    ]
    return {**shown, "agreement": _estimate(shown["agreement"]), "levels": levels}


def _money(asked: float, price: dict[str, Any] | None) -> str:
    if price is None:
        return "no price named"
    spent = price["per_query"] * asked
    return f"{'< 0.01' if 0 < spent < 0.01 else f'{spent:,.2f}'} {price['currency']}"


def _columns(audit: dict[str, Any], clones: list[dict[str, Any]]) -> dict[str, str]:
    """Return what is told of each copy, and the heading; what no copy has a figure for is left out."""
    metric = task_of(audit)["metric"]
    headings = {
        "agreement": "Agrees with the file",
        "agreement_where_wrong": "Where the file is wrong",
        "agreement_original": "Agrees with the original",
        "accuracy": f"{metric[0].upper()}{metric[1:]} of the copy",
        "baseline_agreement": "Thief without a query",
    }
    points = [p for attack in clones for victim in attack["victims"] for p in victim.get("curve") or []]
    return {key: heading for key, heading in headings.items() if any(point.get(key) for point in points)}


def _numbers(audit: dict[str, Any], attack: dict[str, Any], keys: Iterable[str]) -> list[dict[str, Any]]:
    """Return one row per file and budget."""
    return [
        {
            "file": names(audit)[role],
            "queries": exact(point["queries"]),
            "cells": [_estimate(point.get(key)) for key in keys],
        }
        for role, victim in in_order(audit, attack)
        for point in victim.get("curve") or []
    ]


def _estimate(estimate: dict[str, Any] | None, digits: int | None = None) -> Cell:
    """Return a share, or a metric in its unit, with its interval; with ``digits`` a plain number."""
    if estimate is None:
        return Cell(NOT_MEASURED)
    low, high, value = estimate["low"], estimate["high"], estimate["value"]
    if digits is None and "unit" in estimate:
        ends = None if low is None or high is None else [amount(end, estimate["unit"]) for end in (low, high)]
        return Cell(amount(value, estimate["unit"]), " to ".join(ends) if ends else "no interval")
    if digits is None:
        return Cell(percent(value), interval(low, high) or "no interval")
    span = "no interval" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"
    return Cell(f"{value:.{digits}f}", span)


def _rates(audit: dict[str, Any], attack: dict[str, Any]) -> list[Pair]:
    sides = victims(audit, attack)
    rows = [_pair(audit, "AUC", "0.5 is guessing", {r: _estimate(v.get("auc"), 3) for r, v in sides.items()})]
    levels = sorted({item["fpr"] for victim in sides.values() for item in victim.get("tpr_at") or []})
    for level in levels:
        cells = {
            role: _estimate(item["tpr"]) if item["claimable"] else Cell("no claim", "too few candidates")
            for role, victim in sides.items()
            for item in victim.get("tpr_at") or []
            if item["fpr"] == level
        }
        rows.append(_pair(audit, f"Members found at {rate(level)} FPR", f"guessing finds {rate(level)}", cells))
    return rows


def _candidates(members: dict[str, Any] | None) -> list[str]:
    """Say who the candidates were and what may be claimed with so many."""
    if members is None:
        return []
    told = f"{exact(members['members'])} members of the training data and {exact(members['non_members'])} others"
    sentences = [f"The candidates were {told}."]
    if members["smallest_fpr"] is not None:
        sentences.append(
            f"With so few others, nothing can be said of false-positive rates below {rate(members['smallest_fpr'])}."
        )
    if members.get("shadow_models") is not None:
        sentences.append(f"The attacker trained {exact(members['shadow_models'])} models of his own to compare with.")
    again = members.get("training_data_used_again")
    sentences.append({
        True: "Compression trained on the members again, which can make a file remember them better.",
        False: "Compression did not train on the members again.",
        None: "Whether compression trained on the members again is not known.",
    }[again])  # fmt: skip
    blind = members.get("blind_auc")
    sentences.append(
        f"An attacker who sees no model at all, only the candidates, reaches an AUC of "
        f"{blind['value']:.3f}: what a model leaks is only what goes beyond that."
        if blind
        else "How far one gets with no model at all, from the candidates alone, was not measured."
    )
    return sentences


def _found(audit: dict[str, Any], attacks: list[dict[str, Any]]) -> list[tuple[str, list[Pair]]]:
    """Return what each attack found out, both files side by side."""
    return [(f"{attack['name']}: {GOALS[attack['goal']]}", _facts(audit, attack)) for attack in attacks]


def _facts(audit: dict[str, Any], attack: dict[str, Any]) -> list[Pair]:
    sides = victims(audit, attack)
    facts = {role: flat(_short(victim.get("facts") or {})) for role, victim in sides.items()}
    keys = list(dict.fromkeys(key for role in ("after", "before") for key in facts.get(role, {})))
    rows = []
    if not keys or any(victim.get("share") for victim in sides.values()):
        cells = {role: _estimate(victim.get("share")) for role, victim in sides.items()}
        rows.append(_pair(audit, *SHARES.get(attack["goal"], ("Found", "of what it looked for")), cells))
    for key in keys[:ROWS_SHOWN]:
        rows.append(_pair(audit, key, "", {role: Cell(found.get(key, "not found")) for role, found in facts.items()}))
    if len(keys) > ROWS_SHOWN:
        rows.append(_pair(audit, "more", "", {role: Cell("in audit.json") for role in ROLES}))
    return rows


def _short(value: Any) -> Any:
    """Cut long lists, and say so; an entry that has parts becomes one text."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        shown = [
            " ".join(f"{k} {v}" for k, v in flat(item if isinstance(item, dict) else {"": item}).items()).strip()
            for item in value[:ENTRIES_SHOWN]
        ]
        return shown if len(value) <= ENTRIES_SHOWN else [*shown, f"and {len(value) - ENTRIES_SHOWN} more"]
    return value


def _why_not(audit: dict[str, Any], goal: str) -> list[str]:
    attacks = [attack for attack in audit["attacks"] if attack["goal"] == goal and attack["status"] != "run"]
    if attacks and all(attack["reason"] == NOT_ASKED for attack in attacks):
        return ["No attack of this kind was asked for"]
    return [f"{attack['name']}: {attack['reason'] or 'no reason given'}" for attack in attacks]


def _finding(finding: dict[str, Any]) -> dict[str, Any]:
    ids: dict[str, list[dict[str, Any]]] = {standard: [] for standard in VERSIONS}
    for reference in finding["ids"]:
        ids.setdefault(reference["standard"], []).append(reference)
    return {**finding, "ids": list(ids.values()), "mark": Verdict(finding["verdict"]).mark}


def _protocol(audit: dict[str, Any]) -> dict[str, str]:
    """Return the setting in which every figure was taken, as names and texts."""
    told, task = audit["protocol"], task_of(audit)
    rows = {"Task": f"{task['name'].replace('_', ' ')}, scored by {task['metric']}"}
    for artifact in sorted(audit["artifacts"], key=lambda artifact: artifact["role"]):
        low, high = artifact.get("accuracy_low"), artifact.get("accuracy_high")
        metric = {"value": artifact["accuracy"], "low": low, "high": high}
        if task["unit"] != "share":
            metric["unit"] = task["unit"]
        shown = _estimate(None if artifact["accuracy"] is None else metric)
        words = f"{artifact['name']}, {size(artifact['bytes'])}, {task['metric']} {shown.text}"
        words += "" if low is None else f" ({shown.detail})"
        file = "File that ships" if artifact["role"] == "after" else "Original"
        rows[file] = words
        rows[f"{file}, SHA-256"] = artifact.get("sha256") or NOT_MEASURED
    rows["Seeds"] = ", ".join(str(seed) for seed in told["seeds"]) or "none"
    rows["Queries allowed"] = ", ".join(exact(budget) for budget in told["budgets"]) or "none"
    rows["Answers shown"] = told["answers"]
    transfer, thief, price = told["transfer"], told["thief"], told["price"]
    rows["Inputs to ask with"] = "none"
    if transfer:
        labels = f"{'with' if transfer['own_labels'] else 'without'} labels of the thief's own"
        rows["Inputs to ask with"] = (
            f"{transfer['name']}: {transfer['kind']}, {exact(transfer['examples'])} inputs, {labels}"
        )
    rows["The thief's model"] = "none"
    if thief:
        parameters = "" if thief.get("parameters") is None else f", {exact(thief['parameters'])} parameters"
        steps = ", ".join(f"{steps:,} for {queries}" for queries, steps in (thief.get("steps") or {}).items())
        rows["The thief's model"] = f"architecture {thief['architecture']}, start {thief['start']}{parameters}"
        rows["Training steps by queries"] = steps or NOT_MEASURED
    judged = told["evaluation"]
    rows["Judged on"] = f"{exact(judged['examples'])} examples that no attack saw"
    rows["Inputs sent to judge"] = f"{exact(judged['inputs_sent'])}, apart from the queries"
    rows["Price of an answer"] = f"{price['per_query']:g} {price['currency']}, an assumption" if price else "none named"
    rows["Time"] = seconds(audit["seconds"])
    return rows
