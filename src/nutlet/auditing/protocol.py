"""What is asked of an audit, as data: budgets, seeds, what the victim shows, which attacks."""

from __future__ import annotations

from dataclasses import dataclass, field

from nutlet.attack import Attack, known_attacks
from nutlet.data import check_seed
from nutlet.errors import ConfigError, nearest
from nutlet.oracle import Answers

__all__ = ["DEFAULT_BUDGETS", "Protocol"]

DEFAULT_BUDGETS = (250, 1_000, 4_000)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a file is audited; stated in every report.

    Args:
        queries: budgets of the extraction attacks, inputs sent; empty for those of :data:`DEFAULT_BUDGETS` that the
            transfer set can fill.
        seeds: repetitions, each with another clone and another order of the transfer set; intervals need two or more.
        first_seed: the seeds are this and those after it.
        answers: what the victim shows.
        attacks: names of attacks; empty for all but the costly ones, ``("all",)`` for all.
        effort: scales the training of clones; below 1 an audit is quicker and overstates safety.
        shadow_models: most models trained for membership inference; fewer where they decide already.
        price_per_query: money for one answer, for what a theft would cost.
        currency: of the price.

    Raises:
        ConfigError: a value out of range, or an attack that does not exist.

    >>> Protocol(queries=(1000, 250)).queries
    (250, 1000)
    """

    queries: tuple[int, ...] = ()
    seeds: int = 3
    first_seed: int = 0
    answers: Answers = field(default_factory=Answers)
    attacks: tuple[str, ...] = ()
    effort: float = 1.0
    shadow_models: int = 16
    price_per_query: float = 0.001
    currency: str = "USD"

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "queries", tuple(sorted(set(self.queries))))
        check_seed(self.first_seed)
        if self.queries and self.queries[0] < 2:
            raise ConfigError(f"found a budget of {self.queries[0]} queries; expected 2 or more")
        if not 1 <= self.seeds <= 100:
            raise ConfigError(f"found {self.seeds} seeds; expected 1 to 100")
        if self.effort <= 0:
            raise ConfigError(f"the effort is {self.effort}; expected above 0; 1 is a full audit")
        if self.shadow_models < 2:
            raise ConfigError(f"found {self.shadow_models} shadow models; expected 2 or more, an even number is best")
        if self.price_per_query < 0:
            raise ConfigError(f"the price of a query is {self.price_per_query}; expected 0 or more")
        for name in self.attacks:
            if name != "all" and name not in known_attacks():
                raise ConfigError(f"found the attack {name!r}, which does not exist; {nearest(name, known_attacks())}")

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """The seeds themselves."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))

    def chosen(self, attack: type[Attack]) -> str | None:
        """Return why ``attack`` is not to be run, or None where it is."""
        if self.attacks and "all" not in self.attacks:
            return None if attack.__name__ in self.attacks else "not asked for"
        if attack.costly and "all" not in self.attacks:
            return f"costly: ask for it with --attacks {attack.__name__}, or all"
        return None
