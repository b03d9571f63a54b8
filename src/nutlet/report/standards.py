"""What an audit found, by the ids that a security reviewer's standards have for it.

The versions are pinned, for ids change between them. Compression and an audit fulfil none of these requirements: an id
says where a finding belongs. OWASP AISVS 4.3.5 (a trusted runtime) is out of reach of a file and is never named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nutlet.report.audited import best_clone, best_membership, last, names, ran, strictest, task_of, victims
from nutlet.report.figures import amount, estimated, exact, percent, rate
from nutlet.verdicts import Verdict, combined

__all__ = ["ANALOGY", "VERSIONS", "findings"]

VERSIONS = {
    "MITRE ATLAS": "5.6.0",
    "OWASP Machine Learning Security Top 10": "2023",
    "NIST AI 100-2": "e2025",
    "OWASP AISVS": "1.0",
}
"""The standards in the order of the table, and the versions that the ids are from."""
ANALOGY = (
    "By analogy: OWASP AISVS 1.0, 3.2.2 asks to evaluate a quantized model anew. It is written for safety suites; "
    "this audit does the same for theft."
)

ATLAS, TOP10, NIST, AISVS = VERSIONS
_OBSCURE = (
    "AML.M0002 Passive AI Output Obfuscation: show no more of an answer than is needed, rounded scores or the class "
    "alone; then audit again with that access."
)
_LIMIT = "AML.M0004 Restrict Number of AI Model Queries: "
_ENCRYPT = (
    "AML.M0012 Encrypt Sensitive Information: keep the file encrypted where it lies. Whoever can run it can still read "
    "it from memory."
)


@dataclass(frozen=True)
class Kind:
    """One row of the mapping.

    Args:
        finding: the kind of theft, as in the table.
        title: the same as a heading.
        ids: ``(standard, id, name)``; AISVS has no names, so they say in brief what is asked for.
        advice: sentences; those that begin with an id are mitigations of MITRE ATLAS.
        sentence: says what was measured, or None where nothing of the kind ran.
        measures: whether a row of a claim belongs here, from the claim's name and the row's goal.
    """

    finding: str
    title: str
    ids: tuple[tuple[str, str, str], ...]
    advice: tuple[str, ...]
    sentence: Callable[[dict[str, Any]], str | None]
    measures: Callable[[str, str | None], bool]


def findings(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one finding for each kind of theft that was tried, as plain data for the key ``findings`` of an audit.

    Args:
        audit: as schema.json describes it; ``findings`` need not be there yet.
    """
    found = []
    for kind in _KINDS:
        sentence = kind.sentence(audit)
        if sentence is None:
            continue
        verdicts = [
            Verdict(row["verdict"])
            for claim in audit["claims"]
            for row in claim["rows"]
            if kind.measures(claim["claim"], row["goal"])
        ]
        found.append({
            "finding": kind.finding,
            "title": kind.title,
            "ids": [
                {"standard": standard, "version": VERSIONS[standard], "id": key, "name": name}
                for standard, key, name in kind.ids
            ],
            "sentence": sentence,
            "verdict": combined(verdicts).value,
            "advice": list(kind.advice),
        })  # fmt: skip
    return found


def _extraction(audit: dict[str, Any]) -> str | None:
    attack, clones, files = best_clone(audit), ran(audit, "clone"), names(audit)
    others = [other for other in ran(audit, "weights", "width") if other["access"] != "file"]
    if attack is None:
        return _shares(audit, others)
    sides = {role: last(victim) for role, victim in victims(audit, attack).items()}
    after, before = sides["after"], sides.get("before")
    assert after is not None
    best = f"the best of {len(clones)} attacks, {attack['name']}," if len(clones) > 1 else attack["name"]
    agreement = estimated(after["agreement"])
    alike = f"names the same class on {agreement} of inputs"
    if task_of(audit)["name"] != "classification":
        alike = f"agrees with it to {agreement} on inputs"
    text = (
        f"After {exact(after['queries'])} answers {best} has a copy of {files['after']} that {alike} that it never saw"
    )
    baseline = after.get("baseline_agreement")
    text += f"; the same thief without an answer reaches {percent(baseline['value'])}" if baseline else ""
    text += f"; of {files['before']} the copy reaches {estimated(before['agreement'])}" if before else ""
    rest = _shares(audit, others)
    return f"{text}. {rest}" if rest else f"{text}."


def _membership(audit: dict[str, Any]) -> str | None:
    attack, tried = best_membership(audit), ran(audit, "membership")
    if attack is None:
        return None
    sides = victims(audit, attack)
    best = f"The best of {len(tried)} attacks, {attack['name']}," if len(tried) > 1 else attack["name"]
    found, auc = strictest(sides["after"]), sides["after"].get("auc")
    text = "was given too few candidates to speak of low false-positive rates"
    if found:
        level = rate(found["fpr"])
        text = f"finds {estimated(found['tpr'])} of the members, and guessing {level}, while {level} of the others are"
        text += " wrongly named"
        old = [item for item in (sides.get("before") or {}).get("tpr_at") or [] if item["fpr"] == found["fpr"]]
        text += f" (in {names(audit)['before']}: {estimated(old[0]['tpr'])})" if old and old[0]["tpr"] else ""
    if auc:
        blind = (audit["protocol"]["members"] or {}).get("blind_auc")
        more = f", without any model {blind['value']:.3f}" if blind else ""
        text += f"; AUC {auc['value']:.3f} (guessing 0.5{more})"
    return f"{best} {text}."


def _inversion(audit: dict[str, Any]) -> str | None:
    return _shares(audit, ran(audit, "inversion"))


def _file(audit: dict[str, Any]) -> str | None:
    return _shares(audit, [attack for attack in ran(audit, "file", "weights") if attack["access"] == "file"])


def _stone(audit: dict[str, Any]) -> str | None:
    attack = best_clone(audit)
    point = last(victims(audit, attack)["after"]) if attack else None
    if point is None:
        return None
    wrong = point.get("agreement_where_wrong")
    more = f", and repeats {estimated(wrong)} of its mistakes," if wrong else ""
    return (
        f"A copy that agrees with the file on {estimated(point['agreement'])} of inputs{more} can stand in for it "
        "while further attacks are prepared unseen; how well those carry over was not measured."
    )


def _harm(audit: dict[str, Any]) -> str | None:
    if not ran(audit, "clone", "file", "reuse"):
        return None
    after = next(artifact for artifact in audit["artifacts"] if artifact["role"] == "after")
    task = task_of(audit)
    reached = amount(after["accuracy"], task["unit"])
    text = f"The file is worth what it can do: its {task['metric']} on the evaluation examples is {reached}"
    attack = best_clone(audit)
    point = last(victims(audit, attack)["after"]) if attack else None
    text += f"; that of the best copy by queries {estimated(point['accuracy'])}" if point else ""
    for claim in audit["claims"]:
        for row in claim["rows"] if claim["claim"] == "worth less to a thief" else ():
            if row["after"] is not None:
                text += f"; {row['measure']}: {amount(row['after'], row['unit'])}"
                text += "" if row["before"] is None else f" (original {amount(row['before'], row['unit'])})"
    return f"{text}."


def _shares(audit: dict[str, Any], attacks: list[dict[str, Any]]) -> str | None:
    """Say of each attack how much of what it looked for it found."""
    parts, files = [], names(audit)
    for attack in attacks:
        sides = victims(audit, attack)
        share, old = sides["after"].get("share"), (sides.get("before") or {}).get("share")
        if share:
            text = f"{attack['name']} found {estimated(share)} of what it looked for in {files['after']}"
            parts.append(text + (f" ({files['before']}: {estimated(old)})" if old else ""))
        else:
            parts.append(f"{attack['name']} was run on {files['after']}, without a figure for how much it found")
    return f"{'; '.join(parts)}." if parts else None


_KINDS = (
    Kind(
        finding="extraction by queries",
        title="Extraction by queries",
        ids=(
            (ATLAS, "AML.T0024.002", "Extract AI Model"),
            (TOP10, "ML05:2023", "Model Theft"),
            (NIST, "NISTAML.031", "Model Extraction"),
            (AISVS, "11.2.2", "limits on the rate of queries"),
            (AISVS, "11.3.1", "watching for patterns of extraction"),
            (AISVS, "11.3.2", "no raw outputs shown"),
        ),
        advice=(_OBSCURE, f"{_LIMIT}keep each client below the number at which a copy becomes good."),
        sentence=_extraction,
        measures=lambda claim, goal: claim == "harder to extract" and goal in (None, "clone", "weights", "width"),
    ),
    Kind(
        finding="membership",
        title="Membership of the training data",
        ids=(
            (ATLAS, "AML.T0024.000", "Infer Training Data Membership"),
            (TOP10, "ML04:2023", "Membership Inference Attack"),
            (NIST, "NISTAML.033", "Membership Inference"),
            (AISVS, "11.2.5", "membership attacks simulated"),
        ),
        advice=(
            _OBSCURE,
            f"{_LIMIT}it slows an attacker down, but one answer about a person is enough for most attacks.",
        ),
        sentence=_membership,
        measures=lambda claim, goal: goal == "membership",
    ),
    Kind(
        finding="inversion",
        title="Inversion: what the training data look like",
        ids=(
            (ATLAS, "AML.T0024.001", "Invert AI Model"),
            (TOP10, "ML03:2023", "Model Inversion Attack"),
            (NIST, "NISTAML.032", "Reconstruction"),
        ),
        advice=(_OBSCURE, f"{_LIMIT}reconstruction without the file takes many."),
        sentence=_inversion,
        measures=lambda claim, goal: goal == "inversion",
    ),
    Kind(
        finding="the file in hand",
        title="The file in a thief's hands",
        ids=(
            (ATLAS, "AML.T0044", "Full AI Model Access"),
            (ATLAS, "AML.T0035", "AI Artifact Collection"),
            (TOP10, "ML05:2023", "Model Theft"),
            (AISVS, "4.3.4", "weights encrypted where they are stored"),
        ),
        advice=(_ENCRYPT,),
        sentence=_file,
        measures=lambda claim, goal: goal == "file",
    ),
    Kind(
        finding="copy used as a stepping stone",
        title="A copy as a stepping stone",
        ids=((ATLAS, "AML.T0005.001", "Train Proxy via Replication"),),
        advice=("What makes the copy dearer, as under extraction by queries, helps here too.",),
        sentence=_stone,
        measures=lambda claim, goal: False,
    ),
    Kind(
        finding="harm",
        title="Harm: what a thief has",
        ids=((ATLAS, "AML.T0048.004", "AI Intellectual Property Theft"),),
        advice=(_ENCRYPT,),
        sentence=_harm,
        measures=lambda claim, goal: claim == "worth less to a thief",
    ),
)
