"""What each step of a chain lost, and how much of that later training won back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nutlet.compression.history import Step
from nutlet.measurement.results import Metric
from nutlet.methods import method_from_dict
from nutlet.methods.base import Method

__all__ = ["StepAccuracy", "accounts", "recovery", "trains"]


@dataclass(frozen=True)
class StepAccuracy:
    """What the history says of one step.

    Args:
        name: name of the method, or ``original``.
        accuracy: top-1 on the validation examples, 0 to 1.
        lost: how much less that is than before the step, likewise; 0 where it is not less.
        won_back: how much of it later steps that train won back.
    """

    name: str
    accuracy: float
    lost: float = 0.0
    won_back: float = 0.0

    @property
    def left(self) -> float:
        """What of its loss nothing won back."""
        return self.lost - self.won_back


def trains(method: Method) -> bool:
    """Whether a method changes values by training."""
    return type(method).train is not Method.train


def accounts(steps: Sequence[Step]) -> tuple[StepAccuracy, ...]:
    """Return what each step lost and what of it was won back.

    The history has one accuracy for each step. What a training gained goes to the nearest loss before it, what is more
    than that to the one before, and so on; what is more than all losses together is nobody's.
    """
    lost = [0.0] * len(steps)
    won = [0.0] * len(steps)
    for k in range(1, len(steps)):
        gained = steps[k].accuracy - steps[k - 1].accuracy
        lost[k] = max(-gained, 0.0)
        if gained > 0 and trains(method_from_dict(steps[k].method)):
            for earlier in reversed(range(k)):
                part = min(gained, lost[earlier] - won[earlier])
                won[earlier] += part
                gained -= part
    told = zip(steps, lost, won, strict=True)
    return tuple(StepAccuracy(step.name, step.accuracy, loss, back) for step, loss, back in told)


def recovery(steps: Sequence[StepAccuracy], metric: Metric) -> Iterator[str]:
    """Yield one sentence per step that lost something; nothing where no training won any of it back."""
    if not any(step.won_back for step in steps):
        return
    for number, step in enumerate(steps):
        if step.lost:
            back = metric.amount(step.won_back) if step.won_back else "nothing"
            yield f"Step {number}, {step.name}, lost {metric.amount(step.lost)}; later training won back {back} of it."
