"""What attacks share that compare the victim with shadow models: how many of them they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from nutlet.attacks.base import Attack, Goal
from nutlet.options import Range, options_of

__all__ = ["ShadowAttack", "pairs"]


def pairs(fewest: int, why: str = "") -> Range:
    """Return the range of a number of shadow models, which come in pairs that saw the two halves of one draw.

    Args:
        fewest: models with which the attack makes sense.
        why: fewer tell too little.
    """
    note = "they come in pairs" + (f", and {why}" if why else "")
    return Range(fewest, multiple_of=2, noun="an even number", note=note)


@dataclass(frozen=True, kw_only=True)
class ShadowAttack(Attack):
    """An attack that compares the victim with models of known halves of the pool.

    Args:
        models: shadow models; an audit takes as many as settle the matter where this is None, :attr:`usual` is taken
            elsewhere.
    """

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[tuple[str, ...]] = ("pool", "shadows")
    usual: ClassVar[int]
    """Shadow models where nobody says how many."""

    models: Annotated[int, pairs(2)] | None = None

    @property
    def count(self) -> int:
        """Shadow models that it compares with."""
        return self.usual if self.models is None else self.models

    @classmethod
    def fewest(cls) -> int:
        """Return the least number of shadow models with which it makes sense."""
        bounds = options_of(cls)["models"].range
        assert bounds is not None
        assert bounds.low is not None
        return int(bounds.low)
