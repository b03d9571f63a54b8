"""The next token at each position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nutlet.errors import DataError
from nutlet.tasks.base import Scores, register_task
from nutlet.tasks.targets import as_integers, check_classes, check_like, check_ranks, mean_where, per_example

__all__ = ["LanguageModeling"]


@register_task
@dataclass(frozen=True)
class LanguageModeling:
    """Outputs ``(N, T, V)``, logits over V tokens; targets ``(N, T)``, the tokens to predict, negative for padding.

    Targets stand where they are predicted: ``x = tokens[:, :-1]``, ``y = tokens[:, 1:]``.

    Args:
        output: which output holds the logits, where the model gives several.
    """

    name: ClassVar[str] = "language_modeling"
    metric: ClassVar[str] = "cross entropy per token"
    unit: ClassVar[str] = "nats"
    higher_is_better: ClassVar[bool] = False
    zero_one: ClassVar[bool] = False
    chance: ClassVar[float | None] = None
    class_dim: ClassVar[int | None] = 2
    disclosures: ClassVar[tuple[str, ...]] = ("logits", "probabilities", "rounded", "labels")

    output: str | int | None = None

    def as_targets(self, values: Tensor) -> Tensor:
        """Return targets ``(N, T)`` int64.

        Raises:
            DataError: another number of dimensions, or no integers.
        """
        targets = as_integers(values, self.name, "one token for each position, (N, T)")
        if targets.ndim != 2:
            raise DataError(
                f"targets have shape {tuple(values.shape)}; language_modeling expects one token for each position, "
                "(N, T): the tokens of the input, one further on"
            )
        return targets

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Check outputs ``(N, T, V)`` and targets ``(N, T)`` below V.

        Raises:
            ModelError: another shape.
            DataError: targets that do not fit.
        """
        check_ranks(outputs, self.name, ndim=3, expected="logits for each position and token, (N, T, tokens)")
        check_like(tuple(outputs.shape[:2]), targets, self.name)
        check_classes(targets, outputs.shape[2])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of the tokens, in nats."""
        return mean_where(-_log_likelihood(outputs, targets), targets >= 0)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return the mean over positions of ``KL(softmax(reference) || softmax(outputs))``, in nats."""
        terms = F.kl_div(F.log_softmax(outputs, 2), F.log_softmax(reference, 2), reduction="none", log_target=True)
        return terms.sum(2).mean()

    def score(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Return the mean log-likelihood of the tokens of each sequence, in nats."""
        return per_example(_log_likelihood(outputs.float(), targets), targets >= 0)

    def agree(self, outputs: Tensor, reference: Tensor) -> Scores:
        """Return the share of positions with the same most likely token in both."""
        same = outputs.argmax(2) == reference.argmax(2)
        return per_example(same, torch.ones_like(same))

    def target(self, outputs: Tensor) -> Tensor:
        """Return the most likely tokens, ``(N, T)``."""
        return outputs.detach().argmax(2)


def _log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the log-likelihood of each target ``(N, T)``; of padding some number that must not count."""
    return F.log_softmax(outputs, 2).gather(2, targets.clamp_min(0).unsqueeze(2)).squeeze(2)
