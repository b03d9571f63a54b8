"""What a method is given at run time: data, a teacher, a seed, a place for checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nutlet.data.examples import Data, Examples
from nutlet.errors import ModelError
from nutlet.graph.kernels import KERNELS, KernelProfile
from nutlet.progress import Progress
from nutlet.tasks import Task
from nutlet.tasks.inputs import Inputs
from nutlet.tasks.outputs import OutputKind, to_logits

__all__ = ["BlackBoxTeacher", "Context"]


class Source(Protocol):
    """Gives answers ``(B, classes)`` to inputs ``(B, ...)``, and counts the inputs that somebody had to be asked."""

    sent: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return probabilities or logits, float32 on the CPU."""


class BlackBoxTeacher(nn.Module):
    """A teacher of which nothing is known but its answers (an endpoint, a file in its runtime).

    Args:
        source: gives the answers, each of which may cost something; what it was asked before costs nothing.
        logits: whether the answers are logits, not probabilities.
    """

    def __init__(self, source: Source, *, logits: bool = False) -> None:
        super().__init__()
        self.source = source
        self.logits = logits

    def forward(self, x: Inputs) -> Tensor:
        """Return logits ``(B, classes)``; of probabilities their logarithms, finite for a class that was ruled out.

        Raises:
            ModelError: the inputs are tokens, or several tensors, with which nobody can be asked yet.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise ModelError("a teacher that only answers is asked with one floating-point tensor; expected a module")
        answers = self.source(x.detach().float().cpu()).to(x.device)
        return answers if self.logits else answers.clamp_min(torch.finfo(torch.float32).tiny).log()


@dataclass(frozen=True, eq=False)
class Context:
    """All run-time objects a method may use; no globals, no hidden seed.

    Args:
        data: the splits; methods look at ``calibration`` and ``train``, never at ``test``.
        teacher: whom distillation follows, in evaluation mode, never changed: the original model unless another was
            given; an :class:`BlackBoxTeacher` where only its answers are known.
        seed: the only source of randomness.
        workdir: where long training keeps its checkpoints; ``None`` keeps none.
        progress: shows bars.
        outputs: what the model's outputs hold; the teacher gives logits always.
        kernels: those of the runtime that the result is for.
    """

    data: Data
    teacher: nn.Module
    seed: int = 0
    workdir: Path | None = None
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))
    outputs: OutputKind = "logits"
    kernels: KernelProfile = KERNELS

    @property
    def example(self) -> Inputs:
        """Two calibration inputs, the example every walk and export uses."""
        x: Inputs = self.data.calibration.batch(slice(0, 2))[0]
        return x

    @property
    def task(self) -> Task:
        """What the outputs mean."""
        return self.data.task

    def calibration(self, title: str, size: int = 500) -> Iterable[tuple[Any, Tensor]]:
        """Return the batches ``(inputs, targets)`` of a pass over the calibration examples, with a bar while it runs.

        Args:
            title: what the pass is for, beside the bar.
            size: most examples in a batch.
        """
        return _Pass(self.data.calibration, size, self.progress, title)

    def loss(self, x: Inputs, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the loss of the task for the model's outputs ``(B, ...)``: of classes cross entropy, in nats."""
        return self.task.loss(to_logits(outputs, self.outputs), y)

    def divergence(self, outputs: Tensor, reference: Tensor) -> float:
        """Return how far outputs ``(B, ...)`` of the model are from others of it: of classes the KL divergence."""
        both = (to_logits(values, self.outputs) for values in (outputs, reference))
        return float(self.task.divergence(*both))


@dataclass(frozen=True, eq=False)
class _Pass:
    """A pass over examples, anew for each loop; no generator, which would keep its bar after a loop that raised."""

    examples: Examples
    size: int
    progress: Progress
    title: str

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        with self.progress.task(self.title, total=len(self.examples)) as task:
            for x, y in self.examples.batches(self.size):
                yield x, y
                task.advance(len(x))
