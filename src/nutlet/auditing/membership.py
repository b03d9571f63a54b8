"""Privacy: who was in the training data, asked of every release, and of both together."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nutlet.attacks import BaVarIA
from nutlet.attacks.base import Attack, AttackerKnowledge
from nutlet.attacks.membership.shadow_attack import ShadowAttack
from nutlet.attacks.membership.shadow_models import Shadows
from nutlet.attacks.membership.signals import answers_to
from nutlet.auditing.claims import Row
from nutlet.auditing.records import Failure, Obtained, RateFound, Section, failure, not_run, obstacle, record
from nutlet.auditing.scoring import Difference
from nutlet.auditing.setup import Artifact, Materials
from nutlet.compression.recompress import Recompress
from nutlet.data.examples import Data, Examples
from nutlet.errors import ModelError
from nutlet.measurement import Estimate
from nutlet.measurement import roc as membership
from nutlet.methods.base import Method
from nutlet.oracle import Oracle
from nutlet.tasks import is_classifier
from nutlet.tasks.inputs import Inputs, NamedInputs
from nutlet.training.loop import Training

__all__ = ["Candidates", "candidates_of", "privacy", "scene_of"]

MOST_CANDIDATES = 1_000
"""Members, and as many others: shadow models are trained on half of them all."""
RATES = (0.001, 0.01)
_Z = 1.959964
"""Half the width of a 95 % interval in standard errors."""

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Of whom an attacker wants to know whether they were trained on.

    Args:
        pool: members and others, mixed.
        members: which are, ``(N,)`` bool.
        before: shadow models made as the original was.
        after: shadow models made as the file was; the same ones where the recipe is not known.
    """

    pool: Examples
    members: torch.Tensor
    before: Shadows
    after: Shadows


def candidates_of(m: Materials, recipe: Sequence[Method]) -> Candidates | None:
    """Return members from the training split and as many others from the evaluation set.

    None without splits or labels, or where either has less than two examples: one of each shows no spread.
    """
    if not isinstance(m.data, Data):
        return None
    size = min(MOST_CANDIDATES, len(m.data.train), len(m.evaluation))
    if size < 2:
        return None
    random = torch.Generator().manual_seed(m.protocol.first_seed)
    inside = m.data.train.subset(torch.randperm(len(m.data.train), generator=random)[:size])
    if is_classifier(m.task) and not inside.labelled:
        return None
    outside = m.evaluation.subset(torch.randperm(len(m.evaluation), generator=random)[:size])
    mixed = torch.randperm(2 * size, generator=random)
    x, y = _joined(inside.x, outside.x), torch.cat([inside.y, outside.y])
    pool = Examples(x[mixed], y[mixed], inside.mean, inside.std, m.task)
    training = Training(
        epochs=max(2, round(20 * m.protocol.effort)), lr=3e-3, batch_size=64, optimizer="adamw", weight_decay=0.01
    )
    before = Shadows(
        pool=pool,
        architecture=m.surrogate.architecture,
        training=training,
        augment=m.surrogate.augment,
        seed=m.protocol.first_seed,
        workers=m.workers,
    )
    after = replace(before, after=Recompress(recipe=tuple(recipe), augment=m.surrogate.augment)) if recipe else before
    return Candidates(pool, mixed < size, before, after)


def _joined(first: Inputs, second: Inputs) -> Inputs:
    """Return the inputs of both, one after the other."""
    if isinstance(first, NamedInputs) and isinstance(second, NamedInputs):
        return NamedInputs({name: torch.cat([first[name], second[name]]) for name in first})
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    return torch.cat([first, second])


def privacy(
    attacks: Sequence[Attack], m: Materials, candidates: Candidates, retrained: bool | None
) -> tuple[Section, dict[str, Any]]:
    """Run ``attacks`` on every release; return what they found, and what was asked of whom.

    Those that take shadow models get as many as settle the matter, unless their number was given; where none takes any,
    none are trained.
    """
    found = Section()
    scenes = {artifact.name: scene_of(m, artifact, candidates) for artifact in m.artifacts}
    models: int | Failure | None = None
    if any(map(_leaves_models_open, attacks)):
        try:
            models = _enough(m, scenes[m.file.name], candidates)
        except Exception as error:  # what asks the victim and trains models may fail as an attack may
            models = failure(error)
    scores: dict[tuple[str, str], Scores] = {}
    most = 0
    for attack in attacks:
        if isinstance(attack, ShadowAttack):
            if attack.models is None:
                if isinstance(models, Failure):
                    found.records.append(not_run(type(attack), models))
                    continue
                assert models is not None
                attack = replace(attack, models=max(models, attack.fewest()))
            most = max(most, attack.count)
        _ask(found, scores, attack, m, candidates, scenes)
    joint = {type(attack).__name__ for attack in attacks if attack.joint}
    found.surface.extend(_rows(m, scores, candidates.members.numpy(), joint))
    return found, _members(m, candidates, most or None, retrained)


def _leaves_models_open(attack: Attack) -> bool:
    """Whether an attack takes shadow models, and leaves it to the audit how many."""
    return isinstance(attack, ShadowAttack) and attack.models is None


def _ask(
    found: Section,
    scores: dict[tuple[str, str], Scores],
    attack: Attack,
    m: Materials,
    candidates: Candidates,
    scenes: dict[str, AttackerKnowledge],
) -> None:
    """Run one attack on every release; add its record to ``found`` and what it says of each candidate to ``scores``."""
    start, name = time.perf_counter(), type(attack).__name__
    victims = []
    for artifact in m.artifacts:
        oracle = m.oracle(artifact, name)
        if obstacle(attack, oracle, scenes[artifact.name]):  # two versions: the original has no companion
            continue
        try:
            got = _scores(attack, oracle, scenes[artifact.name], candidates)
        except Exception as error:  # an attack may be anybody's
            why = failure(error)
            if artifact is m.file:
                found.records.append(not_run(type(attack), why))
                return
            found.warnings.append(f"{name} on {artifact.name} {why.reason}.")
            continue
        scores[name, artifact.name] = got
        victims.append(_victim(artifact, got, candidates.members.numpy(), oracle.queries))
    found.records.append(record(attack, victims, time.perf_counter() - start))


def _scores(attack: Attack, oracle: Oracle, knowledge: AttackerKnowledge, candidates: Candidates) -> Scores:
    (loot,) = attack.run(oracle, knowledge, [10 * len(candidates.pool)])
    if loot.scores is None or loot.scores.shape != (len(candidates.pool),):
        raise ModelError(f"{type(attack).__name__} gave no score for each of {len(candidates.pool)} candidates")
    return loot.scores.double().numpy()


def scene_of(m: Materials, artifact: Artifact, candidates: Candidates) -> AttackerKnowledge:
    """Return what a membership attacker has against one release."""
    compressed = artifact is m.file
    knowledge = replace(
        m.knowledge(m.protocol.first_seed),
        pool=candidates.pool,
        shadows=candidates.after if compressed else candidates.before,
    )
    # Shadow models of both releases only where they differ: else the second would seem to tell nothing.
    if compressed and m.original is not None and candidates.after is not candidates.before:
        other = m.oracle(m.original, "companion")
        knowledge = replace(knowledge, companions=(other,), companion_shadows=(candidates.before,))
    return knowledge


def _enough(m: Materials, knowledge: AttackerKnowledge, candidates: Candidates) -> int:
    """Return how many shadow models settle the matter: few first, more only while they raise what is found."""
    counts = [count for count in (4, 8, 16, 32, 64) if count <= m.protocol.shadow_models] or [4]
    if len(counts) == 1:
        return counts[0]
    oracle = m.oracle(m.file, "sequential")
    answers = answers_to(oracle, candidates.pool)

    def score(count: int) -> npt.ArrayLike:
        return BaVarIA(models=count).scores(answers, oracle.answers, knowledge).numpy()

    return membership.sequential(score, membership.settled(candidates.members.numpy()), counts)[1]


def _victim(artifact: Artifact, scores: Scores, members: npt.NDArray[np.bool_], queries: int) -> Obtained:
    claimable = membership.claimable(members, RATES)
    rates = tuple(
        RateFound(
            fpr=rate,
            tpr=_once(membership.tpr_at(scores, members, rate)) if rate in claimable else None,
            claimable=rate in claimable,
        )
        for rate in RATES
    )
    fpr, tpr = membership.curve(scores, members)
    return Obtained(
        artifact=artifact.name,
        queries_sent=queries,
        auc=_once(membership.auc(scores, members)),
        tpr_at=rates,
        roc={"fpr": fpr.tolist(), "tpr": tpr.tolist()},
    )


def _once(estimate: Estimate) -> Estimate:
    """Return an estimate as that of the one seed there is: what is asked of candidates is asked once."""
    return replace(estimate, values=(estimate.value,))


def _rows(
    m: Materials, scores: dict[tuple[str, str], Scores], members: npt.NDArray[np.bool_], joint: Collection[str]
) -> list[Row]:
    """Compare before and after by the attack that finds most, and with what the attacks ``joint`` find in both."""
    # One that failed on the original compares nothing, however much it finds.
    complete = {name for name, _ in scores if all((name, artifact.name) in scores for artifact in m.artifacts)}
    on_file = {name for name, artifact in scores if artifact == m.file.name and name not in joint}
    names = sorted(complete & on_file or on_file)
    if not names:
        return []

    def area(name: str, artifact: Artifact) -> float:
        return membership.auc(scores[name, artifact.name], members).value

    seen = [artifact for artifact in m.artifacts if all((name, artifact.name) in scores for name in names)]
    best = max(names, key=lambda name: sum(area(name, artifact) for artifact in seen))
    both = [scores[best, artifact.name] for artifact in seen]
    rows = [_row(f"members told from others, AUC ({best})", both, members, None, primary=True)]
    rows += [
        _row(f"members found at {rate:.1%} false alarms ({best})", both, members, rate)
        for rate in membership.claimable(members, RATES)
    ]
    alone = scores[best, m.file.name]
    for name in sorted(joint):
        together = scores.get((name, m.file.name))
        if together is None:
            continue
        rows.append(_row(f"the same, AUC, with the original beside it ({name}; before: {best} on the file alone)",
                         [alone, together], members, None))  # fmt: skip
    return rows


def _row(
    measure: str, both: list[Scores], members: npt.NDArray[np.bool_], rate: float | None, *, primary: bool = False
) -> Row:
    def value(scores: Scores) -> float:
        found = membership.auc(scores, members) if rate is None else membership.tpr_at(scores, members, rate)
        return found.value

    if len(both) == 1:
        return Row(measure, "share", None, value(both[0]), goal="membership", primary=primary)
    gap = membership.difference(both[0], both[1], members, fpr=rate)
    chance = Difference(gap.value, (gap.high - gap.low) / (2 * _Z), examples=gap.examples)
    note = "of these two files: two that were trained alike differ too" if primary else ""
    return Row(measure, "share", value(both[0]), value(both[1]), chance, note=note, goal="membership", primary=primary)


def _members(m: Materials, candidates: Candidates, models: int | None, retrained: bool | None) -> dict[str, Any]:
    members = candidates.members.numpy()
    blind = membership.auc(membership.blind_scores(candidates.pool, members, m.protocol.first_seed), members)
    claimable = membership.claimable(members, (*RATES, 0.1))
    return {
        "members": int(members.sum()),
        "non_members": int((~members).sum()),
        "split_by_us": isinstance(m.data, Data) and m.data.test is None,
        "smallest_fpr": min(claimable, default=None),
        "training_data_used_again": retrained,
        "shadow_models": models,
        "blind_auc": _once(blind).to_dict(),
    }
