"""Whether the original is used as it was made: answers on real examples tell forgotten weights, mean, order of classes.

Nothing is guessed from settings alone where it can be tried: another normalisation is told where the model is clearly
more often right with it, another numbering of the classes where the answers fit it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nutlet.data.examples import Data, Examples
from nutlet.findings import Finding, distinct
from nutlet.graph.scope import Layer
from nutlet.measurement.results import Metric
from nutlet.measurement.sanity import check_expected, far_from_expected, near_chance, wrong_scale
from nutlet.measurement.scores import lost_score, mean_score
from nutlet.progress import Progress
from nutlet.tasks.base import Scores
from nutlet.tasks.inputs import NamedInputs
from nutlet.tasks.predict import predict, scores

__all__ = ["look", "warn"]

_LOOKED_AT = 256
"""Validation examples that the original answers."""
_SCREENED = 64
"""Of these for each other normalisation; all where it looks better."""
_BETTER = 0.02
"""How much better another normalisation has to be for certain, in scores of classes."""
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_ORDERED = 0.6
"""Share of answers that a numbering of the classes has to explain."""
_GAINED = 0.2
"""How many more than the given numbering."""


def look(model: nn.Module, data: Data, *, expect: float | None = None) -> tuple[Finding, ...]:
    """Return what is probably wrong with how ``model`` is used on ``data``, the likely cause first.

    Args:
        model: the original; not changed.
        data: its validation examples are answered, never its test set.
        expect: what the user knows the metric to be, in its unit (per cent for shares).

    Raises:
        ConfigError: ``expect`` is no finite number.

    >>> from nutlet.data.examples import split
    >>> labels = torch.arange(400) % 2
    >>> rows = torch.randn(400, 8) + labels[:, None]
    >>> [finding.about for finding in look(nn.Linear(8, 2), split(Examples.from_arrays(rows, labels)), expect=99.9)][-1]
    'expected'
    """
    check_expected(expect)
    found = [*data.findings, *wrong_scale(data.validation)]
    if data.validation.labelled:
        examples = data.validation.subset(slice(0, _LOOKED_AT))
        right = scores(model, examples)
        chance = near_chance(right, examples.y) if examples.task.name == "classification" else None
        causes = [*_normalisation(model, data, examples, right)]
        if chance is not None:
            found += _untrained(model)
            causes += _order(predict(model, examples), examples.y)
        # What explains more of the answers comes first.
        found += [cause for _, cause in sorted(causes, key=lambda cause: -cause[0])]
        found += [] if chance is None else [chance]
        if expect is not None:
            whole = mean_score(scores(model, data.validation), zero_one=data.task.zero_one)
            far = far_from_expected(whole, Metric.of(data.task), expect, "validation")
            found += [] if far is None else [far]
    return distinct(found)


def warn(findings: Iterable[Finding], progress: Progress) -> None:
    """Say each finding in the terminal."""
    for finding in findings:
        progress.say(f"WARNING: {finding}")


def _normalisation(model: nn.Module, data: Data, examples: Examples, right: Scores) -> Iterator[tuple[float, Finding]]:
    """Yield the normalisation with which the model is clearly more often right, and its share of right answers."""
    if not examples.task.zero_one or isinstance(examples.x, NamedInputs) or examples.x.ndim != 4:
        return
    if not (examples.x.dtype == torch.uint8 or examples.x.is_floating_point()):
        return
    few = examples.subset(slice(0, _SCREENED))
    best, gained = None, float(right[:_SCREENED].mean())
    for other in _others(data.train, examples):
        score = float(scores(model, _with(few, other)).mean())
        if score > gained:
            best, gained = other, score
    if best is None:
        return
    better = scores(model, _with(examples, best))
    if lost_score(right, better, zero_one=True).low <= _BETTER:
        return
    given = _words(examples.mean, examples.std) if examples.mean or examples.std else "no mean and std"
    pixels = "images scaled to [0, 1] and " if examples.x.dtype == torch.uint8 else "images and "
    yield (
        float(better.mean()),
        Finding(
            "normalisation",
            f"With {pixels}{given} the original is right on {right.mean():.1%} of {len(right)} validation examples, "
            f"with {_words(*best)} on {better.mean():.1%}.",
            "Give the mean and std that it was trained with (--mean, --std; mean= and std= in Python).",
        ),
    )


Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def _others(train: Examples, examples: Examples) -> list[Normalisation]:
    """Return other normalisations that are in use: none, that of the data, of ImageNet, to [-1, 1], of raw pixels."""
    x = train.subset(slice(0, 2000)).x
    if isinstance(x, NamedInputs):
        return []
    scaled = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    spread, middle = torch.std_mean(scaled.transpose(0, 1).flatten(1), 1)
    own = tuple(round(float(v), 3) for v in middle), tuple(max(round(float(v), 3), 1e-3) for v in spread)
    found: list[Normalisation] = [((), ()), own, ((0.5,), (0.5,))]
    if x.shape[1] == 3:
        found.append(_IMAGENET)
    found.append(((), (1 / 255,)) if float(scaled.max()) <= 1 else ((), (255.0,)))
    if max((*examples.mean, *examples.std), default=0) > 1:
        found.append((tuple(v / 255 for v in examples.mean), tuple(v / 255 for v in examples.std)))
    return [other for other in found if other != (examples.mean, examples.std)]


def _with(examples: Examples, normalisation: Normalisation) -> Examples:
    return dataclasses.replace(examples, mean=normalisation[0], std=normalisation[1])


def _words(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    parts = [
        f"{name} {', '.join(f'{v:.3g}' for v in values)}" for name, values in (("mean", mean), ("std", std)) if values
    ]
    return " and ".join(parts) or "no mean and std"


def _untrained(model: nn.Module) -> Iterator[Finding]:
    """Yield a finding where every layer holds what a new one starts with."""
    norms = [m for m in model.modules() if isinstance(m, (_BatchNorm, nn.LayerNorm, nn.GroupNorm))]
    layers = [m for m in model.modules() if isinstance(m, Layer)]
    if not (all(map(_new_norm, norms)) if norms else layers and all(map(_new_layer, layers))):
        return
    yield Finding(
        "weights",
        f"The original looks untrained: its {'norms' if norms else 'layers'} hold what new ones start with.",
        "Give its weights with --weights FILE, or load them in the factory (model.load_state_dict).",
    )


def _new_norm(norm: nn.Module) -> bool:
    """Whether a norm has the scale and shift, and the statistics, that it was made with."""
    starts = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    return all(
        bool((tensor == start).all())
        for name, start in starts.items()
        if isinstance(tensor := getattr(norm, name, None), Tensor)
    )


def _new_layer(layer: nn.Module) -> bool:
    """Whether the weights fill the interval ``±1 / sqrt(fan in)`` of a new layer of torch, and do not leave it."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        return False
    bound = 1 / math.sqrt(weight[0].numel())
    largest = float(weight.detach().abs().max())
    return largest <= bound * (1 + 1e-5) and (weight.numel() < 64 or largest > 0.9 * bound)


def _order(outputs: Tensor, labels: Tensor) -> Iterator[tuple[float, Finding]]:
    """Yield a finding where the answers fit the labels once classes are numbered otherwise, and the share that does."""
    from scipy.optimize import linear_sum_assignment  # takes half a second to import

    classes = outputs.shape[1]
    if len(labels) < 5 * classes:
        return
    answers = outputs.argmax(1)
    counts = torch.bincount(labels * classes + answers, minlength=classes * classes).view(classes, classes).numpy()
    rows, columns = linear_sum_assignment(-counts)
    moved = [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if row != column]
    explained = counts[rows, columns].sum() / len(labels)
    if explained < _ORDERED or explained < np.trace(counts) / len(labels) + _GAINED:
        return
    told = ", ".join(f"{column} where the label is {row}" for row, column in moved[:3])
    yield (
        float(explained),
        Finding(
            "labels",
            f"The answers fit other numbers of the classes: the original mostly answers {told}.",
            "Number the classes in the order of its training (folders of images are numbered by name).",
        ),
    )
