"""Whether two models answer alike on given inputs, within the rounding of their weights in single precision.

Both are run on plain weights in double precision, so that the only difference left is how values were rounded when
they were stored; how much a model amplifies that is taken from how far its own answers in single precision are off.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import constrained_layers, constrained_weight, dense_weight, remove_constraints
from nutlet.graph.trace import InstrumentedModel
from nutlet.tasks.inputs import Inputs, cast
from nutlet.tasks.predict import evaluating

__all__ = ["ROUNDING", "Answers", "answers", "difference", "plain", "run"]

ROUNDING = 1e-5
"""Relative difference that a few roundings of weights make, on models that do not amplify them."""
SINGLE = 1e-4
"""The same where a forward names float32 itself, so that it cannot be run in double precision."""
AMPLIFIED = 10.0
"""How many times the error of single precision still counts as rounding."""


@dataclass(frozen=True)
class Answers:
    """What a model answers to the inputs of a comparison.

    Args:
        single: in single precision.
        double: in double precision; None where the forward names float32 itself.
    """

    single: Tensor
    double: Tensor | None

    @property
    def best(self) -> Tensor:
        """The more precise ones."""
        return self.single.double() if self.double is None else self.double

    @property
    def finite(self) -> bool:
        """Whether there is neither NaN nor infinity among them."""
        return bool(torch.isfinite(self.best).all())

    @property
    def tolerance(self) -> float:
        """Largest relative difference that is still rounding."""
        if self.double is None:
            return SINGLE
        return max(ROUNDING, AMPLIFIED * difference(self.single.double(), self.double))


def plain(model: nn.Module, *, quantized: bool) -> nn.Module:
    """Return a copy without activation quantizers and constraints, in evaluation mode, whose weights are what was left.

    Args:
        model: not changed.
        quantized: whether weights are as their quantizers leave them, else as they were before; masked in both cases.
    """
    trial = copy.deepcopy(model)
    trial = (trial.unwrap() if isinstance(trial, InstrumentedModel) else trial).eval()
    for _, layer in list(constrained_layers(trial)):
        weight = (constrained_weight(layer) if quantized else dense_weight(layer)).clone()
        remove_constraints(layer, bake=True)
        with torch.no_grad():
            layer.get_parameter("weight").copy_(weight)
    return trial


def run(model: nn.Module, x: Inputs) -> Tensor:
    """Return the outputs for ``x``, in evaluation mode and without gradients."""
    with evaluating(model), torch.no_grad():
        outputs: Tensor = model(x.clone())  # a forward may write to its input
    return outputs


def answers(model: nn.Module, x: Inputs) -> Answers:
    """Return what ``model`` answers to ``x`` ``(B, ...)``; it is in double precision afterwards, of no further use."""
    single = run(model, x)
    model.double()
    try:
        return Answers(single, run(model, cast(x, torch.float64)))
    except (RuntimeError, TypeError):  # a constant or a conversion in the forward is in single precision
        return Answers(single, None)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest magnitude expected; infinite where one is no number.

    Where the model itself gave NaN or infinity nothing is expected.

    >>> difference(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]))
    0.25
    """
    if found.shape != expected.shape:
        return float("inf")
    known = torch.isfinite(expected)
    if not bool(known.any()):
        return 0.0
    found, expected = found[known], expected[known]
    largest = (found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float(torch.nan_to_num(largest, nan=float("inf")))
