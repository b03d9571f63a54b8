"""What a task is, and the registry that finds one by name.

A task says what the outputs of a model mean: how they are trained, and *one number per example* by which two models
are compared. All that is reported of a task are means of those numbers, so every interval can be paired.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nutlet.errors import ConfigError
from nutlet.registry import Registry

__all__ = ["REGISTRY", "Scores", "Task", "is_classifier", "metric_of", "metric_text", "register_task"]

Scores: TypeAlias = npt.NDArray[np.float64]
"""One number per example, ``(N,)``."""


class Task(Protocol):
    """What outputs mean; a frozen dataclass of options, so that equal tasks compare equal.

    ``outputs`` and ``reference`` are those of models, batch first, floating point; ``targets`` are those of
    the data, as :meth:`as_targets` made them. Where an example has no target, integers are negative and floats NaN.
    """

    @property
    def name(self) -> str:
        """How it is chosen: ``classification``."""

    @property
    def metric(self) -> str:
        """The mean of :meth:`score` in the words of the field: ``top-1 accuracy``."""

    @property
    def unit(self) -> str:
        """Unit of the metric: ``%`` (scores are shares, 0 to 1, and shown times 100), ``nats``, or empty."""

    @property
    def higher_is_better(self) -> bool:
        """Whether the metric is the mean score, or minus the mean score: errors and losses."""

    @property
    def zero_one(self) -> bool:
        """Whether every score is 0 or 1: its mean is a proportion, with Wilson and Newcombe intervals."""

    @property
    def chance(self) -> float | None:
        """Mean score of who knows nothing; None where it is not known without the data."""

    @property
    def class_dim(self) -> int | None:
        """Dimension of the outputs along which classes exclude each other, so that a softmax makes probabilities.

        None where there are none, or where each output is a probability by its own sigmoid.
        """

    @property
    def disclosures(self) -> tuple[str, ...]:
        """Kinds of :class:`~nutlet.Disclosure` that an oracle of this task may show, most telling first."""

    @property
    def output(self) -> str | int | None:
        """Name or position of the output it reads where a model gives several; None for the only one."""

    def as_targets(self, values: Tensor) -> Tensor:
        """Return targets as users have them in the shape and dtype of the task.

        Raises:
            DataError: they are of another task.
        """

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Check that outputs and targets of one batch are of this task, and of one another.

        Raises:
            ModelError: the outputs have a shape or range that the task does not know.
            DataError: the targets do not fit the outputs.
        """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss, a scalar: the mean over the batch. Examples without a target do not count."""

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return how far outputs are from those of a reference model, a scalar >= 0: the mean over the batch."""

    def score(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Return how well each example is answered, ``(N,)``; larger is better, whatever the metric."""

    def agree(self, outputs: Tensor, reference: Tensor) -> Scores:
        """Return how far two models answer alike on each example, ``(N,)`` in [0, 1]; 1 where they do."""

    def target(self, outputs: Tensor) -> Tensor:
        """Return the targets that the outputs stand for: pseudo-labels, detached."""


REGISTRY: Registry[type[Task]] = Registry("a task", "nutlet.tasks")
"""All that are registered; :func:`nutlet.tasks.known_tasks` has loaded ours."""

Kind = TypeVar("Kind", bound=type[Task])


def register_task(kind: Kind) -> Kind:
    """Class decorator: make a task known by its ``name`` to the data and the command line.

    Every option needs a default.

    Raises:
        ConfigError: another task has that name.
    """
    name = kind().name
    if any(other.__name__ != kind.__name__ and other().name == name for other in REGISTRY.kinds.values()):
        raise ConfigError(f"a task named {name!r} is registered already; expected a new name")
    REGISTRY.add(kind)
    return kind


def metric_of(task: Task, score: float) -> float:
    """Return the metric that a mean score stands for: errors are scored with a minus sign.

    >>> from nutlet.tasks.regression import Regression
    >>> metric_of(Regression(), -0.25)
    0.25
    """
    return score if task.higher_is_better else 0.0 - score


def is_classifier(task: Task) -> bool:
    """Whether outputs are ``(N, classes)``, of which one is right: what attacks on confidences take for granted."""
    return task.name == "classification"


def metric_text(task: Task, score: float, digits: int = 2) -> str:
    """Return the metric that a mean score stands for, with its unit.

    >>> from nutlet.tasks.classification import Classification
    >>> from nutlet.tasks.regression import Regression
    >>> metric_text(Classification(), 0.9012), metric_text(Regression(unit="hours"), -3.25)
    ('90.12%', '3.25 hours')
    """
    value = metric_of(task, score)
    return f"{value:.{digits}%}" if task.unit == "%" else f"{value:.{digits + 2}g} {task.unit}".rstrip()
