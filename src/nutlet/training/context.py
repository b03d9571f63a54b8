"""What a method is given at run time: data, a teacher, a seed, a place for checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from nutlet.data.examples import Data, Examples
from nutlet.graph.kernels import KERNELS, KernelProfile
from nutlet.progress import Progress
from nutlet.tasks.outputs import OutputKind, class_loss

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

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes)``; of probabilities their logarithms, finite for a class that was ruled out."""
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
    def example(self) -> Tensor:
        """Two calibration inputs, the example every walk and export uses."""
        return self.data.calibration.batch(slice(0, 2))[0]

    def calibration(self, title: str, size: int = 500) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the batches ``(inputs, labels)`` of a pass over the calibration examples, with a bar while it runs.

        Args:
            title: what the pass is for, beside the bar.
            size: most examples in a batch.
        """
        return _Pass(self.data.calibration, size, self.progress, title)

    def loss(self, x: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross entropy of the model's outputs ``(B, classes)`` and labels ``(B,)``, in nats."""
        return class_loss(outputs, y, self.outputs)


@dataclass(frozen=True, eq=False)
class _Pass:
    """A pass over examples, anew for each loop; no generator, which would keep its bar after a loop that raised."""

    examples: Examples
    size: int
    progress: Progress
    title: str

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with self.progress.task(self.title, total=len(self.examples)) as task:
            for x, y in self.examples.batches(self.size):
                yield x, y
                task.advance(len(x))
