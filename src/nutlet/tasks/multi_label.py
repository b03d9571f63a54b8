"""Any number of labels for each example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nutlet.errors import DataError, ModelError
from nutlet.tasks.base import Scores, register_task
from nutlet.tasks.targets import as_numbers, check_like, check_ranks, mean_where, per_example

__all__ = ["MultiLabel"]


@register_task
@dataclass(frozen=True)
class MultiLabel:
    """Outputs ``(N, L)``, one logit for each label; targets ``(N, L)``, 1 where the label holds and 0 where not.

    Args:
        threshold: probability from which a label counts as given, above 0 and below 1.
        output: which output holds the logits, where the model gives several.

    Raises:
        DataError: a threshold out of range.
    """

    name: ClassVar[str] = "multi_label"
    metric: ClassVar[str] = "F1 per example"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    zero_one: ClassVar[bool] = False
    chance: ClassVar[float | None] = None
    class_dim: ClassVar[int | None] = None
    disclosures: ClassVar[tuple[str, ...]] = ("logits", "probabilities", "rounded", "labels")

    threshold: float = 0.5
    output: str | int | None = None

    def __post_init__(self) -> None:
        """Check the threshold."""
        if not 0 < self.threshold < 1:
            raise DataError(f"MultiLabel.threshold is {self.threshold}; expected a probability above 0 and below 1")

    def as_targets(self, values: Tensor) -> Tensor:
        """Return targets ``(N, L)`` float32.

        Raises:
            DataError: another shape, or numbers that are neither 0, 1 nor NaN.
        """
        targets = as_numbers(values, self.name, "0 or 1 for each label, (N, labels)", ndim=(2,))
        if not bool(((targets == 0) | (targets == 1) | targets.isnan()).all()):
            raise DataError("targets hold other numbers than 0 and 1; multi_label expects 0 or 1 for each label")
        return targets

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Check outputs ``(N, L)``, logits, and targets of the same shape.

        Raises:
            ModelError: another shape, or probabilities: a sigmoid at the end.
            DataError: targets of another shape.
        """
        check_ranks(outputs, self.name, ndim=2, expected="one logit for each label, (N, labels)")
        if len(outputs) > 1 and bool(((outputs >= 0) & (outputs <= 1)).all()) and not bool((outputs == 0).all()):
            raise ModelError(
                "all outputs lie in [0, 1] as those of a sigmoid do; multi_label expects logits: take the sigmoid off "
                "the model and apply it to what the file answers"
            )
        check_like(tuple(outputs.shape), targets, self.name)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross entropy of each label, in nats."""
        present = ~targets.isnan()
        values = F.binary_cross_entropy_with_logits(outputs, targets.nan_to_num(), reduction="none")
        return mean_where(values, present)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return the mean over labels of ``KL(Bernoulli(reference) || Bernoulli(outputs))``, in nats."""
        p = reference.sigmoid()
        yes = F.logsigmoid(reference) - F.logsigmoid(outputs)
        no = F.logsigmoid(-reference) - F.logsigmoid(-outputs)
        return (p * yes + (1 - p) * no).mean()

    def score(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Return F1 of each example, ``2 |given and true| / (|given| + |true|)``; 1 where both are empty.

        Averaged over examples as in Sechidis et al. 2011 and ``sklearn.metrics.f1_score(average="samples")``.
        """
        present = ~targets.isnan()
        given, true = (self._given(outputs) & present), (targets == 1)
        both = (given & true).sum(1).double()
        total = given.sum(1) + true.sum(1)
        f1 = torch.where(total > 0, 2 * both / total.clamp_min(1), 1.0)
        return np.asarray(torch.where(present.any(1), f1, torch.nan).cpu())

    def agree(self, outputs: Tensor, reference: Tensor) -> Scores:
        """Return the share of labels on which both decide alike."""
        same = self._given(outputs) == self._given(reference)
        return per_example(same, torch.ones_like(same))

    def target(self, outputs: Tensor) -> Tensor:
        """Return the labels given, ``(N, L)`` float32."""
        return self._given(outputs.detach()).float()

    def _given(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid() >= self.threshold
