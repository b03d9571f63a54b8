"""One small configuration of every attack, and the tiny worlds that they run in.

To add an attack, add a case to :data:`CASES`; a test holds that none is missing. An attack may have several, under
names that begin with its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conformance import file_world, inversion_world, membership_world
from nutlet.attacks import (
    JBDA,
    RMIA,
    SAMIA,
    ActiveThief,
    AdaptiveKnockoff,
    BaVarIA,
    DataFree,
    FileLeaks,
    GeneratorInversion,
    Knockoff,
    LabelOnly,
    LastLayerWidth,
    LiRA,
    LossThreshold,
    MIFace,
    RecoverWeights,
    Refine,
    Reuse,
    SemiSupervised,
    ShadowClassifier,
    TwoVersion,
)
from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult
from nutlet.attacks.extraction.surrogate import Surrogate, architecture_for
from nutlet.auditing.recognition import recognised
from nutlet.data.examples import Examples
from nutlet.measurement.roc import auc, blind_scores
from nutlet.oracle import Access, Disclosure, Oracle, Source, source_of

CLASSES = 4
SHOWN: dict[Access, Disclosure] = {
    "labels": Disclosure("labels"),
    "probabilities": Disclosure(),
    "logits": Disclosure("logits"),
    "file": Disclosure("labels"),
}
"""The least that an oracle shows at each access: whoever has the file needs no better answers."""


@dataclass(frozen=True, eq=False)
class World:
    """A victim, what the attacker has, and what only the judge has.

    Args:
        victim: answers queries.
        knowledge: the attacker's.
        truth: whatever the judge scores with.
    """

    victim: Source
    knowledge: AttackerKnowledge
    truth: Any = None

    def oracle(self, shown: Disclosure, budget: int | None = None) -> Oracle:
        """Return the victim behind a ledger of its own."""
        return Oracle(self.victim, answers=shown, budget=budget)


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """An attack in a tiny world, and what it must reach there.

    Args:
        attack: a small configuration.
        bad: values it must refuse; every option has to occur in one of them.
        budgets: queries, or labels of one's own; none where it takes neither.
        asks: whether the budgets are queries.
        real: makes the world in which there is something to find.
        null: makes the same world around a victim (or a file) with nothing in it.
        judge: scores a loot, higher is worse for the victim.
        baseline: what one reaches in the world without a single query.
        margin: by how much the loot of the largest budget must beat it.
        chance: the score of a thief who knows nothing.
        slack: how far from it the score may be in the null world, above or below.
        nested: the loot of a budget is the same whatever larger budgets were asked for.
    """

    attack: Attack
    bad: tuple[dict[str, Any], ...] = ()
    budgets: tuple[int, ...] = ()
    asks: bool = True
    real: Callable[[], World]
    null: Callable[[], World]
    judge: Callable[[AttackResult, World], float]
    baseline: Callable[[World], float]
    margin: float
    chance: float
    slack: float
    nested: bool = True


# Clones: eight centres on a circle. The thief labels them in pairs; the victim was trained on other pairs, so that
# labels of his own get him half of it.


def rows(count: int, seed: int) -> Examples:
    """Return rows ``(count, 10)`` around eight centres, labelled by pairs of neighbours."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.arange(8) * torch.pi / 4
    centres = 3 * torch.stack([angle.cos(), angle.sin()], 1)
    cluster = torch.randint(0, 8, (count,), generator=generator)
    x = 0.5 * torch.randn(count, 10, generator=generator)
    x[:, :2] += centres[cluster]
    return Examples(x, cluster // 2)


def secret(x: Tensor) -> Tensor:
    """Return what the victim was trained to tell apart: quarters of the plane, turned by half a pair."""
    centre = torch.atan2(x[:, 1], x[:, 0]) / (torch.pi / 4)
    return ((centre - 0.5) / 2).floor().long() % CLASSES


@cache
def classifier() -> nn.Module:
    """Return a victim trained for a fraction of a second."""
    generator = torch.Generator().manual_seed(0)
    first, last = nn.Linear(10, 32), nn.Linear(32, CLASSES)
    with torch.no_grad():
        for parameter in [*first.parameters(), *last.parameters()]:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model = nn.Sequential(first, nn.ReLU(), last)
    x = rows(512, seed=1).x
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), secret(x)).backward()
        optimizer.step()
    return model.eval()


def noise(x: Tensor, classes: int = CLASSES) -> Tensor:
    """Answer with random scores that are the same for the same input: a victim that knows nothing."""
    mixed = (x.flatten(1).double() * 1e4).sin().sum(1, keepdim=True)
    return ((mixed * (1e4 + torch.arange(classes))).sin() * 3).float()


THIEF = Surrogate(architecture=architecture_for((10,), CLASSES, "smaller"), effort=0.06, batch_size=32, lr=0.01)


def clone_world(victim: Source, *, transfer: bool = True) -> World:
    knowledge = AttackerKnowledge(
        classes=CLASSES, shape=(10,), seed=3, transfer=rows(400, seed=2) if transfer else None, surrogate=THIEF
    )  # fmt: skip
    return World(victim, knowledge, truth=rows(400, seed=4).x)


@cache
def real_clone() -> World:
    return clone_world(source_of(classifier()))


@cache
def null_clone() -> World:
    return clone_world(noise)


def agreement(loot: AttackResult, world: World) -> float:
    """Return how often clone and victim have the same top class on inputs that no attack has seen."""
    assert loot.clone is not None
    with torch.no_grad():
        return float((loot.clone(world.truth).argmax(1) == world.victim(world.truth).argmax(1)).float().mean())


@cache
def own_labels(world: World) -> float:
    """Return the agreement of the same thief, trained on the labels he has anyway."""
    transfer = world.knowledge.transfer
    assert transfer is not None
    clone = THIEF.train(transfer, F.one_hot(transfer.y, CLASSES).float(), seed=3)
    return agreement(AttackResult(queries=0, clone=clone), world)


CLONE = Case(
    attack=Knockoff(),
    budgets=(40, 160),
    real=real_clone,
    null=null_clone,
    judge=agreement,
    baseline=own_labels,
    margin=0.2,
    chance=1 / CLASSES,
    slack=0.08,
)


# Membership: a pool whose labels are partly drawn at random, and a victim that knows half of it by heart.


@cache
def real_membership() -> World:
    victim = source_of(membership_world.victim())
    return World(victim, membership_world.knowledge(), truth=membership_world.members())


@cache
def null_membership() -> World:
    return World(noise, membership_world.knowledge(noise), truth=membership_world.members())


def told_apart(loot: AttackResult, world: World) -> float:
    """Return the area under the curve of members against others."""
    assert loot.scores is not None
    return auc(loot.scores, world.truth).value


@cache
def blind(world: World) -> float:
    """Return the area of who sees the candidates and no model, though he is told most of the members."""
    assert world.knowledge.pool is not None
    return max(auc(blind_scores(world.knowledge.pool, world.truth), world.truth).value, 0.5)


def membership(attack: Attack, *bad: dict[str, Any], queries: int = membership_world.CANDIDATES) -> Case:
    return Case(
        attack=attack,
        bad=bad,
        budgets=(queries,),
        real=real_membership,
        null=null_membership,
        judge=told_apart,
        baseline=blind,
        margin=0.08,
        chance=0.5,
        slack=0.12,  # three standard deviations of the area of so few candidates are 0.11
    )


MODE, PRIOR = {"mode": "both"}, ({"strength": 0}, {"strength": float("nan")}, {"neighbours": 1})
MEMBERSHIP = {
    "BaVarIA": membership(BaVarIA(neighbours=60), {"models": 2}, {"models": 7}, MODE, *PRIOR),
    "BaVarIA-offline": membership(BaVarIA(neighbours=60, mode="offline")),
    "LiRA": membership(LiRA(models=8), {"models": 2}, {"models": 5}, MODE, {"variance": "none"}),
    "LiRA-fixed": membership(LiRA(models=8, variance="fixed")),
    "LiRA-offline": membership(LiRA(models=8, mode="offline")),
    "LossThreshold": membership(LossThreshold()),
    "RMIA": membership(RMIA(), {"models": 0}, {"models": 3}, MODE, {"gamma": 0.5}, {"a": 1.5}),
    "RMIA-offline": membership(RMIA(models=2, mode="offline")),
    "SAMIA": membership(SAMIA(steps=40), {"models": 1}, {"steps": 0}, queries=3 * membership_world.CANDIDATES),
    "ShadowClassifier": membership(ShadowClassifier(steps=60), {"models": 5}, {"steps": -1}),
    "TwoVersion": membership(TwoVersion(models=8, neighbours=60), {"models": 4}, MODE, *PRIOR),
}

# The file in hand: what it gives away as it lies there, and what labels it spares.


@cache
def real_file() -> World:
    knowledge = file_world.knowledge(file_world.pruned(), file_world.leaky())
    return World(source_of(file_world.victim()), knowledge)


@cache
def null_file() -> World:
    knowledge = file_world.knowledge(file_world.untrained(), file_world.mute())
    return World(source_of(file_world.untrained()), knowledge)


def file_case(attack: Attack, *bad: dict[str, Any]) -> Case:
    return Case(
        attack=attack,
        bad=bad,
        budgets=(12, file_world.LABELS),
        asks=False,
        real=real_file,
        null=null_file,
        judge=lambda loot, world: file_world.gain(loot),
        baseline=lambda world: 0.0,
        margin=0.1,
        chance=0.0,
        slack=0.1,
    )


FILE = {
    "FileLeaks": Case(
        attack=FileLeaks(),
        real=real_file,
        null=null_file,
        judge=lambda loot, world: float(loot.share or 0.0),
        baseline=lambda world: 0.0,
        margin=0.5,
        chance=0.0,
        slack=0.0,
    ),
    "Refine": file_case(Refine(), {"lr": 0.0}),
    "Reuse": file_case(Reuse(), {"groups": 1}, {"start": "scratch"}, {"lr": 100.0}),
}

# Clones by other ways of asking and training.

CLONES = {
    "AdaptiveKnockoff": replace(CLONE, attack=AdaptiveKnockoff(rounds=4), bad=({"rounds": 1},)),
    "DataFree": replace(
        CLONE,
        attack=DataFree(),
        bad=({"clone_steps": 0}, {"directions": 0}, {"step": 0}, {"step": float("nan")}),
        budgets=(400, 1600),
    ),
    "LabelOnly": replace(CLONE, attack=LabelOnly(copies=3), bad=({"copies": 0}, {"noise": 0}, {"noise": float("nan")})),
    "LabelOnly-few-inputs": replace(CLONE, attack=LabelOnly(copies=3), budgets=(600, 1600)),
}


# Weights: a network of two layers that answers in float64.


@cache
def real_weights() -> World:
    victim = copy.deepcopy(classifier()).double()
    return World(source_of(victim), AttackerKnowledge(classes=CLASSES, shape=(10,), seed=3), truth=victim)


@cache
def null_weights() -> World:
    return World(lambda x: noise(x).double(), AttackerKnowledge(classes=CLASSES, shape=(10,), seed=3))


WEIGHTS = Case(
    attack=RecoverWeights(),
    bad=({"lines": 0}, {"checks": 0}),
    budgets=(1500,),
    real=real_weights,
    null=null_weights,
    judge=lambda loot, world: float(loot.share or 0.0),
    baseline=lambda world: 0.0,
    margin=0.99,
    chance=0.0,
    slack=0.2,
)


# Width and inversion: worlds of their own, since a share of four classes says little.


def many_outputs(x: Tensor) -> Tensor:
    return noise(x, inversion_world.OUTPUTS)


def width_world(victim: Source) -> World:
    return World(
        victim, AttackerKnowledge(classes=inversion_world.OUTPUTS, shape=(10,), seed=3), truth=inversion_world.WIDTH
    )


@cache
def real_width() -> World:
    return width_world(source_of(inversion_world.wide()))


@cache
def null_width() -> World:
    return width_world(many_outputs)


def width_found(loot: AttackResult, world: World) -> float:
    assert loot.facts is not None
    return (loot.share or 0.0) * (1.0 if loot.facts["width"] in (world.truth, None) else 0.0)


WIDTH = Case(
    attack=LastLayerWidth(),
    bad=({"drop": 1.0}, {"drop": float("nan")}),
    budgets=(240,),
    real=real_width,
    null=null_width,
    judge=width_found,
    baseline=lambda world: 0.0,
    margin=1.0,
    chance=0.0,
    slack=0.0,
)


@cache
def real_inversion() -> World:
    victim = inversion_world.victim()
    return World(source_of(victim), inversion_world.knowledge(victim), truth=inversion_world.judge())


@cache
def null_inversion() -> World:
    return World(
        lambda x: noise(x, inversion_world.CLASSES),
        inversion_world.knowledge(inversion_world.untrained()),
        truth=inversion_world.judge(),
    )


def seen(loot: AttackResult, world: World) -> float:
    assert loot.images is not None
    return float(recognised(loot.images, world.truth).float().mean())


def mean_seen(world: World) -> float:
    """Return the share of who takes the mean of his own inputs for every class."""
    transfer = world.knowledge.transfer
    assert transfer is not None
    mean = transfer.x.mean(0).expand(world.knowledge.classes, -1)
    return float(recognised(mean, world.truth).float().mean())


def inversion(attack: Attack, *bad: dict[str, Any], budgets: tuple[int, ...] = ()) -> Case:
    return Case(
        attack=attack,
        bad=bad,
        budgets=budgets,
        real=real_inversion,
        null=null_inversion,
        judge=seen,
        baseline=mean_seen,
        margin=0.5,
        chance=1 / inversion_world.CLASSES,
        slack=0.19,  # three standard deviations of a share of so few images
    )


CASES: dict[str, Case] = {
    **CLONES,
    "GeneratorInversion": inversion(
        GeneratorInversion(steps=300), {"steps": 0}, {"confidence": 1.0}, budgets=(150, 600)
    ),
    "LastLayerWidth": WIDTH,
    "RecoverWeights": WEIGHTS,
    "MIFace": inversion(MIFace(steps=60), {"steps": 0}, {"lr": 0.0}, {"prior": -1.0}),
    "JBDA": replace(
        CLONE, attack=JBDA(), bad=({"seeds_share": 0}, {"step": -0.1}, {"steps": 0}, {"targeted": "random"})
    ),
    "ActiveThief": replace(
        CLONE, attack=ActiveThief(rounds=2), bad=({"strategy": "random"}, {"rounds": 1}, {"rounds": 2.5})
    ),
    "ActiveThief-mix": replace(CLONE, attack=ActiveThief(strategy="mix", rounds=2)),
    "JBDA-targeted": replace(CLONE, attack=JBDA(targeted=True, steps=3)),
    "Knockoff": CLONE,
    "SemiSupervised": replace(
        CLONE, attack=SemiSupervised(pool=200), bad=({"pool": 0}, {"share": 0}, {"share": 1}, {"share": float("nan")})
    ),
    **FILE,
    **MEMBERSHIP,
}
"""Every registered attack."""
