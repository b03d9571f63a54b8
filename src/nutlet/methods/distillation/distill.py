"""Knowledge distillation from the original model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from nutlet.errors import ConfigError
from nutlet.graph.scope import training_only
from nutlet.method import Context, Method, register
from nutlet.methods.distillation.targets import softened
from nutlet.train import Training, fit

__all__ = ["Distill"]


@register
@dataclass(frozen=True, kw_only=True)
class Distill(Training, Method):
    """Train on the softened outputs of the original, mixed with the labels (Hinton et al. 2015, arXiv:1503.02531).

    ``loss = soft T^2 KL(softmax(t / T) || softmax(s / T)) + (1 - soft) CE(s, y)``.

    Args:
        temperature: T, softens both distributions.
        soft: share of the teacher's term, 0 to 1.

    Raises:
        ConfigError: a temperature that is not positive, or ``soft`` outside [0, 1].

    >>> Distill(epochs=2, temperature=2.0).to_dict()
    {'Distill': {'epochs': 2, 'temperature': 2.0}}
    """

    effect: ClassVar[str] = "training"
    when: ClassVar[str] = "recover accuracy after any other method; nearly always better than labels alone"

    temperature: float = 4.0
    soft: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(type(self).__name__)
        if self.temperature <= 0:
            raise ConfigError(f"Distill.temperature is {self.temperature}; expected a positive number")
        if not 0 <= self.soft <= 1:
            raise ConfigError(f"Distill.soft is {self.soft}; expected a share from 0 to 1")

    def train(self, model: nn.Module, context: Context) -> list[str]:
        """Run the training loop with the teacher's outputs as targets."""
        loss = softened(context, self.temperature, self.soft)
        with training_only(model, self):
            return fit(model, context, self, loss, title="distilling")
