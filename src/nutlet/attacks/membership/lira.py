"""LiRA: is this confidence more likely of a model that saw the candidate, or of one that did not?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from nutlet.attacks.base import EVERY_TASK, AttackerKnowledge, AttackResult, register_attack
from nutlet.attacks.membership.shadow_attack import ShadowAttack, pairs
from nutlet.attacks.membership.signals import (
    confidence,
    of_pool,
    scored_once,
    shadow_confidence,
)
from nutlet.oracle import Access, Disclosure, Oracle

__all__ = ["LiRA"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class LiRA(ShadowAttack):
    r"""Compare two normal distributions of the confidence :math:`\varphi`, one of shadow models that saw the candidate.

    Online, the score is :math:`\log N(\varphi; \mu_{in}, \sigma_{in}) - \log N(\varphi; \mu_{out}, \sigma_{out})`;
    offline, :math:`(\varphi - \mu_{out}) / \sigma_{out}`, which looks only at the models that did not see the candidate
    (Carlini et al. 2022, First Principles).

    Args:
        mode: ``online`` or ``offline``.
        variance: ``per-example``, or ``fixed``: one of the whole pool, pooled within candidates, for few models.
        models: shadow models; half of them saw each candidate.

    Raises:
        ConfigError: fewer than four models, or an unknown option.
    """

    use_when: ClassVar[str] = "the reference for membership: strong, and dear; dozens of shadow models"
    access: ClassVar[Access] = "labels"
    tasks: ClassVar[tuple[str, ...]] = EVERY_TASK
    source: ClassVar[str] = "Carlini et al. 2022, arXiv:2112.03570"
    usual: ClassVar[int] = 64

    mode: Literal["online", "offline"] = "online"
    variance: Literal["per-example", "fixed"] = "per-example"
    models: Annotated[int, pairs(4, "two on each side are the fewest that show a variance; RMIA takes two")] | None = (
        None
    )

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield one loot: the whole pool is asked about once."""
        yield scored_once(self.scores, oracle, knowledge, budgets)

    def scores(self, answers: Tensor, shown: Disclosure, knowledge: AttackerKnowledge) -> Tensor:
        """Return a score for each candidate from the victim's answers ``(N, ...)``."""
        assert knowledge.shadows is not None
        targets, task = of_pool(knowledge).y, knowledge.task
        phi = confidence(answers, targets, shown, task)
        values, members = shadow_confidence(knowledge.shadows, self.count, targets, shown, task)
        mean, deviation = _normal(values, ~members, fixed=self.variance == "fixed")
        if self.mode == "offline":
            return (phi - mean) / deviation
        seen_mean, seen_deviation = _normal(values, members, fixed=self.variance == "fixed")
        return (
            ((phi - mean) / deviation) ** 2 / 2
            + deviation.log()
            - ((phi - seen_mean) / seen_deviation) ** 2 / 2
            - seen_deviation.log()
        )


def _normal(values: Tensor, chosen: Tensor, *, fixed: bool) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the chosen values ``(M, N)`` for each candidate, ``(N,)`` each."""
    weights = chosen.double()
    count = weights.sum(0)
    mean = (weights * values).sum(0) / count
    squares = (weights * (values - mean) ** 2).sum(0)
    pooled = squares.sum() / (count - 1).sum()
    variance = pooled.expand_as(mean) if fixed else squares / count
    # A candidate on which all models agree is no infinite evidence.
    return mean, torch.sqrt(variance + 1e-6 * pooled + 1e-12)
