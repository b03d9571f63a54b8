"""A victim that knows half of a pool by heart, a coarser release of it, and the shadow models against both."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from nutlet.attacks.base import AttackerKnowledge
from nutlet.attacks.membership.shadow_models import Shadows, halves
from nutlet.data.examples import Examples
from nutlet.jobs import Workers
from nutlet.oracle import Disclosure, Oracle, Source, source_of
from nutlet.training.loop import Training, cross_entropy, train_on

CANDIDATES = 240
CLASSES = 4
TRAINING = Training(epochs=25, batch_size=40, lr=0.02, optimizer="adamw", precision="fp32")


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, CLASSES))


@cache
def pool() -> Examples:
    """Return classes that overlap, a third of the labels drawn at random: what can only be known by heart."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(CANDIDATES) % CLASSES
    x = 1.5 * torch.eye(CLASSES, 10)[y] + torch.randn(CANDIDATES, 10, generator=generator)
    drawn = torch.randint(0, CLASSES, (CANDIDATES,), generator=generator)
    return Examples(x, torch.where(torch.rand(CANDIDATES, generator=generator) < 0.3, drawn, y))


@cache
def members() -> Tensor:
    """Return who was in the victim's training data."""
    return halves(CANDIDATES, 2, seed=99)[0]


@cache
def victim() -> nn.Module:
    model = network()
    train_on(model, pool().subset(members()), TRAINING, cross_entropy, seed=5)
    return model


def coarser(model: nn.Module, seen: Examples, seed: int) -> nn.Module:
    """Round the weights to a few values, as quantization to very few bits would."""
    rounded = network()
    with torch.no_grad():
        for to, weight in zip(rounded.parameters(), model.parameters(), strict=True):
            step = weight.abs().max() / 15
            to.copy_((weight / step).round() * step)
    return rounded.eval()


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@cache
def shadows(altered: bool = False) -> Shadows:
    """Return models like the victim, or like its coarser release; each is trained once in a test session."""
    return Shadows(
        pool=pool(),
        architecture=network(),
        training=TRAINING,
        after=coarser if altered else None,
        workers=Workers(folder=Path(_folder().name)),
    )


def knowledge(victim_: Source | None = None, shown: Disclosure | None = None) -> AttackerKnowledge:
    """Return what an attacker has; with a source given, that is the other release too."""
    release = victim_ or source_of(coarser(victim(), pool(), 0))
    return AttackerKnowledge(
        classes=CLASSES,
        shape=(10,),
        seed=3,
        pool=pool(),
        shadows=shadows(),
        companions=(Oracle(release, answers=shown),),
        companion_shadows=(shadows(altered=True),),
    )
