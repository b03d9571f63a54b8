"""Loss terms that follow the outputs of the original."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nutlet.errors import ConfigError
from nutlet.graph.fold import fold, foldable
from nutlet.graph.sites import walk
from nutlet.method import Context
from nutlet.train import LossTerm, Training, cross_entropy

__all__ = ["SoftTraining", "divergence", "softened"]


@dataclass(frozen=True, kw_only=True)
class SoftTraining(Training):
    """Training on the softened outputs of the original, mixed with the labels, see :func:`softened`.

    Args:
        temperature: T, softens both distributions.
        soft: share of the teacher's term, 0 to 1; with 0 the labels alone are learnt.

    Raises:
        ConfigError: a temperature that is not positive, or ``soft`` outside [0, 1].
    """

    temperature: float = 4.0
    soft: float = 0.9

    def check(self, owner: str) -> None:
        """Raise ConfigError, in the name of the method ``owner``, for a value out of range."""
        super().check(owner)
        if not self.temperature > 0:
            raise ConfigError(f"{owner}.temperature is {self.temperature}; expected a positive number")
        if not 0 <= self.soft <= 1:
            raise ConfigError(f"{owner}.soft is {self.soft}; expected a share from 0 to 1")


def softened(context: Context, temperature: float, soft: float) -> LossTerm:
    """Return ``soft T^2 KL(softmax(t / T) || softmax(s / T)) + (1 - soft) CE(s, y)`` (Hinton et al. 2015,
    arXiv:1503.02531), with the teacher of ``context``; with ``soft`` 0 the teacher is not asked.
    """  # noqa: D205
    if soft == 0:
        return cross_entropy
    teacher = copy.deepcopy(context.teacher).eval()
    # The same answers with fewer passes over memory; the teacher's forward is a third of the training time.
    fold(teacher, foldable(teacher, walk(teacher, context.example)))
    if context.example.ndim == 4:
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(x: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
        with torch.inference_mode():
            wanted = teacher.to(x.device)(x)
        kl = divergence(outputs, wanted.float().clone(), temperature)
        return soft * temperature**2 * kl + (1 - soft) * cross_entropy(x, outputs, y)

    return loss


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean of ``KL(softmax(teacher / T) || softmax(student / T))``, in nats.

    >>> p, q = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.7, 0.3]]).log()
    >>> round(float(divergence(q, p, 1.0)), 4)
    0.0257
    """
    return F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
