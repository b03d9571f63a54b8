"""Clones: every extraction attack against every release, with paired seeds, scored by agreement.

Where an original is given, whether copying became harder is looked at after 3, 6 and 10 seeds, at levels that come to
5 % together, until it is decided; only the attack that copies each release best goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    Difference,
    chance_agreement,
    clone_hits,
    difference_where_wrong,
    metric_difference,
    metric_summary,
    paired_difference,
    queries_to,
    summary,
    unit_of,
)
from nutlet.auditing.setup import Artifact, Materials
from nutlet.jobs import Job, Result
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

    def joined(self, more: _Curve) -> _Curve:
        """Return the curve of these seeds and of ``more``."""
        hits = tuple(own.joined(others) for own, others in zip(self.hits, more.hits, strict=True))
        return replace(self, sent=self.sent + more.sent, seconds=self.seconds + more.seconds, hits=hits)


def extraction(attacks: Sequence[Attack], m: Materials) -> Section:
    """Run ``attacks`` against every release and return their records, and rows of the strongest before and after."""
    (first, level), *later = m.protocol.looks
    jobs = _jobs([(attack, artifact) for attack in attacks for artifact in m.artifacts], m, first)
    if m.transfer.kind == "same distribution":
        for seed in first:
            jobs["", "", seed] = baseline_job(m.surrogate, m.transfer.examples, m.budgets, seed, m.evaluation)
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
    if not curves:
        return found
    by_name = {type(attack).__name__: attack for attack in attacks}
    best = _best(m, curves)
    for seeds, next_level in later if len(best) > 1 else ():
        if judged(_agreement(best, level), m.protocol.margin).verdict is not Verdict.CANNOT_TELL:
            break
        more = _jobs([(by_name[name], curve.artifact) for name, curve in best], m, seeds)
        results, failures = attempted(m.workers, more, f"copying the model: {len(seeds)} more seeds, not decided yet")
        if failures:
            break
        best = [
            (name, curve.joined(_curve(m, curve.artifact, results[name, curve.artifact.name]))) for name, curve in best
        ]
        for name, curve in best:
            curves[name] = [curve if one.artifact is curve.artifact else one for one in curves[name]]
        level = next_level
    for attack in attacks:
        if both := curves.get(type(attack).__name__):
            victims = [_victim(m, curve, alone) for curve in both]
            found.records.append(record(attack, victims, sum(curve.seconds for curve in both)))
    found.copying.extend(_rows(m, best, level))
    return found


def _jobs(
    pairs: Sequence[tuple[Attack, Artifact]], m: Materials, seeds: Sequence[int]
) -> dict[tuple[str, str, int], Job]:
    jobs = {}
    for seed in seeds:
        for attack, artifact in pairs:
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
    return jobs


def _best(m: Materials, curves: dict[str, list[_Curve]]) -> list[tuple[str, _Curve]]:
    """Return the attack that copies each release best, with its curve: a weaker one would say less.

    One that failed on a release compares nothing there, however well it copies the other.
    """
    of_each = []
    for artifact in m.artifacts:
        known = {name: one for name, both in curves.items() for one in both if one.artifact is artifact}
        if known:
            name = max(known, key=lambda name: known[name].agreement[-1])
            of_each.append((name, known[name]))
    return of_each


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


def _agreement(best: list[tuple[str, _Curve]], level: float, place: int = -1, weaker: Difference | None = None) -> Row:
    """Return the row of the agreement at one budget; that at the largest decides the claim."""
    (name, after), queries = best[-1], best[-1][1].queries[place]
    before = best[0] if len(best) > 1 else None
    how = name if before is None or before[0] == name else f"{name}; before: {before[0]}"
    return Row(
        f"agreement with its victim after {queries:,} queries ({how})",
        "share",
        before[1].agreement[place] if before else None,
        after.agreement[place],
        paired_difference(before[1].hits[place].file, after.hits[place].file) if before else None,
        goal="clone",
        primary=queries == after.queries[-1],
        weaker=weaker,
        level=level,
    )


def _rows(m: Materials, best: list[tuple[str, _Curve]], level: float) -> list[Row]:
    """Compare before and after by the attack that copies each best."""
    before, after = (best[0][1] if len(best) > 1 else None), best[-1][1]
    lost = None
    if m.original is not None:
        scores = [m.task.score(artifact.outputs, m.evaluation.y)[None] for artifact in m.artifacts]
        lost = paired_difference(scores[0], scores[1])
    rows = [_agreement(best, level, place, lost) for place in range(len(after.queries))]
    last = after.hits[-1]
    if before is not None:
        first = before.hits[-1]
        if (gap := difference_where_wrong(first, last)) is not None:
            title = f"agreement where the victim is wrong, {after.queries[-1]:,} queries"
            old, new = (float(hits.where_wrong.mean()) for hits in (first, last))
            rows.append(Row(title, "share", old, new, gap, goal="clone"))
        title = f"{m.task.metric} of the clone after {after.queries[-1]:,} queries"
        was, became = (metric_summary(hits.score, m.task).value for hits in (first, last))
        gap = metric_difference(first.score, last.score, m.task)
        rows.append(Row(title, unit_of(m.task), was, became, gap, goal="clone"))
    for share in _SHARES:
        reach = [queries_to(share, curve.queries, curve.agreement) for _, curve in best]
        # Interpolated and without an interval: it illustrates, the rows above decide.
        note = "not reached" if reach[-1] is None else "interpolated"
        title = f"queries to {share:.0%} agreement ({best[-1][0]})"
        rows.append(Row(title, "queries", reach[0] if before else None, reach[-1], note=note, goal="clone"))
    return rows
