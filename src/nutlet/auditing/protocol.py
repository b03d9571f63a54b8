"""What is asked of an audit, as data: budgets, seeds, what the victim shows, which attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from nutlet.attacks.base import Attack
from nutlet.auditing.chosen import ALL, asked_for
from nutlet.errors import ConfigError, shown
from nutlet.options import Range, Seed, Validated
from nutlet.oracle import Disclosure

__all__ = ["DEFAULT_BUDGETS", "Protocol"]

DEFAULT_BUDGETS = (250, 1_000, 4_000)
LOOKS = ((3, 0.003), (6, 0.012), (10, 0.03))
"""Seeds after which it is looked whether the matter is decided, and levels: together they err in 5 % (simulated)."""


@dataclass(frozen=True, kw_only=True)
class Protocol(Validated):
    """How a file is audited; stated in every report.

    Args:
        queries: budgets of the extraction attacks, inputs sent; empty for those of :data:`DEFAULT_BUDGETS` that the
            transfer set can fill.
        seeds: repetitions, each with another clone and another order of the transfer set; a verdict needs three. By
            default three, and where an original is given up to ten, until it is decided whether copying became harder.
        first_seed: the seeds are this and those after it.
        answers: what the victim shows; by default probabilities, or the outputs of a task that has none.
        compare_answers: other ways of answering, for each of which the best copy is measured too.
        attacks: names of attacks, names with options as ``"RMIA(models=16)"``, or instances; empty for all but the
            costly ones, ``("all",)`` for all.
        effort: scales the training of clones; below 1 an audit is quicker and overstates safety.
        margin: differences of shares below this are none that matter.
        shadow_models: most models trained for membership inference; fewer where they decide already.
        price_per_query: money for one answer, for what a theft would cost.
        currency: of the price.

    Raises:
        ConfigError: a value out of range, or an attack or an option of one that does not exist.

    >>> Protocol(queries=(1000, 250)).queries
    (250, 1000)
    >>> Protocol(attacks=("Knockoff", "RMIA(models=16)")).asked["RMIA"].models
    16
    """

    queries: tuple[Annotated[int, Range(2, 10**9, noun="a number of queries")], ...] = ()
    seeds: Annotated[int, Range(1, 100)] | None = None
    first_seed: Seed = 0
    answers: Disclosure | None = None
    compare_answers: tuple[Disclosure, ...] = ()
    attacks: tuple[str | Attack, ...] = ()
    effort: Annotated[float, Range(0, 1_000, left_open=True, note="1 is a full audit")] = 1.0
    margin: Annotated[float, Range(0, 1, left_open=True, right_open=True, noun="a share")] = 0.02
    shadow_models: Annotated[int, Range(2, note="an even number is best")] = 16
    price_per_query: Annotated[float, Range(0, noun="a finite amount of money")] = 0.001
    currency: str = "USD"

    def __post_init__(self) -> None:
        """Check the values, and that the attacks exist."""
        if isinstance(self.attacks, str):
            raise ConfigError(f"Protocol.attacks is {shown(self.attacks)}; expected a tuple, as ({self.attacks!r},)")
        super().__post_init__()
        object.__setattr__(self, "queries", tuple(sorted(set(self.queries))))
        self.asked  # noqa: B018  what is wrong with one is said at once

    @cached_property
    def asked(self) -> Mapping[str, Attack]:
        """The attacks named in ``attacks``, with their options."""
        return asked_for(self.attacks)

    @property
    def looks(self) -> tuple[tuple[tuple[int, ...], float], ...]:
        """The seeds that each look at the results adds, and the level of its test."""
        looks, done = [], 0
        for seeds, level in LOOKS if self.seeds is None else ((self.seeds, 0.05),):
            looks.append((tuple(range(self.first_seed + done, self.first_seed + seeds)), level))
            done = seeds
        return tuple(looks)

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """The seeds of the first look, with which every attack runs."""
        return self.looks[0][0]

    def excluded(self, attack: type[Attack]) -> str | None:
        """Return why ``attack`` is not to be run, or None where it is."""
        if ALL in self.attacks or attack.__name__ in self.asked:
            return None
        if self.attacks:
            return "not asked for"
        return f"costly: ask for it with --attacks {attack.__name__}, or all" if attack.costly else None
