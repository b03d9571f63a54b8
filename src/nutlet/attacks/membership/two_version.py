"""Two versions: the compressed file and the original say more of their training data together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from nutlet.attacks.base import EVERY_TASK, AttackerKnowledge, AttackResult, register_attack
from nutlet.attacks.membership.evidence import Neighbours, log_ratio
from nutlet.attacks.membership.shadow_attack import ShadowAttack, pairs
from nutlet.attacks.membership.signals import (
    answers_to,
    check_budget,
    confidence,
    of_pool,
    shadow_confidence,
)
from nutlet.errors import ConfigError
from nutlet.options import Positive
from nutlet.oracle import Access, Disclosure, Oracle

__all__ = ["TwoVersion"]

_PAIRS = 4
"""Pairs of shadow models whose first is made a victim, to learn weights: a few weights need no more."""


@register_attack
@dataclass(frozen=True, kw_only=True)
class TwoVersion(ShadowAttack):
    r"""Weigh the confidences of all releases of a model jointly: the compressed file, the original, other versions.

    The evidence of :class:`~nutlet.attacks.BaVarIA` is taken from each release alone and from the vector of all, with
    their covariance within a candidate: what a release adds there is how far it is from what the others make one
    expect. A logistic regression weighs these; the attacker learns the weights on his own models, each in turn a victim
    of those of the other pairs, so that a release that says little is given little weight. That releases leak together
    was shown by Li et al. (2025, CompLeak), who combine the answers in another way. It needs shadow models of every
    release, compressed from the same originals.

    Args:
        mode: ``online`` or ``offline``, as BaVarIA.
        models: shadow models of each release.
        strength: models that the prior covariance is worth.
        neighbours: candidates of about the same difficulty that make one prior.

    Raises:
        ConfigError: fewer than six models, or a value out of range.
    """

    use_when: ClassVar[str] = "membership where the original or other versions of the shipped model are public too"
    access: ClassVar[Access] = "labels"
    needs: ClassVar[tuple[str, ...]] = ("pool", "shadows", "companions", "companion_shadows")
    tasks: ClassVar[tuple[str, ...]] = EVERY_TASK
    source: ClassVar[str] = "Li et al. 2025 (CompLeak), arXiv:2507.16872; statistic as Brännvall 2026, arXiv:2603.11799"
    usual: ClassVar[int] = 16

    mode: Literal["online", "offline"] = "online"
    models: Annotated[int, pairs(6, "all but one pair, two on each side, have to show a variance")] | None = None
    strength: Positive = 32.0
    neighbours: Neighbours = 100

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield one loot; each release is asked about the whole pool once, and counts that itself."""
        pool = of_pool(knowledge)
        check_budget(len(pool), budgets)
        releases = [oracle, *knowledge.companions]
        answers = [answers_to(release, pool) for release in releases]
        scores = self.scores(answers, [release.answers for release in releases], knowledge)
        yield AttackResult(queries=oracle.queries, scores=scores)

    def scores(self, answers: Sequence[Tensor], shown: Sequence[Disclosure], knowledge: AttackerKnowledge) -> Tensor:
        """Return the evidence for each candidate, in nats.

        Args:
            answers: of the victim and then of each companion, ``(N, ...)``.
            shown: what each shows.
            knowledge: with shadow models of each.

        Raises:
            ConfigError: not one kind of shadow models for each release, or they were trained on other halves.
        """
        assert knowledge.shadows is not None
        targets, task = of_pool(knowledge).y, knowledge.task
        kinds = [knowledge.shadows, *knowledge.companion_shadows]
        if len(kinds) != len(answers):
            raise ConfigError(
                f"found shadow models of {len(kinds)} releases; expected one kind for each of {len(answers)}"
            )
        values, halves = zip(
            *(shadow_confidence(kind, self.count, targets, how, task) for kind, how in zip(kinds, shown, strict=True)),
            strict=True,
        )
        if any(not torch.equal(half, halves[0]) for half in halves):
            raise ConfigError(
                "the shadow models of two releases were trained on different halves of the pool; expected compressed "
                "versions of the same models: give all Shadows one pool and one seed"
            )
        phi = [confidence(answer, targets, how, task) for answer, how in zip(answers, shown, strict=True)]
        return self._weighed(torch.stack(phi, -1), torch.stack(values, -1), halves[0])

    def _weighed(self, phi: Tensor, values: Tensor, members: Tensor) -> Tensor:
        """Return weighed evidence ``(N,)`` of confidences ``(N, D)``, from those of shadow models ``(M, N, D)``."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        models = len(values)
        pairs = torch.arange(models) // 2
        features, wanted = [], []
        for pair in range(min(models // 2, _PAIRS)):
            others = pairs != pair
            features.append(self._evidence(values[2 * pair], values[others], members[others]))
            wanted.append(members[2 * pair])
        classifier = make_pipeline(
            StandardScaler(), LogisticRegression(C=1e4 / sum(map(len, features)), solver="newton-cholesky")
        )
        classifier.fit(torch.cat(features).numpy(), torch.cat(wanted).numpy())
        return torch.from_numpy(classifier.decision_function(self._evidence(phi, values, members).numpy()))

    def _evidence(self, phi: Tensor, values: Tensor, members: Tensor) -> Tensor:
        """Return the evidence of each release alone and of all together, ``(N, D + 1)``."""
        releases = range(phi.shape[1])
        looks = [[release] for release in releases] + [list(releases)]
        return torch.stack(
            [
                log_ratio(
                    phi[:, look],
                    values[:, :, look],
                    members,
                    online=self.mode == "online",
                    strength=self.strength,
                    neighbours=self.neighbours,
                )
                for look in looks
            ],
            1,
        )
