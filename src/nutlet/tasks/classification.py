"""One class of several for each example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nutlet.errors import DataError, ModelError
from nutlet.tasks.base import Scores, register_task
from nutlet.tasks.outputs import TWO_OUTPUTS, class_loss
from nutlet.tasks.targets import check_classes, check_like, check_ranks

__all__ = ["Classification"]


@register_task
@dataclass(frozen=True)
class Classification:
    """Outputs ``(N, C)``, one score for each class; targets class indices ``(N,)``, -1 for none.

    Args:
        output: which output holds the scores, where the model gives several.
    """

    name: ClassVar[str] = "classification"
    metric: ClassVar[str] = "top-1 accuracy"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    zero_one: ClassVar[bool] = True
    chance: ClassVar[float | None] = None
    class_dim: ClassVar[int | None] = 1
    disclosures: ClassVar[tuple[str, ...]] = ("logits", "probabilities", "top-k", "rounded", "labels")

    output: str | int | None = None

    def as_targets(self, values: Tensor) -> Tensor:
        """Return labels as class indices ``(N,)`` int64, whatever integers (or booleans) they were.

        Raises:
            DataError: they have another shape, or are no integers.
        """
        labels = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
            raise DataError(
                f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; expected one class index "
                "per example, shape (N,), integers (whole numbers as floats: y.astype(int); one-hot labels: take "
                "argmax over the last axis; other targets: choose their task, as in task='regression')"
            )
        if labels.dtype == torch.uint64 and bool((labels.long() < 0).any()):
            raise DataError("found a label above 2**63; expected class indices from 0 up")
        return labels.long()

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Check outputs ``(N, C)``, C >= 2, and labels ``(N,)`` below C.

        Raises:
            ModelError: another shape.
            DataError: labels that do not fit.
        """
        check_ranks(outputs, self.name, ndim=2, expected="one score for each class, (N, classes)")
        if outputs.shape[1] == 1:
            raise ModelError(
                "the model gives one output for each example; expected one for each class: give it two before it is "
                f"exported\n{TWO_OUTPUTS.format(low='torch.zeros_like(z)')}"
            )
        check_like((len(outputs),), targets, self.name)
        check_classes(targets, outputs.shape[1])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of labels under logits, in nats."""
        return class_loss(outputs, targets)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return the mean of ``KL(softmax(reference) || softmax(outputs))``, in nats."""
        return F.kl_div(F.log_softmax(outputs, 1), F.log_softmax(reference, 1), reduction="batchmean", log_target=True)

    def score(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Return 1 where the largest output is at the label; an output with NaN in it is a wrong answer."""
        right = (outputs.argmax(1) == targets) & ~outputs.isnan().any(1)
        return np.asarray(right.double().cpu())

    def agree(self, outputs: Tensor, reference: Tensor) -> Scores:
        """Return 1 where both choose the same class."""
        return np.asarray((outputs.argmax(1) == reference.argmax(1)).double().cpu())

    def target(self, outputs: Tensor) -> Tensor:
        """Return the classes chosen, ``(N,)``."""
        return outputs.detach().argmax(1)
