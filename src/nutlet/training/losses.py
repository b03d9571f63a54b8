"""Loss terms that follow the outputs of the teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.errors import ConfigError
from nutlet.graph.fold import fold, foldable
from nutlet.graph.trace import trace
from nutlet.graph.training_path import runs_channels_last
from nutlet.tasks import CLASSIFICATION, Task
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import BlackBoxTeacher, Context
from nutlet.training.loop import LossTerm, Training, supervised

__all__ = [
    "Compare",
    "DistillationTraining",
    "decoupled",
    "divergence",
    "has_logits",
    "mixed",
    "softened",
    "softly",
    "teaching",
]

Compare = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(student's outputs, teacher's outputs, labels) -> scalar``, the mean over the batch."""


@dataclass(frozen=True, kw_only=True)
class DistillationTraining(Training):
    """Training on the softened outputs of the original, mixed with the labels, see :func:`softened`.

    Args:
        temperature: T, softens both distributions; only where they are compared as such.
        kd_weight: share of the teacher's term, 0 to 1; with 0 the labels alone are learnt.

    Raises:
        ConfigError: a temperature that is not positive, or ``kd_weight`` outside [0, 1].
    """

    temperature: float = 4.0
    kd_weight: float = 0.9

    def check(self, owner: str) -> None:
        """Raise ConfigError, in the name of the method ``owner``, for a value out of range."""
        super().check(owner)
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"{owner}.temperature is {self.temperature}; expected a positive number")
        if not 0 <= self.kd_weight <= 1:
            raise ConfigError(f"{owner}.kd_weight is {self.kd_weight}; expected a share from 0 to 1")
        if self.kd_weight == 0 and self.temperature != DistillationTraining.temperature:
            raise ConfigError(f"{owner}.temperature is for the teacher's outputs; found it with kd_weight=0")

    def check_task(self, task: Task) -> None:
        """Raise ConfigError for a temperature where outputs are no logits."""
        if not has_logits(task) and self.temperature != DistillationTraining.temperature:
            raise ConfigError(
                f"{type(self).__name__}.temperature softens logits, and {task.name} has none; leave it out: "
                "outputs are compared as they are"
            )


def softened(context: Context, temperature: float, kd_weight: float) -> LossTerm:
    """Return ``kd_weight T^2 KL(softmax(t / T) || softmax(s / T)) + (1 - kd_weight) CE(s, y)`` (Hinton et al. 2015,
    arXiv:1503.02531), with the teacher of ``context``, and its task where that is another; with ``kd_weight`` 0 the
    teacher is not asked.

    Raises:
        ConfigError: the teacher only answers, and augmentation would ask it about ever new inputs.
    """  # noqa: D205
    if kd_weight == 0:
        return supervised(context.task)
    if isinstance(context.teacher, BlackBoxTeacher) and context.data.augment is not None:
        raise ConfigError(
            "the teacher only answers, and each augmented view of an example would be one more query; expected data "
            "without `augment`, or Distill, which asks about each training example once"
        )
    return mixed(context.task, teaching(context), kd_weight, lambda s, t, _: softly(context.task, s, t, temperature))


def teaching(context: Context, *, folded: bool = True) -> nn.Module:
    """Return a teacher to call while training: never one that changes.

    Args:
        context: whose teacher.
        folded: whether batch norms may be folded away: the same answers with fewer passes over memory (the teacher's
            forward is a third of the training time), but not the same hidden features.
    """
    if isinstance(context.teacher, BlackBoxTeacher):
        return context.teacher
    teacher = copy.deepcopy(context.teacher).eval().requires_grad_(False)
    if folded:
        fold(teacher, foldable(teacher, trace(teacher, context.example)))
    layout = torch.channels_last if runs_channels_last(teacher, context.example) else torch.contiguous_format
    teacher.to(memory_format=layout)  # type: ignore[call-overload]
    teacher.register_forward_pre_hook(_InLayout(layout), prepend=True)  # while the inputs are one argument
    return teacher


@dataclass(frozen=True, eq=False)
class _InLayout:
    """Forward pre-hook that gives a teacher its inputs in its own memory format, whatever the student takes."""

    layout: torch.memory_format

    def __call__(self, module: nn.Module, args: tuple[Inputs, ...]) -> tuple[Inputs, ...]:
        return (args[0].contiguous(memory_format=self.layout), *args[1:])


def mixed(task: Task, teacher: nn.Module, kd_weight: float, compare: Compare) -> LossTerm:
    """Return ``kd_weight compare(s, t, y) + (1 - kd_weight) L(s, y)``, L the loss of the task; with ``kd_weight`` 1 no
    labels are needed.
    """  # noqa: D205
    hard = supervised(task)

    def loss(x: Inputs, outputs: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher.to(outputs.device)(x).float()
        value = kd_weight * compare(outputs, wanted, y)
        return value if kd_weight == 1 else value + (1 - kd_weight) * hard(x, outputs, y)

    return loss


def softly(task: Task, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 D(s / T, t / T)`` with the divergence D of the task; ``D(s, t)`` where outputs are no logits."""
    if not has_logits(task):
        return task.divergence(student, teacher)
    return temperature**2 * task.divergence(student / temperature, teacher / temperature)


def has_logits(task: Task) -> bool:
    """Whether a temperature means something: the outputs are logits of distributions."""
    return "logits" in task.disclosures


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean of ``KL(softmax(teacher / T) || softmax(student / T))``, in nats.

    >>> p, q = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.7, 0.3]]).log()
    >>> round(float(divergence(q, p, 1.0)), 4)
    0.0257
    """
    return CLASSIFICATION.divergence(student / temperature, teacher / temperature)


def decoupled(student: Tensor, teacher: Tensor, y: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    """Return ``alpha TCKD + beta NCKD`` (Zhao et al. 2022, arXiv:2203.08679, equations 6 and 7), in nats.

    TCKD is the divergence of (right class, all others), NCKD that of the other classes among themselves. The plain
    divergence is ``TCKD + (1 - p) NCKD`` with the teacher's probability p of the right class: where it is sure, it
    says nothing of the others.

    Args:
        student: outputs ``(B, C)``.
        teacher: outputs ``(B, C)``.
        y: the right classes, ``(B,)``.
        temperature: T, divides both.
        alpha: weight of TCKD.
        beta: weight of NCKD.
    """
    right = F.one_hot(y, student.shape[1]).bool()
    (s, s_others), (t, t_others) = (_apart(outputs / temperature, right) for outputs in (student, teacher))
    return alpha * divergence(s, t, 1.0) + beta * divergence(s_others, t_others, 1.0)


def _apart(outputs: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits ``(B, 2)`` of the right class and all others together, and those ``(B, C - 1)`` of the others."""
    others = outputs[~right].view(len(outputs), -1)
    return torch.stack([outputs[right], others.logsumexp(1)], 1), others
