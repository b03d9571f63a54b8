"""What is asked of an audit, as data: budgets, seeds, what the victim shows, which attacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from nutlet.attacks.base import Attack
from nutlet.auditing.chosen import ALL, Chosen, chosen_attacks
from nutlet.data.examples import check_seed
from nutlet.errors import ConfigError
from nutlet.oracle import Disclosure

__all__ = ["DEFAULT_BUDGETS", "Protocol"]

DEFAULT_BUDGETS = (250, 1_000, 4_000)
_MOST_QUERIES = 10**9
_MOST_EFFORT = 1_000


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a file is audited; stated in every report.

    Args:
        queries: budgets of the extraction attacks, inputs sent; empty for those of :data:`DEFAULT_BUDGETS` that the
            transfer set can fill.
        seeds: repetitions, each with another clone and another order of the transfer set; intervals need two or more.
        first_seed: the seeds are this and those after it.
        answers: what the victim shows; by default probabilities, or the outputs of a task that has none.
        attacks: names of attacks, names with options as ``"RMIA(models=16)"``, or instances; empty for all but the
            costly ones, ``("all",)`` for all. An instance sets all of its options, a name only those beside it.
        effort: scales the training of clones; below 1 an audit is quicker and overstates safety.
        shadow_models: most models trained for membership inference; fewer where they decide already.
        price_per_query: money for one answer, for what a theft would cost.
        currency: of the price.

    Raises:
        ConfigError: a value out of range, or an attack or an option of one that does not exist.

    >>> Protocol(queries=(1000, 250)).queries
    (250, 1000)
    >>> Protocol(attacks=("Knockoff", "RMIA(models=16)")).asked["RMIA"].attack.models
    16
    """

    queries: tuple[int, ...] = ()
    seeds: int = 3
    first_seed: int = 0
    answers: Disclosure | None = None
    attacks: tuple[str | Attack, ...] = ()
    effort: float = 1.0
    shadow_models: int = 16
    price_per_query: float = 0.001
    currency: str = "USD"

    def __post_init__(self) -> None:
        """Check the values."""
        for budget in self.queries:
            if not _whole(budget) or not 2 <= budget <= _MOST_QUERIES:
                raise ConfigError(f"found a budget of {budget!r} queries; expected whole numbers from 2 up")
        object.__setattr__(self, "queries", tuple(sorted(set(self.queries))))
        check_seed(self.first_seed)
        if not _whole(self.seeds) or not 1 <= self.seeds <= 100:
            raise ConfigError(f"found {self.seeds!r} seeds; expected 1 to 100")
        if not 0 < self.effort <= _MOST_EFFORT:
            raise ConfigError(f"the effort is {self.effort}; expected above 0 to {_MOST_EFFORT}; 1 is a full audit")
        if not _whole(self.shadow_models) or self.shadow_models < 2:
            raise ConfigError(f"found {self.shadow_models!r} shadow models; expected 2 or more, an even number is best")
        if not 0 <= self.price_per_query < math.inf:
            raise ConfigError(f"the price of a query is {self.price_per_query}; expected 0 or more, and finite")
        if isinstance(self.attacks, str):
            raise ConfigError(f"attacks is the text {self.attacks!r}; expected a tuple, as ({self.attacks!r},)")
        object.__setattr__(self, "attacks", tuple(self.attacks))
        self.asked  # noqa: B018  what is wrong with one is said at once

    @cached_property
    def asked(self) -> Mapping[str, Chosen]:
        """The attacks named in ``attacks``, with their options."""
        return chosen_attacks(self.attacks)

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """The seeds themselves."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))

    def excluded(self, attack: type[Attack]) -> str | None:
        """Return why ``attack`` is not to be run, or None where it is."""
        if ALL in self.attacks or attack.__name__ in self.asked:
            return None
        if self.attacks:
            return "not asked for"
        return f"costly: ask for it with --attacks {attack.__name__}, or all" if attack.costly else None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
