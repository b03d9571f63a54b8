"""How long the steps of a chain take, from a few timed passes and training steps: ranges, not promises."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nutlet.compression.size import size_of
from nutlet.compression.verify import plan_and_apply
from nutlet.data.examples import Data, Examples
from nutlet.methods.base import Method
from nutlet.tasks.outputs import OutputKind
from nutlet.tasks.predict import evaluate
from nutlet.training.context import Context
from nutlet.training.loop import Training

__all__ = ["Estimate", "Stopwatch"]

TIMED_STEPS = 4
"""Training steps that are timed."""
TIMED_EXAMPLES = 256
"""Examples that a pass is timed with, fewer where they take longer than :data:`PASS`."""
PASS = 2.0
"""Seconds that a timed pass may take."""
SLOW = 20.0
"""Seconds of one training step above which no more of them are timed."""
LOW, HIGH = 0.7, 1.6
"""What a range adds to the fastest and slowest timing, for other work disturbs."""
SMALLER = 0.4
"""What remains of the least time behind a step that made the model smaller; how much smaller, nobody knows yet."""


@dataclass(frozen=True)
class Estimate:
    """How long one step takes.

    Args:
        step: number and name of the step.
        low: seconds, the least to expect.
        high: seconds, the most.

    >>> print(Estimate("2 Distill", 70.0, 200.0))
    2 Distill: 1.2 to 3.3 min
    """

    step: str
    low: float
    high: float

    def __str__(self) -> str:
        unit, name = next((u, n) for u, n in ((3600.0, "h"), (60.0, "min"), (1.0, "s")) if self.high >= u or u == 1)
        return f"{self.step}: {self.low / unit:.1f} to {self.high / unit:.1f} {name}"


class Stopwatch:
    """Times one model on one set of data, each thing once.

    Args:
        model: on the device it is to run on; it is not changed.
        data: passes are timed on calibration examples, training on training examples.
        outputs: what the model's outputs hold.
    """

    def __init__(self, model: nn.Module, data: Data, outputs: OutputKind = "logits") -> None:
        self.model = model
        self.data = data
        self.outputs = outputs
        self.example = data.calibration.batch(slice(0, 2))[0]
        few = data.calibration.subset(slice(0, 8))
        evaluate(model, few)  # the first run of a model prepares kernels
        fitting = int(PASS * len(few) / max(_seconds(lambda: evaluate(model, few)), 1e-6))
        some = data.calibration.subset(slice(0, min(max(fitting, len(few)), TIMED_EXAMPLES)))
        timings = [_seconds(lambda: evaluate(model, some)) / len(some) for _ in range(2)]
        self.per_example = min(timings), max(timings)
        self.counting = _seconds(lambda: size_of(model, self.example))

    def passing(self, examples: Examples, passes: float = 1) -> tuple[float, float]:
        """Return the least and the most seconds that passes over ``examples`` take."""
        low, high = self.per_example
        return low * passes * len(examples), high * passes * len(examples)

    def estimate(self, name: str, step: Method, *, smaller: bool = False) -> Estimate:
        """Return how long ``step`` takes, with what is measured after it.

        Args:
            name: how it is called.
            step: the method.
            smaller: whether it will run on a smaller model than the timed one.

        Raises:
            NutletError: the step cannot be run on this model.
        """
        least, most = step.calibration_passes(self.model, self.example)
        low, high = self.counting, self.counting
        parts = [self.passing(self.data.validation), (self.passing(self.data.calibration, least)[0], 0.0)]
        parts.append((0.0, self.passing(self.data.calibration, most)[1]))
        if isinstance(step, Training):
            parts.append(self._training(step))
        low, high = low + sum(part[0] for part in parts), high + sum(part[1] for part in parts)
        return Estimate(name, LOW * (SMALLER if smaller else 1.0) * low, HIGH * high)

    def _training(self, step: Any) -> tuple[float, float]:
        """Return the seconds of all epochs, from a few timed steps of the method's own training."""
        train = self.data.train
        batch = min(step.batch_size, len(train))
        steps, timed = step.epochs * max(1, len(train) // batch), min(TIMED_STEPS, max(1, len(train) // batch))
        plainly = {"patience": None, "rewind": 0}  # what one epoch leaves no room for
        short = dataclasses.replace(step, epochs=1, **{k: v for k, v in plainly.items() if getattr(step, k, v) != v})
        with torch.random.fork_rng(devices=[]):
            context = Context(data=self.data, teacher=self.model, outputs=self.outputs)
            ready, *_ = plan_and_apply(short, copy.deepcopy(self.model), context)

        def run(batches: int) -> float:
            few = train.subset(slice(0, batches * batch))
            data = dataclasses.replace(self.data, train=few, validation=few.subset(slice(0, 2)))
            context = Context(data=data, teacher=self.model, outputs=self.outputs)
            trial = copy.deepcopy(ready)
            with torch.random.fork_rng(devices=[]):
                return _seconds(lambda: short.train(trial, context))

        first = run(1)
        if first > SLOW or timed == 1:
            rates = first / 2, first
        else:
            alone, several = run(1), [run(timed), run(timed)]
            # What a training costs before its first step is in the upper end alone.
            rates = max(min(several) - alone, 0.0) / (timed - 1), max(several) / timed
        low, high = self.passing(self.data.validation, step.epochs)
        return rates[0] * steps + low, rates[1] * steps + high


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
