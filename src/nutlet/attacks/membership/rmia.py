"""RMIA: is the victim surer of this candidate than other models are, more so than for others of the population?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from nutlet.attacks.base import EVERY_TASK, AttackerKnowledge, AttackResult, register_attack
from nutlet.attacks.membership.shadow_attack import ShadowAttack
from nutlet.attacks.membership.signals import (
    confidence,
    of_pool,
    scored_once,
    shadow_confidence,
)
from nutlet.options import Range, Share
from nutlet.oracle import Access, Disclosure, Oracle

__all__ = ["RMIA"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class RMIA(ShadowAttack):
    r"""Count the other candidates ``z`` over which the likelihood ratio of a candidate ``x`` exceeds ``gamma``.

    .. math::
        LR(x, z) = \frac{p(x \mid \theta) / p(x)}{p(z \mid \theta) / p(z)}, \quad
        score(x) = \Pr_z[LR(x, z) > \gamma]

    with ``p`` the probability of the label. Online, ``p(x)`` is its mean over all shadow models. Offline it is guessed
    from those that did not see ``x`` by the line :math:`p_{in} = a\, p_{out} + 1 - a`, so that
    :math:`p(x) = \frac{1}{2}((1 + a)\, p_{out}(x) + 1 - a)` (Zarifzadeh et al. 2024).

    All candidates are compared with one population, so a ``gamma`` above 1 changes no order: it only makes ties.

    Args:
        mode: ``online`` or ``offline``.
        models: shadow models; two are enough.
        a: of the line; fitted to the shadow models by least squares where not given.
        gamma: 1 or more.

    Raises:
        ConfigError: fewer than two models, or a value out of range.
    """

    use_when: ClassVar[str] = "membership with two to eight shadow models: the most for the least training"
    access: ClassVar[Access] = "labels"
    tasks: ClassVar[tuple[str, ...]] = EVERY_TASK
    source: ClassVar[str] = "Zarifzadeh, Liu, Shokri 2024, arXiv:2312.03262"
    usual: ClassVar[int] = 4

    mode: Literal["online", "offline"] = "online"
    a: Share | None = None
    gamma: Annotated[float, Range(1)] = 1.0

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield one loot: the whole pool is asked about once."""
        yield scored_once(self.scores, oracle, knowledge, budgets)

    def scores(self, answers: Tensor, shown: Disclosure, knowledge: AttackerKnowledge) -> Tensor:
        """Return a score for each candidate from the victim's answers ``(N, ...)``."""
        assert knowledge.shadows is not None
        targets, task = of_pool(knowledge).y, knowledge.task
        values, members = shadow_confidence(knowledge.shadows, self.count, targets, shown, task)
        ratio = confidence(answers, targets, shown, task).sigmoid() / self._expected(values.sigmoid(), members)
        below = torch.searchsorted(ratio.sort().values, ratio / self.gamma)
        return below.double() / len(ratio)

    def _expected(self, probabilities: Tensor, members: Tensor) -> Tensor:
        """Return ``p(x)``, ``(N,)``, from the probabilities of the shadow models ``(M, N)``."""
        unseen = (probabilities * ~members).sum(0) / (~members).sum(0)
        seen = (probabilities * members).sum(0) / members.sum(0)
        if self.mode == "online":
            return (seen + unseen) / 2
        a = self.a
        if a is None:
            a = float(((1 - seen) * (1 - unseen)).sum() / ((1 - unseen) ** 2).sum().clamp_min(1e-12))
            a = min(max(a, 0.0), 1.0)
        return ((1 + a) * unseen + 1 - a) / 2
