"""What scores and settings tell about a model used wrongly; :mod:`nutlet.compression.sanity` tries what else fits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from nutlet.data.examples import Examples
from nutlet.errors import ConfigError
from nutlet.findings import Finding
from nutlet.measurement.intervals import Estimate
from nutlet.measurement.results import Metric
from nutlet.tasks.base import Scores

__all__ = ["above_test", "check_expected", "far_from_expected", "is_near_chance", "near_chance", "wrong_scale"]

_NEAR = 0.1
"""Share of the way from guessing to perfect below which a model is near chance."""
_FEWEST = 30
"""Examples below which nothing is said of chance."""
_ABOVE = 0.02
"""How far validation has to be above test, for certain, until it is told."""


def is_near_chance(recall: float, classes: int, examples: int) -> bool:
    """Whether a mean recall is less than a tenth of the way from guessing to perfect, or could be guessing.

    >>> [is_near_chance(*case, 1000) for case in ((0.85, 2), (0.54, 2), (0.18, 10), (0.3, 10))]
    [False, True, True, False]
    """
    guess = 1 / classes
    return classes > 1 and recall < guess + max(_NEAR * (1 - guess), 2 * math.sqrt(guess * (1 - guess) / examples))


def near_chance(scores: Scores, targets: Tensor, who: str = "The original") -> Finding | None:
    """Return a finding where a classifier knows next to nothing, or answers the majority class whatever it sees.

    The mean of the recalls of all classes is looked at, for of unequal classes accuracy alone would flatter who
    always says the largest.

    Args:
        scores: 1 where the answer was right, else 0, ``(N,)``.
        targets: class indices ``(N,)``, negative for none.
        who: answered.

    >>> near_chance(np.array([1.0] * 90 + [0.0] * 10), torch.tensor([0] * 90 + [1] * 10)).words
    'The original is right on 90.0% of the examples, no more than by always answering class 0.'
    """
    labels = targets.cpu().numpy()
    seen, right = labels[labels >= 0], scores[labels >= 0]
    if len(seen) < _FEWEST:
        return None
    counts = np.bincount(seen)
    present = counts > 0
    recall = float((np.bincount(seen, right)[present] / counts[present]).mean())
    if not is_near_chance(recall, int(present.sum()), len(seen)):
        return None
    largest, accuracy = int(counts.argmax()), float(right.mean())
    majority = accuracy > 1.5 / int(present.sum()) and accuracy > counts[largest] / len(seen) - 0.05
    what = f"no more than by always answering class {largest}" if majority else "near chance"
    return Finding(
        "chance",
        f"{who} is right on {accuracy:.1%} of the examples, {what}.",
        "Were its weights loaded (--weights), are mean and std those of its training (--mean, --std), and are the "
        "classes numbered in its order? Changes measured on it mean little.",
    )


def check_expected(expect: float | None) -> None:
    """Raise ConfigError where what the user expects is no finite number."""
    if expect is not None and (isinstance(expect, bool) or not math.isfinite(expect)):
        raise ConfigError(f"expect is {expect!r}; expected the metric of the original as a number, as 93.1 (per cent)")


def far_from_expected(
    found: Estimate, metric: Metric, expect: float | None, where: str, who: str = "The original"
) -> Finding | None:
    """Return a finding where what the user expects of the original lies outside of the interval of what was measured.

    Args:
        found: mean score of the original with its 95 % interval.
        metric: what the score is.
        expect: in the unit of the metric: per cent for shares. None where nothing is expected.
        where: the examples: ``validation``.
        who: was measured.

    >>> far_from_expected(Estimate(0.9, 0.88, 0.92, 500), Metric(), 93.1, "test").words
    'The original has 90.00 % [88.00, 92.00] top-1 accuracy on 500 test examples; 93.1 % was expected.'
    """
    if expect is None:
        return None
    score = expect / 100 if metric.unit == "%" else expect if metric.higher_is_better else -expect
    if found.low <= score <= found.high:
        return None
    measured = metric.interval(found.value, found.low, found.high)
    return Finding(
        "expected",
        f"{who} has {measured} {metric.metric} on {found.examples:,} {where} examples; "
        f"{f'{expect:g} {metric.unit}'.rstrip()} was expected.",
        "Check the weights, mean and std, the size and cropping of the inputs, and the order of the classes before "
        "anything else.",
    )


def above_test(validation: Estimate, test: Estimate) -> Finding | None:
    """Return a finding where the original is clearly better on validation than on test: it has seen the former.

    The interval is Newcombe's of two independent shares (1998, method 10 without pairing).

    >>> above_test(Estimate(0.99, 0.98, 0.995, 500), Estimate(0.8, 0.77, 0.83, 500)) is None
    False
    """
    gap = validation.value - test.value
    if gap - math.hypot(validation.value - validation.low, test.high - test.value) <= _ABOVE:
        return None
    return Finding(
        "seen",
        f"The original is right on {validation.value:.1%} of the validation examples and {test.value:.1%} of the test "
        "examples: it was probably trained on the former.",
        "Validation figures of the steps are too good, and losses look smaller in them; go by the test set, or "
        "hold out the examples that the original was not trained on.",
    )


def wrong_scale(examples: Examples) -> Iterator[Finding]:
    """Yield a finding where mean or std are on the scale of 0 to 255 and the inputs are not."""
    if not (examples.mean or examples.std):
        return
    x = examples.tensor
    if not (x.dtype == torch.uint8 or (x.ndim == 4 and float(x.min()) >= 0 and float(x.max()) <= 1)):
        return
    off = [
        f"{name} {', '.join(f'{value:g}' for value in values)}"
        for name, values in (("mean", examples.mean), ("std", examples.std))
        if max(values, default=0) > 1
    ]
    if off:
        yield Finding(
            "scale",
            f"The images are scaled to [0, 1] before {' and '.join(off)} {'is' if len(off) == 1 else 'are'} applied, "
            "which would fit 0 to 255.",
            "Divide mean and std by 255, as in --mean 0.485,0.456,0.406.",
        )
