"""A direction for each example: vectors that are compared by their cosine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from nutlet.tasks.base import Scores, register_task
from nutlet.tasks.targets import as_numbers, check_like, check_ranks, mean_where

__all__ = ["Embedding"]


@register_task
@dataclass(frozen=True)
class Embedding:
    """Outputs ``(N, D)``; targets ``(N, D)``, the vectors to land on, NaN for none.

    Targets are what the space is shared with: embeddings of the captions of images (CLIP, Radford et al. 2021), word
    vectors of their labels (DeViSE, Frome et al. 2013), or a larger model's embeddings. Lengths do not count.

    Args:
        output: which output holds the vectors, where the model gives several.
    """

    name: ClassVar[str] = "embedding"
    metric: ClassVar[str] = "cosine similarity"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    zero_one: ClassVar[bool] = False
    chance: ClassVar[float | None] = 0.0
    class_dim: ClassVar[int | None] = None
    disclosures: ClassVar[tuple[str, ...]] = ("values", "rounded")

    output: str | int | None = None

    def as_targets(self, values: Tensor) -> Tensor:
        """Return targets ``(N, D)`` float32.

        Raises:
            DataError: another number of dimensions, or infinity.
        """
        return as_numbers(values, self.name, "one vector for each example, (N, D)", ndim=(2,))

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Check outputs ``(N, D)`` and targets of the same shape.

        Raises:
            ModelError: another shape.
            DataError: targets of another shape.
        """
        check_ranks(outputs, self.name, ndim=2, expected="one vector for each example, (N, D)")
        check_like(tuple(outputs.shape), targets, self.name)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of 1 minus the cosine."""
        present = ~targets.isnan().any(1)
        return mean_where(1 - F.cosine_similarity(outputs, targets.nan_to_num()), present)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return the mean of 1 minus the cosine."""
        return (1 - F.cosine_similarity(outputs, reference)).mean()

    def score(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Return the cosine with the target of each example, -1 to 1."""
        return np.asarray(F.cosine_similarity(outputs.double(), targets.double()).cpu())

    def agree(self, outputs: Tensor, reference: Tensor) -> Scores:
        """Return the cosine of both answers; 0 where it is negative: opposite is no more alike than unrelated."""
        # Rounding must not put the cosine of a vector with itself above 1.
        return np.asarray(F.cosine_similarity(outputs.double(), reference.double()).clamp(0, 1).cpu())

    def target(self, outputs: Tensor) -> Tensor:
        """Return the vectors at length 1."""
        return F.normalize(outputs.detach(), dim=1)
