"""Knockoff Nets: ask about a random part of the transfer set, train on the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from nutlet.attacks.base import Attack, Goal, Loot, Scene, register_attack
from nutlet.attacks.extraction.queries import Asked, means
from nutlet.oracle import Access, Oracle

__all__ = ["Knockoff"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class Knockoff(Attack):
    """Train a clone on the answers to a random part of the transfer set (Orekondy et al. 2019, Knockoff Nets).

    The transfer sets of all budgets are nested: a larger one begins with the answers of the smaller ones. On labels
    alone this is Copycat CNN (Correia-Silva et al. 2018).
    """

    when: ClassVar[str] = "the plain attack: inputs at hand, answers trained on"
    goal: ClassVar[Goal] = "clone"
    access: ClassVar[Access] = "labels"
    needs: ClassVar[tuple[str, ...]] = ("transfer", "thief")
    source: ClassVar[str] = "Orekondy et al. 2019, arXiv:1812.02766"

    def run(self, oracle: Oracle, scene: Scene, budgets: Sequence[int]) -> Iterator[Loot]:
        """Yield a clone for each budget."""
        transfer, thief = means(scene)
        order = torch.randperm(len(transfer), generator=torch.Generator().manual_seed(scene.seed))
        asked = Asked.nothing(transfer, scene.classes)
        for budget in sorted(budgets):
            asked = asked.more(oracle, order[len(asked) : budget])
            clone = thief.train(asked.examples, asked.answers, seed=scene.seed, progress=scene.progress)
            yield Loot(queries=oracle.queries, clone=clone)
