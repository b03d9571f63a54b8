"""``audit``: how hard a shipped file is to steal, before and after compression."""

from __future__ import annotations

import datetime
import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from nutlet.attacks import known_attacks
from nutlet.attacks.base import Attack
from nutlet.attacks.extraction.surrogate import Surrogate
from nutlet.auditing.answers import by_answers
from nutlet.auditing.claims import CLAIMS, FEWEST_SEEDS, decided, sentence
from nutlet.auditing.extraction import extraction
from nutlet.auditing.membership import Candidates, candidates_of, privacy, scene_of
from nutlet.auditing.protocol import Protocol
from nutlet.auditing.records import Failure, Section, failure, not_run, obstacle
from nutlet.auditing.result import Audit
from nutlet.auditing.scoring import unit_of
from nutlet.auditing.setup import (
    Artifact,
    Materials,
    budgets_for,
    check_classes,
    evaluation_of,
    open_artifact,
    read_artifact,
    transfer_of,
)
from nutlet.auditing.thief import thief_of
from nutlet.auditing.white_box import possession, white_box_attacks
from nutlet.data.columns import Columns
from nutlet.data.examples import Data, Examples
from nutlet.errors import ConfigError, printable
from nutlet.jobs import Workers
from nutlet.measurement import environment
from nutlet.methods.base import Method
from nutlet.oracle import FileSource, Ledger, Source
from nutlet.progress import Progress
from nutlet.report import exposure, findings, summed_up

__all__ = ["audit", "named_output"]


def audit(
    victim: nn.Module | Path | str | Source,
    data: Data | Examples,
    against: nn.Module | Path | str | Source | None = None,
    *,
    protocol: Protocol | None = None,
    transfer: Examples | None = None,
    same_task: bool = False,
    output: str | None = None,
    surrogate: Surrogate | None = None,
    recipe: Sequence[Method] = (),
    retrained: bool | None = None,
    transfer_name: str = "",
    command: str = "",
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Measure how hard ``victim`` is to steal, and beside it ``against``, by every attack that can run.

    An attack that cannot run, or fails, does not end the audit: it is listed as not run, with the reason.

    Args:
        victim: what ships: the path of a file. A module or any function that answers works too; less is measured.
        data: splits of its task; the test split scores, the training split is what members are drawn from.
        against: the original, for before and after.
        protocol: budgets, seeds, attacks; see :class:`nutlet.Protocol`.
        transfer: inputs the thief asks with; by default the training inputs, the best that a thief could hold.
        same_task: whether the labels of ``transfer`` are of the victim's task, so that a thief could do without it.
        output: name of the output of ``victim``, a file, that holds the scores, where several may.
        surrogate: who copies; by default a network of our own, for the victim's architecture is not known to him.
        recipe: how ``victim`` was made from ``against``, where that is known: the attacker makes his shadow models so.
        retrained: whether training data were used again after compression; by default what ``recipe`` says.
        transfer_name: how the user named the transfer set, for the report.
        command: how to reproduce the audit, for the report.
        workers: where long work runs and is kept; by default in this process, and nothing is kept.
        progress: shows bars.

    Raises:
        StorageError, ModelError, OracleError: a release cannot be opened, or does not answer with finite scores.
        DataError: the transfer set is too small, has another shape, or overlaps the evaluation set, or labels and
            outputs do not fit.
        ConfigError: no attack is left to run, or the thief's architecture does not fit.
    """
    start = time.perf_counter()
    protocol, progress = protocol or Protocol(), progress or Progress(quiet=True)
    ledger = Ledger()
    evaluation = evaluation_of(data)
    if output is not None:
        victim = named_output(victim, output, evaluation.columns)
    sides = [("before", against)] if against is not None else []
    artifacts = tuple(
        open_artifact(release, role, evaluation, ledger)  # type: ignore[arg-type]
        for role, release in [*sides, ("after", victim)]
    )
    if len({artifact.name for artifact in artifacts}) < len(artifacts):
        artifacts = tuple(replace(artifact, name=f"{artifact.name} ({artifact.role})") for artifact in artifacts)
    asked = transfer_of(data, transfer, transfer_name or "training inputs", evaluation, same_task=same_task)
    surrogate = surrogate or thief_of(data, tuple(artifacts[-1].outputs.shape[1:]), protocol.effort)
    check_classes(artifacts, data, asked, surrogate)
    if any("white_box" in kind.needs and not protocol.excluded(kind) for kind in _kinds(protocol).values()):
        artifacts = tuple(read_artifact(artifact, evaluation) for artifact in artifacts)
    materials = Materials(
        artifacts=artifacts,
        data=data,
        evaluation=evaluation,
        transfer=asked,
        budgets=budgets_for(protocol.queries, asked.examples),
        surrogate=surrogate,
        protocol=protocol,
        workers=workers or Workers(progress=progress),
    )
    candidates = candidates_of(materials, recipe)
    chosen, others = _choose(materials, candidates, progress)
    found, members = Section(others), None
    if cloning := [attack for attack in chosen if attack.goal == "clone"]:
        found += extraction(cloning, materials)
    compared = by_answers(cloning, materials)
    if prying := [attack for attack in chosen if attack.goal == "membership"]:
        assert candidates is not None
        again = _trained(recipe) if retrained is None and recipe else retrained
        section, members = privacy(prying, materials, candidates, again)
        found += section
    if handling := [attack for attack in chosen if attack.goal not in ("clone", "membership")]:
        found += possession(handling, materials)
    rows = decided((found.surface, found.copying, found.worth), protocol.margin)
    claims = [
        {"claim": claim, "rows": [row.to_dict() for row in part]} for claim, part in zip(CLAIMS, rows, strict=True)
    ]
    value = {
        "schema": 1,
        "nutlet": importlib.metadata.version("nutlet"),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "environment": {**environment(), "threads": materials.workers.threads},
        "seconds": round(time.perf_counter() - start, 1),
        "protocol": {**_protocol(materials, ledger), "members": members},
        "artifacts": [_artifact(artifact) for artifact in artifacts],
        "attacks": found.records,
        "claims": claims,
        "answers": compared,
        "warnings": [*_warnings(materials), *_faults(found.records), *found.warnings],
    }
    exposed = exposure(value)
    alone = materials.original is None
    value["exposure"] = exposed
    value["sentence"] = summed_up(exposed, materials.file.name) if alone else sentence(claims)
    value["findings"] = findings(value)
    return Audit(value)


def named_output(victim: nn.Module | Path | str | Source, output: str, columns: Columns | None = None) -> Source:
    """Return the file ``victim`` as a source that answers by one of its outputs.

    Raises:
        ConfigError: it is no file, or has no such output.
    """
    if not isinstance(victim, (str, Path)):
        raise ConfigError(f"output is {output!r}, but the victim is no path; expected a file: leave it out")
    return FileSource(victim, output=output, columns=columns)


def _trained(recipe: Sequence[Method]) -> bool:
    """Whether a step of the recipe looked at training data again to change values."""
    return any(type(method).train is not Method.train for method in recipe)


def _kinds(protocol: Protocol) -> dict[str, type[Attack]]:
    """Return all attacks by name: those that are known, and those that were given as instances."""
    return {**known_attacks(), **{name: type(attack) for name, attack in protocol.asked.items()}}


def _choose(
    m: Materials, candidates: Candidates | None, progress: Progress
) -> tuple[list[Attack], list[dict[str, Any]]]:
    """Return the attacks to run, and records of those that will not, with the reason, which is said at once.

    Raises:
        ConfigError: none is left.
    """
    chosen: list[Attack] = []
    others = []
    oracle = m.oracle(m.file)
    knowledge = white_box_attacks(m, m.file)
    if candidates is not None:
        asking = scene_of(m, m.file, candidates)
        knowledge = replace(asking, file=knowledge.file, white_box=knowledge.white_box, absent=knowledge.absent)
    for name, kind in _kinds(m.protocol).items():
        if reason := m.protocol.excluded(kind):
            others.append(not_run(kind, Failure(reason)))
            continue
        why: Failure | None
        try:
            attack = m.protocol.asked.get(name) or kind()
        except Exception as error:  # an attack may be anybody's
            why = failure(error)
        else:
            why = obstacle(attack, oracle, knowledge)
        if why is None:
            chosen.append(attack)
        else:
            progress.say(printable(f"{name} will not run: {why.reason}"))
            others.append(not_run(kind, why))
    if not chosen:
        reasons = "; ".join(
            f"{record['name']}: {record['reason']}" for record in others if record["reason"] != "not asked for"
        )
        raise ConfigError(f"no attack can run ({reasons}); expected at least one: show more, or ask for others")
    return chosen, others


def _faults(records: Sequence[dict[str, Any]]) -> list[str]:
    """Name the attacks that failed though they had begun."""
    return [f"{record['name']} was not run: it {record['reason']}." for record in records if record["error"]]


def _protocol(m: Materials, ledger: Ledger) -> dict[str, Any]:
    p, surrogate = m.protocol, m.surrogate
    return {
        "task": {"name": m.task.name, "metric": m.task.metric, "unit": unit_of(m.task)},
        "budgets": list(m.budgets),
        "seeds": list(p.seed_numbers),
        "answers": str(m.answers),
        "transfer": {
            "name": m.transfer.name,
            "kind": m.transfer.kind,
            "examples": len(m.transfer.examples),
            "own_labels": m.transfer.kind == "same distribution",
        },
        "thief": {
            "architecture": type(surrogate.architecture).__name__,
            "start": surrogate.start,
            "parameters": sum(parameter.numel() for parameter in surrogate.architecture.parameters()),
            "steps": {str(budget): surrogate.steps(budget) for budget in m.budgets},
        },
        "margin": p.margin,
        "evaluation": {"examples": len(m.evaluation), "inputs_sent": ledger.evaluation},
        "price": {"per_query": p.price_per_query, "currency": p.currency},
    }


def _artifact(artifact: Artifact) -> dict[str, Any]:
    metric = artifact.metric
    return {
        "name": artifact.name,
        "role": artifact.role,
        "bytes": artifact.bytes,
        "sha256": artifact.sha256,
        "accuracy": metric.value,
        "accuracy_low": metric.low,
        "accuracy_high": metric.high,
    }


def _warnings(m: Materials) -> list[str]:
    """Say what a reader should not have to find out alone."""
    warnings = []
    if m.transfer.name == "training inputs":
        warnings.append(
            "The thief asks with the victim's own training inputs, the best that he could hold. With other inputs he "
            "gets far less: name a set that he could have (--transfer) and compare."
        )
    if len(m.protocol.seed_numbers) < FEWEST_SEEDS:
        warnings.append(f"Fewer than {FEWEST_SEEDS} seeds: how far clones differ from each other is hardly known.")
    if isinstance(m.data, Data) and m.data.test is None:
        warnings.append(
            "Nobody said which examples the model was trained on: members and others were taken from the data given. "
            "Name examples that it never saw (--test) for a verdict on members."
        )
    if m.protocol.effort < 1:
        warnings.append(
            f"Effort {m.protocol.effort:g}: clones were trained shorter than in a full audit, safety is overstated."
        )
    if m.original is None:
        warnings.append(
            "No original was given: this says how exposed the file is, not whether compression made theft harder."
        )
    if m.file.path is None:
        warnings.append("The victim was no file: what a shipped file gives away was not measured.")
    if m.transfer.removed:
        warnings.append(
            f"{m.transfer.removed} inputs of the transfer set were in the evaluation set and were left out."
        )
    return warnings
