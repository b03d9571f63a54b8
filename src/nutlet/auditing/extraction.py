"""Clones: every extraction attack against every release, with paired seeds, scored by agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nutlet.attacks.base import Attack
from nutlet.auditing.claims import Row, judged
from nutlet.auditing.jobs import attack_job, attempted, baseline_job
from nutlet.auditing.records import CurvePoint, Obtained, Section, failure, not_run, record
from nutlet.auditing.scoring import (
    CloneHits,
    Hits,
    chance_agreement,
    clone_hits,
    metric_difference,
    metric_summary,
    over_seeds,
    paired_difference,
    queries_to,
    summary,
    unit_of,
)
from nutlet.auditing.setup import Artifact, Materials
from nutlet.jobs import Job, Result
from nutlet.measurement import Estimate
from nutlet.verdicts import Verdict

__all__ = ["extraction"]

_SHARES = (0.90, 0.95)


@dataclass(frozen=True, eq=False)
class _Curve:
    """One attack against one release: hits at each budget."""

    artifact: Artifact
    queries: tuple[int, ...]
    sent: int
    seconds: float
    hits: tuple[CloneHits, ...]

    @property
    def agreement(self) -> list[float]:
        return [float(hits.file.mean()) for hits in self.hits]


def extraction(attacks: Sequence[Attack], m: Materials) -> Section:
    """Run ``attacks`` against every release and return their records, and rows of the strongest before and after."""
    jobs: dict[tuple[str, str, int], Job] = {}
    for seed in m.protocol.seed_numbers:
        if m.transfer.kind == "same distribution":
            jobs["", "", seed] = baseline_job(m.surrogate, m.transfer.examples, m.budgets, seed, m.evaluation)
        for attack in attacks:
            for artifact in m.artifacts:
                name = type(attack).__name__
                jobs[name, artifact.name, seed] = attack_job(
                    attack,
                    artifact.oracle.source,
                    m.answers,
                    m.knowledge(seed),
                    m.budgets,
                    m.evaluation,
                    f"{name} on {artifact.name}, seed {seed}",
                )
    results, failures = attempted(m.workers, jobs, "copying the model")
    found = Section()
    if ("", "") in failures:
        found.warnings.append(f"The thief without a query {failure(failures['', '']).reason}.")
    alone = [result["outputs"] for result in results.get(("", ""), [])]
    curves: dict[str, list[_Curve]] = {}
    for attack in attacks:
        name = type(attack).__name__
        errors = {artifact.name: failures.get((name, artifact.name)) for artifact in m.artifacts}
        if error := errors[m.file.name]:
            found.records.append(not_run(type(attack), failure(error)))
            continue
        found.warnings.extend(
            f"{name} on {release} {failure(error).reason}." for release, error in errors.items() if error
        )
        curves[name] = [_curve(m, a, results[name, a.name]) for a in m.artifacts if errors[a.name] is None]
        victims = [_victim(m, curve, alone) for curve in curves[name]]
        found.records.append(record(attack, victims, sum(curve.seconds for curve in curves[name])))
    found.copying.extend(_rows(m, curves) if curves else [])
    return found


def _curve(m: Materials, artifact: Artifact, results: list[Result]) -> _Curve:
    outputs = torch.from_numpy(np.stack([result["outputs"] for result in results]))  # (seeds, loots, E, ...)
    original = None if m.original is None else m.original.outputs
    hits = [
        clone_hits(outputs[:, k], artifact.outputs, m.evaluation.y, original, m.task) for k in range(outputs.shape[1])
    ]
    return _Curve(
        artifact,
        tuple(int(n) for n in results[0]["queries"]),
        sum(int(result["sent"]) for result in results),
        sum(float(result["seconds"]) for result in results),
        tuple(hits),
    )


def _victim(m: Materials, curve: _Curve, alone: list[npt.NDArray[Any]]) -> Obtained:
    outputs = curve.artifact.outputs
    chance = chance_agreement(outputs, m.task)
    points = []
    for place, (queries, hits) in enumerate(zip(curve.queries, curve.hits, strict=True)):
        without = None
        if alone and len(alone[0]) == len(curve.hits):
            without = summary(np.stack([m.task.agree(torch.from_numpy(own[place]), outputs) for own in alone]))
        points.append(
            CurvePoint(
                queries=queries,
                agreement=summary(hits.file),
                agreement_original=None if hits.original is None else summary(hits.original),
                agreement_where_wrong=summary(hits.where_wrong),
                accuracy=metric_summary(hits.score, m.task),
                baseline_agreement=without,
                chance_agreement=chance,
            )
        )
    reach = {f"{share:.2f}": queries_to(share, curve.queries, curve.agreement) for share in _SHARES}
    return Obtained(artifact=curve.artifact.name, queries_sent=curve.sent, curve=tuple(points), queries_to=reach)


def _rows(m: Materials, curves: dict[str, list[_Curve]]) -> list[Row]:
    """Compare before and after by the attack that copies best; a weaker one would say less."""
    # One that failed on the original compares nothing, however well it copies.
    complete = {name: both for name, both in curves.items() if len(both) == len(m.artifacts)} or curves
    best = max(complete, key=lambda name: sum(curve.agreement[-1] for curve in curves[name]))
    both = curves[best]
    before, after = (both[0] if len(both) > 1 else None), both[-1]
    lost = None
    if m.original is not None:
        scores = [m.task.score(artifact.outputs, m.evaluation.y)[None] for artifact in m.artifacts]
        lost = paired_difference(scores[0], scores[1])
    rows = []
    for place, queries in enumerate(after.queries):
        gap = paired_difference(before.hits[place].file, after.hits[place].file) if before else None
        old = before.agreement[place] if before else None
        title = f"agreement with its victim after {queries:,} queries ({best})"
        rows.append(judged(title, "share", old, after.agreement[place], gap, goal="clone", weaker=lost))
    last = after.hits[-1]
    if before is not None:
        first = before.hits[-1]
        if first.where_wrong.shape[1] and last.where_wrong.shape[1]:
            gap = _unpaired(first.where_wrong, last.where_wrong)
            rows.append(
                judged(
                    f"agreement where the victim is wrong, {after.queries[-1]:,} queries",
                    "share",
                    float(first.where_wrong.mean()),
                    float(last.where_wrong.mean()),
                    gap,
                    goal="clone",
                    weaker=lost,
                )
            )
        was, became = (metric_summary(hits.score, m.task).value for hits in (first, last))
        rows.append(
            judged(
                f"{m.task.metric} of the clone after {after.queries[-1]:,} queries",
                unit_of(m.task),
                was,
                became,
                metric_difference(first.score, last.score, m.task),
                goal="clone",
                more_is="easier" if m.task.higher_is_better else "harder",
                weaker=lost,
            )
        )
    for share in _SHARES:
        reach = [queries_to(share, curve.queries, curve.agreement) for curve in both]
        old, new = (reach[0] if before else None), reach[-1]
        # Interpolated and without an interval: it illustrates, the rows above decide.
        note = "not reached" if new is None else "interpolated"
        rows.append(
            Row(
                f"queries to {share:.0%} agreement ({best})",
                "queries",
                old,
                new,
                None,
                Verdict.NOT_MEASURED,
                note,
                "clone",
            )
        )
    return rows


def _unpaired(before: Hits, after: Hits) -> Estimate:
    """Return the difference of shares counted on different examples: the two releases err on different ones."""
    old, new = over_seeds(before), over_seeds(after)
    gap = new.value - old.value
    half = float(np.hypot((old.high - old.low) / 2, (new.high - new.low) / 2))
    return Estimate(gap, gap - half, gap + half, old.examples + new.examples)
