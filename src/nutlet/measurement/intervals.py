"""Top-1 accuracy and agreement, each with a 95 % interval: a share of finitely many examples is an estimate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from nutlet.data.examples import Examples
from nutlet.errors import DataError
from nutlet.tasks.outputs import TWO_OUTPUTS, check_finite
from nutlet.tasks.predict import answered, predict

__all__ = ["Estimate", "agreement", "difference", "module_answers", "predict_module", "top1", "wilson"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Estimate:
    """A number, or the difference of two, with its 95 % interval: the shape in which measured numbers are passed on.

    Args:
        value: in ``unit``.
        low: lower end of the interval; minus infinity where nothing is known of it.
        high: upper end; infinity where nothing is known of it.
        examples: how many are behind it; 0 where it was counted and not sampled.
        unit: ``share`` (0 to 1), or that of a metric.
        values: of each seed, where it is a mean over seeds.
    """

    value: float
    low: float
    high: float
    examples: int
    unit: str = "share"
    values: tuple[float, ...] = ()

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON; ends that are not known are null, a unit of its own and ``values`` stand there if given.

        >>> Estimate(0.5, 0.25, math.inf, 8).to_dict()
        {'value': 0.5, 'low': 0.25, 'high': None}
        """
        low, high = (end if math.isfinite(end) else None for end in (self.low, self.high))
        unit = {} if self.unit == "share" else {"unit": self.unit}
        values = {"values": list(self.values)} if self.values else {}
        return {"value": self.value, "low": low, "high": high, **unit, **values}


def wilson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927).

    Unlike the textbook interval it stays within [0, 1] and does not shrink to nothing at 0 % or 100 %.

    Args:
        successes: how many of ``total``.
        total: number of trials, at least 1.
        confidence: share of such intervals that hold the true proportion.

    Raises:
        DataError: there are no trials, or more successes than trials.

    >>> low, high = wilson(81, 263)
    >>> f"{low:.4f} {high:.4f}"
    '0.2553 0.3662'
    """
    from scipy.stats import binomtest  # takes half a second to import

    if total < 1 or not 0 <= successes <= total:
        raise DataError(
            f"found {successes} successes in {total} trials; expected 0 <= successes <= trials, trials >= 1"
        )
    low, high = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def top1(outputs: Array, labels: Array) -> Estimate:
    """Return the share of rows whose largest output is at the label.

    Args:
        outputs: scores ``(N, classes)``.
        labels: class indices ``(N,)``.

    Raises:
        DataError: the numbers of rows and labels differ, or a label has no column.

    >>> top1(np.eye(4, dtype="float32"), np.array([0, 1, 2, 0])).value
    0.75
    """
    if len(outputs) != len(labels):
        raise DataError(f"found {len(outputs)} rows of outputs for {len(labels)} labels; expected as many of each")
    if outputs.shape[1] == 1:
        raise DataError(
            "the model gives one output for each example; expected one for each class: give it two before it is "
            f"exported\n{TWO_OUTPUTS.format(low='torch.zeros_like(z)')}"
        )
    if int(labels.max()) >= outputs.shape[1]:
        raise DataError(
            f"the largest label is {int(labels.max())}, but the model gives {outputs.shape[1]} classes; "
            f"expected labels from 0 to {outputs.shape[1] - 1}: use the data the model was trained on"
        )
    return _share(outputs.argmax(1) == labels)


def agreement(outputs: Array, others: Array) -> Estimate:
    """Return the share of rows on which two models, ``(N, classes)`` each, choose the same class.

    Raises:
        DataError: the shapes differ.
    """
    if outputs.shape != others.shape:
        raise DataError(
            f"the outputs have shapes {outputs.shape} and {others.shape}; expected the same examples and classes: "
            "compare models of one task on one data set"
        )
    return _share(outputs.argmax(1) == others.argmax(1))


def difference(right: Array, others_right: Array) -> Estimate:
    """Return how much smaller the first share is than the second, both counted on the same examples.

    The interval is the paired one of Newcombe (1998, method 10): two models mostly fail on the same examples,
    which the intervals of the two shares taken apart would not know.

    Args:
        right: for each example, whether the first model is right, ``(N,)`` bool.
        others_right: the same for the second model.
    """
    n = len(right)
    both = int((right & others_right).sum())
    only_second, only_first = int(others_right.sum()) - both, int(right.sum()) - both
    neither = n - both - only_first - only_second
    p, q = (both + only_second) / n, (both + only_first) / n
    (p_low, p_high), (q_low, q_high) = wilson(both + only_second, n), wilson(both + only_first, n)
    margins = (both + only_second) * (only_first + neither) * (both + only_first) * (only_second + neither)
    cross: float = both * neither - only_first * only_second
    if cross > 0:
        cross = max(cross - n / 2, 0)  # the continuity correction of method 10
    phi = cross / math.sqrt(margins) if margins else 0.0
    down, up = (p - p_low, q_high - q), (p_high - p, q - q_low)

    def joint(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    return Estimate(p - q, p - q - joint(*down), p - q + joint(*up), n)


def module_answers(
    model: nn.Module, examples: Examples, *, batch: int = 64
) -> Iterator[tuple[npt.NDArray[np.float32], Tensor]]:
    """Yield finite outputs ``(B, ...)`` of a module in evaluation mode and targets, batch by batch.

    Raises:
        ModelError: the outputs are not one finite tensor with a row for each example.
    """
    done = 0
    for outputs, targets in answered(model, examples, batch):
        values: npt.NDArray[np.float32] = outputs.numpy()
        check_finite("the module", values, first=done, total=len(examples))
        yield values, targets
        done += len(values)


def predict_module(model: nn.Module, examples: Examples, *, batch: int = 64) -> npt.NDArray[np.float32]:
    """Return the outputs ``(N, classes)`` of a module in evaluation mode; its own mode is put back after.

    Raises:
        ModelError: the outputs are not one finite tensor ``(N, classes)``.
    """
    outputs: npt.NDArray[np.float32] = predict(model, examples, batch=batch).numpy()
    check_finite("the module", outputs)
    return outputs


def _share(hits: Array) -> Estimate:
    count, total = int(hits.sum()), len(hits)
    return Estimate(count / max(total, 1), *wilson(count, total), total)
