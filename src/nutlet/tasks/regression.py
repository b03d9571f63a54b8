"""Numbers for each example."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nutlet.errors import DataError
from nutlet.tasks.base import Scores, register_task
from nutlet.tasks.targets import as_numbers, check_like, check_ranks, mean_where, per_example

__all__ = ["Regression"]


@register_task
@dataclass(frozen=True)
class Regression:
    """Outputs ``(N, K)``, targets ``(N, K)`` float32, NaN for none; plain ``(N,)`` targets are one column.

    Args:
        scale: difference of two answers, in units of the targets, from which they do not agree at all: the standard
            deviation of the targets is a good one.
        unit: of the targets, to be shown.
        output: which output holds the numbers, where the model gives several.

    Raises:
        DataError: a scale that is not positive.
    """

    name: ClassVar[str] = "regression"
    metric: ClassVar[str] = "mean absolute error"
    higher_is_better: ClassVar[bool] = False
    zero_one: ClassVar[bool] = False
    chance: ClassVar[float | None] = None
    class_dim: ClassVar[int | None] = None
    disclosures: ClassVar[tuple[str, ...]] = ("values", "rounded")

    scale: float = 1.0
    unit: str = ""
    output: str | int | None = None

    def __post_init__(self) -> None:
        """Check the scale."""
        if not 0 < self.scale < math.inf:
            raise DataError(f"Regression.scale is {self.scale}; expected a positive number")

    def as_targets(self, values: Tensor) -> Tensor:
        """Return targets ``(N, K)`` float32.

        Raises:
            DataError: another number of dimensions, or infinity.
        """
        targets = as_numbers(values, self.name, "numbers (N,) or (N, K)", ndim=(1, 2))
        return targets.unsqueeze(1) if targets.ndim == 1 else targets

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Check outputs ``(N, K)`` and targets of the same shape.

        Raises:
            ModelError: another shape.
            DataError: targets of another shape.
        """
        check_ranks(outputs, self.name, ndim=2, expected="numbers (N, K)")
        check_like(tuple(outputs.shape), targets, self.name)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error over ``scale`` squared, so that learning rates do not depend on the unit."""
        present = ~targets.isnan()
        return mean_where(((outputs - targets.nan_to_num()) / self.scale).square(), present)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return the mean squared difference over ``scale`` squared."""
        return ((outputs - reference) / self.scale).square().mean()

    def score(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Return minus the absolute error of each example, its mean over the K numbers, in units of the targets."""
        return per_example(-(outputs - targets).abs(), ~targets.isnan())

    def agree(self, outputs: Tensor, reference: Tensor) -> Scores:
        """Return ``max(0, 1 - |difference| / scale)``, its mean over the K numbers."""
        close = (1 - (outputs - reference).abs() / self.scale).clamp_min(0)
        return per_example(close, torch.ones_like(close, dtype=torch.bool))

    def target(self, outputs: Tensor) -> Tensor:
        """Return the outputs."""
        return outputs.detach()
