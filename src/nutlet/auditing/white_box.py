"""The file in hand: what it gives away as it lies there, and what it is worth to who has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from nutlet.attacks.base import Attack, AttackerKnowledge
from nutlet.attacks.white_box.reuse import new_labels
from nutlet.auditing.claims import Row
from nutlet.auditing.jobs import attack_job, attempted
from nutlet.auditing.recognition import recognised
from nutlet.auditing.records import Obtained, Section, failure, not_run, obstacle, record
from nutlet.auditing.scoring import Hits, metric_difference, metric_summary, over_seeds, unit_of
from nutlet.auditing.setup import Artifact, Materials
from nutlet.data.examples import Data
from nutlet.jobs import Job, Result
from nutlet.measurement import Estimate
from nutlet.storage import packed_size
from nutlet.tasks import CLASSIFICATION, Task

__all__ = ["possession", "white_box_attacks"]

LABELS = 100
"""Labelled examples of the task that the stolen file is put to."""
_JUDGED_BY = 4_000
"""Training examples of the classifier that names reconstructions."""


def white_box_attacks(m: Materials, artifact: Artifact) -> AttackerKnowledge:
    """Return what an attacker has who holds ``artifact``; of a module or an endpoint no more than any other."""
    knowledge = m.knowledge(m.protocol.first_seed)
    if artifact.path is None:
        return knowledge
    absent = {"white_box": artifact.unread} if artifact.unread else {}
    return replace(knowledge, file=artifact.path, white_box=artifact.white_box, absent=absent)


def possession(attacks: Sequence[Attack], m: Materials) -> Section:
    """Run ``attacks`` of whoever holds the file, or asks for more than a copy, on every release."""
    found = Section()
    nothing = [baseline for attack in attacks if (baseline := attack.baseline()) is not None]
    scenes = {artifact.name: white_box_attacks(m, artifact) for artifact in m.artifacts}
    jobs: dict[tuple[str, str, int], Job] = {}
    for attack in [*attacks, *nothing]:
        # A start at random is of the file's architecture; the original's would be another baseline for the same row.
        for artifact in m.artifacts[-1:] if attack in nothing else m.artifacts:
            knowledge = scenes[artifact.name]
            if why := obstacle(attack, m.oracle(artifact), knowledge):
                if artifact is not m.file:
                    found.warnings.append(f"{type(attack).__name__} was not run on {artifact.name}: {why.reason}.")
                continue
            for seed in m.protocol.seed_numbers:
                jobs[_name(attack), artifact.name, seed] = _job(m, attack, artifact, replace(knowledge, seed=seed))
    results, failures = attempted(m.workers, jobs, "with the file in hand")
    judge = _judge(m) if any("images" in result for seeds in results.values() for result in seeds) else None
    for attack in attacks:
        errors = {artifact.name: failures.get((_name(attack), artifact.name)) for artifact in m.artifacts}
        if error := errors[m.file.name]:
            found.records.append(not_run(type(attack), failure(error)))
            continue
        found.warnings.extend(
            f"{type(attack).__name__} on {release} {failure(error).reason}."
            for release, error in errors.items()
            if error
        )
        parts = {a.name: results[_name(attack), a.name] for a in m.artifacts if (_name(attack), a.name) in results}
        _add(found, m, attack, parts, judge)
    for attack in nothing:
        if error := failures.get((_name(attack), m.file.name)):
            found.warnings.append(f"The start from nothing beside {type(attack).__name__} {failure(error).reason}.")
        _compare_with_nothing(found, m, attack, results.get((_name(attack), m.file.name), []))
    found.surface.extend(_sizes(m))
    return found


def _name(attack: Attack) -> str:
    """Return what tells the jobs of an attack from those of another, and of its own baseline."""
    return f"{type(attack).__name__} {attack.options()}"


def _job(m: Materials, attack: Attack, artifact: Artifact, knowledge: AttackerKnowledge) -> Job:
    most = LABELS if attack.spends == "labels" else m.budgets[-1]
    budgets = (min(most, len(m.transfer.examples)),)
    title = f"{type(attack).__name__} on {artifact.name}, seed {knowledge.seed}"
    return attack_job(attack, artifact.oracle.source, m.answers, knowledge, budgets, m.evaluation, title)


def _add(found: Section, m: Materials, attack: Attack, parts: dict[str, list[Result]], judge: nn.Module | None) -> None:
    """Add the record of one attack, and a row where before and after can be compared."""
    victims, before_after = [], []
    for name, seeds in parts.items():
        facts = (seeds[0].get("facts") or [None])[-1]
        told = "shares" in seeds[0]
        # An attack that says itself how much it found is not scored by what its clone answers.
        hits = None if told else _hits(m, attack, seeds, judge)
        share = metric_summary(hits, _task(m, attack)) if hits is not None else None
        if told:
            shares = [float(result["shares"][-1]) for result in seeds]
            facts = {**(facts or {}), "share": shares[0]}  # where readers of audit.json look for it too
            share = Estimate(float(np.mean(shares)), -np.inf, np.inf, len(shares), values=tuple(shares))
        sent = sum(int(result["sent"]) for result in seeds)
        victims.append(Obtained(artifact=name, queries_sent=sent, facts=facts, share=share))
        before_after.append((share, hits))
    seconds = sum(float(result["seconds"]) for seeds in parts.values() for result in seeds)
    found.records.append(record(attack, victims, seconds))
    if not before_after:
        return
    (old, first), (new, last) = before_after[0], before_after[-1]
    if new is None:
        return
    task = _task(m, attack)
    gap = None
    if len(before_after) > 1 and first is not None and last is not None:
        gap = metric_difference(first, last, task)
    before = old.value if old and len(before_after) > 1 else None
    labels = attack.spends == "labels"
    name = f"{type(attack).__name__}, {LABELS} labels" if labels else type(attack).__name__
    row = Row(
        f"{attack.measure.format(metric=task.metric)} ({name})",
        unit_of(task) if last is not None else "share",
        before,
        new.value,
        gap,
        goal=attack.goal,
        more_is="easier" if task.higher_is_better or last is None else "harder",
        primary=labels and attack.goal == "reuse",
    )
    (found.worth if labels else found.surface).append(row)


def _hits(m: Materials, attack: Attack, seeds: list[Result], judge: nn.Module | None = None) -> Hits | None:
    """Return the scores of examples (or classes), ``(seeds, E)``, after the largest budget."""
    if "images" in seeds[0]:
        assert judge is not None
        images = [torch.from_numpy(result["images"][-1]) for result in seeds]
        return np.stack([recognised(of_one, judge).double().numpy() for of_one in images])
    if "outputs" not in seeds[0]:
        return None
    rows = []
    for result in seeds:
        targets = m.evaluation.y
        if attack.goal == "reuse":
            targets = new_labels(result["facts"][-1], targets, m.task)
        rows.append(_task(m, attack).score(torch.from_numpy(result["outputs"][-1]), targets))
    return np.stack(rows)


def _task(m: Materials, attack: Attack) -> Task:
    """Return the task that what an attack brings is scored on: the victim's, or classes made for the purpose."""
    return CLASSIFICATION if attack.goal in ("reuse", "inversion") else m.task


def _judge(m: Materials) -> nn.Module:
    """Return a classifier of the thief's architecture, trained on true labels, to name reconstructions."""
    known = m.data.train if isinstance(m.data, Data) else m.evaluation
    known = known.subset(slice(0, _JUDGED_BY))
    return m.surrogate.train_on_targets(known, m.classes, seed=m.protocol.first_seed + 1_000)


def _compare_with_nothing(found: Section, m: Materials, attack: Attack, random: list[Result]) -> None:
    """Add how much better the stolen file is than no start at all; what it is worth at all."""
    stolen = [row for row in found.worth if row.goal == attack.goal]
    if not random or not stolen:
        return
    hits = _hits(m, attack, random)
    assert hits is not None
    nothing = over_seeds(hits).value
    note = "what the stolen file is to be held against"
    found.worth.append(Row("the same from nothing", "share", None, nothing, note=note, goal=attack.goal))


def _sizes(m: Materials) -> list[Row]:
    """Return rows of how much there is to read; a smaller file is also quicker to take, so without a verdict."""
    if m.file.path is None:
        return []
    sizes = [packed_size(a.path.read_bytes()) if a.path is not None else None for a in m.artifacts]
    old = sizes[0] if len(sizes) > 1 else None
    note = "information in the file; a smaller one is also quicker to take"
    return [Row("bytes after zstd", "bytes", old, sizes[-1], note=note)]
