"""Victims with many classes: what the classes look like, and how wide the layer below the outputs is."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.attacks.base import AttackerKnowledge
from nutlet.attacks.extraction.surrogate import fresh
from nutlet.data.examples import Examples

CLASSES, FEATURES = 16, 10
OUTPUTS, WIDTH = 60, 12


@cache
def centres() -> Tensor:
    """Return where the classes lie ``(16, 10)``."""
    return torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(5))


def rows(count: int, seed: int) -> Examples:
    """Return rows ``(count, 10)`` around the centres."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    return Examples(centres()[y] + 0.3 * torch.randn(count, FEATURES, generator=generator), y)


def untrained() -> nn.Module:
    """Return a network that knows nothing."""
    return fresh(nn.Sequential(nn.Linear(FEATURES, 48), nn.ReLU(), nn.Linear(48, CLASSES)), 1).eval()


@cache
def victim() -> nn.Module:
    """Return a network trained for a fraction of a second."""
    model, data = untrained(), rows(800, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(data.x), data.y).backward()
        optimizer.step()
    return model


@cache
def judge() -> nn.Module:
    """Return the classifier that knows the centres: the nearest one is the class."""
    nearest = nn.Linear(FEATURES, CLASSES)
    with torch.no_grad():
        nearest.weight.copy_(centres())
        nearest.bias.copy_(-centres().square().sum(1) / 2)
    return nearest


def knowledge(white_box: nn.Module) -> AttackerKnowledge:
    """Return what the attacker has: other rows, and the file."""
    return AttackerKnowledge(
        classes=CLASSES, shape=(FEATURES,), seed=3, transfer=rows(600, seed=2), white_box=white_box
    )


@cache
def wide() -> nn.Module:
    """Return a network of 60 outputs and a hidden layer of 12."""
    return fresh(nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUTPUTS)), 2).eval()
