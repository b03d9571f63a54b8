"""One class for each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nutlet.errors import DataError, ModelError
from nutlet.tasks.base import Scores, register_task
from nutlet.tasks.targets import as_integers, check_classes, check_like, check_ranks, mean_where, per_example

__all__ = ["Segmentation"]


@register_task
@dataclass(frozen=True)
class Segmentation:
    """Outputs ``(N, C, H, W)``, logits of C classes; targets ``(N, H, W)`` class indices, negative where none counts.

    Args:
        output: which output holds the logits, where the model gives several.
    """

    name: ClassVar[str] = "segmentation"
    metric: ClassVar[str] = "mean IoU per image"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    zero_one: ClassVar[bool] = False
    chance: ClassVar[float | None] = None
    class_dim: ClassVar[int | None] = 1
    disclosures: ClassVar[tuple[str, ...]] = ("logits", "probabilities", "rounded", "labels")

    output: str | int | None = None

    def as_targets(self, values: Tensor) -> Tensor:
        """Return targets ``(N, H, W)`` int64; ``(N, 1, H, W)`` are taken as such.

        Raises:
            DataError: another number of dimensions, or no integers.
        """
        maps = values.squeeze(1) if values.ndim == 4 and values.shape[1] == 1 else values
        targets = as_integers(maps, self.name, "one class index for each pixel, (N, H, W)")
        if targets.ndim != 3:
            raise DataError(
                f"targets have shape {tuple(values.shape)}; segmentation expects one class index for each pixel, "
                "(N, H, W): one-hot maps become that by argmax over their classes"
            )
        return targets

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Check outputs ``(N, C, H, W)``, C >= 2, and targets ``(N, H, W)`` below C.

        Raises:
            ModelError: another shape.
            DataError: targets that do not fit.
        """
        check_ranks(outputs, self.name, ndim=4, expected="logits for each class and pixel, (N, classes, H, W)")
        if outputs.shape[1] == 1:
            raise ModelError(
                "the model gives one output for each pixel; segmentation expects one for each class: let it return "
                "torch.cat([torch.zeros_like(z), z], 1)"
            )
        check_like((len(outputs), *outputs.shape[2:]), targets, self.name)
        check_classes(targets, outputs.shape[1])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of the pixels that count, in nats."""
        present = targets >= 0
        return mean_where(F.cross_entropy(outputs, targets.clamp_min(0), reduction="none"), present)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return the mean over pixels of ``KL(softmax(reference) || softmax(outputs))``, in nats."""
        terms = F.kl_div(F.log_softmax(outputs, 1), F.log_softmax(reference, 1), reduction="none", log_target=True)
        return terms.sum(1).mean()

    def score(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Return the intersection over union of each image, its mean over the classes in truth or answer.

        Per image, not over all pixels of the set, so that images are independent and intervals hold (Csurka et al.
        2013); NaN for an image in which no pixel counts.
        """
        present = targets >= 0
        given = outputs.argmax(1)
        ious = []
        for label in range(outputs.shape[1]):
            a, b = (given == label) & present, targets == label
            union = (a | b).flatten(1).sum(1).double()
            ious.append((a & b).flatten(1).sum(1) / torch.where(union > 0, union, torch.nan))
        return np.asarray(torch.stack(ious).nanmean(0).cpu())

    def agree(self, outputs: Tensor, reference: Tensor) -> Scores:
        """Return the share of pixels with the same class in both."""
        same = outputs.argmax(1) == reference.argmax(1)
        return per_example(same, torch.ones_like(same))

    def target(self, outputs: Tensor) -> Tensor:
        """Return the class of each pixel, ``(N, H, W)``."""
        return outputs.detach().argmax(1)
