"""Fine-tuning on the labels of the training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from nutlet.graph.scope import training_only
from nutlet.methods.base import Method, register
from nutlet.training.context import Context
from nutlet.training.loop import Training, fit, supervised

__all__ = ["FineTune"]


@register
@dataclass(frozen=True, kw_only=True)
class FineTune(Training, Method):
    """Train what is left on its targets (hard labels) with the loss of the task; every constraint stays in force.

    >>> FineTune(epochs=2).to_dict()
    {'FineTune': {'epochs': 2}}
    """

    effect: ClassVar[str] = "training"
    use_when: ClassVar[str] = "recover accuracy after pruning or factorization, when labels are all there is"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(type(self).__name__)

    def train(self, model: nn.Module, context: Context) -> list[str]:
        """Run the training loop with the loss of the task."""
        with training_only(model, self):
            return fit(model, context, self, supervised(context.task), title="fine-tuning")
