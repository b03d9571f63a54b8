"""Whether weights and activations are quantized as their grid promises, found without the code that quantizes.

A weight: the values in force are computed a second time from scale and zero point, and the scale is compared with the
one that the declared range asks for, or its error with the least of a search. An activation: on real inputs, rounding
may move a value inside the range by half a step and no more, and the range has to fit the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from nutlet.constraints import (
    Binarizer,
    Codebook,
    HalfFloat,
    Quantizer,
    TrainedTernarizer,
    WeightQuantizer,
    formats,
)
from nutlet.constraints.stack import constraints, dense_weight, keep_mask, raw_weight
from nutlet.graph.activation_quantizers import ActivationQuantizer
from nutlet.graph.comparison import run
from nutlet.graph.trace import InstrumentedModel, Record
from nutlet.tasks.inputs import Inputs

__all__ = ["activation_problems", "carried_exactly", "carried_problem", "weight_problem"]

HALF = 0.51
"""Of a step: how far rounding to the nearest moves a value, with what single precision adds."""
WIDEST = 2.02
"""How much wider than its weights a range may be: a portable scale, and a power of two, take up to one bit."""
MORE = 1.1
"""How many times the least squared error that other scales would make those of a layer may have."""
SCARCE = 1.7
"""The same of a single scale, which few weights may share."""
SHARED = 1.7
"""The same of the values of a codebook: a zero that is held takes weights from the values beside it."""
CHOSEN = 8.0
"""How many times the squared error of the nearest codes chosen ones may have: they serve the outputs."""
WASTED = 64.0
"""How many times the least error on the inputs at hand a range of activations may have: three bits, for outliers that
other inputs have."""
SHARES = 64


def weight_problem(layer: nn.Module, chosen_for: Tensor | None = None) -> str:
    """Return what is wrong with quantizers that were just fitted to the weight of a layer; nothing if they are right.

    Args:
        layer: under any constraints; trained scales are no longer what their range says.
        chosen_for: the weight that its codes were chosen for, where they are not the nearest ones.
    """
    weight = dense_weight(layer)
    if chosen_for is not None:
        return carried_exactly(layer) or _choice_problem(layer, weight, chosen_for.masked_fill(~keep_mask(layer), 0.0))
    for constraint in constraints(layer):
        with torch.no_grad():
            values = constraint(weight)
        if not isinstance(constraint, Quantizer):
            continue
        if not bool(torch.isfinite(values).all()):
            return "its quantized weights are not finite"
        if problem := _check(constraint, weight, values):
            return problem
        weight = values
    return ""


def carried_problem(layer: nn.Module) -> str:
    """Return what is wrong with constraints that were carried to what is left of a weight that they held already.

    A mask removes nothing more, and quantizers leave the weight where it is, or were fitted to what is left of it.
    """
    lost = int((raw_weight(layer).detach()[~keep_mask(layer)] != 0).sum())
    if lost:
        return f"its mask removes {lost:,} weights that were left"
    return carried_exactly(layer) and weight_problem(layer)


def carried_exactly(layer: nn.Module) -> str:
    """Return what is wrong with quantizers that were carried to a weight already on their values.

    Args:
        layer: whose dense weight holds quantized values, as :func:`nutlet.formats.packed.pack.sync_dense` leaves it.
    """
    weight = dense_weight(layer)
    values = weight
    with torch.no_grad():
        for constraint in constraints(layer):
            values = constraint(values)
    worst = float((values - weight).abs().max()) if weight.numel() else 0.0
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    return f"its quantizer moves weights by {worst / largest:.2g} of the largest" if worst > 1e-5 * largest else ""


def _choice_problem(layer: nn.Module, weight: Tensor, wanted: Tensor) -> str:
    """The scale has to fit the weight that codes were chosen for, and no choice is much worse than the nearest."""
    (quantizer,) = (few for few in formats(layer) if isinstance(few, WeightQuantizer))
    nearest = _nearest(quantizer, wanted)
    if problem := _scale_problem(quantizer, wanted, nearest):
        return problem
    chosen, least = (weight - wanted).square().sum(), (nearest - wanted).square().sum()
    if chosen <= CHOSEN * least + 1e-9 * wanted.square().sum():
        return ""
    return f"its codes have {float(chosen / least.clamp_min(1e-30)):.3g} times the squared error of the nearest ones"


def _check(constraint: Quantizer, weight: Tensor, values: Tensor) -> str:
    if isinstance(constraint, WeightQuantizer):
        return _off_grid(constraint, weight, values) or _scale_problem(constraint, weight, values)
    if isinstance(constraint, HalfFloat):
        digits = 2.0 ** (-11 if constraint.dtype == torch.float16 else -8)
        least = torch.finfo(constraint.dtype).tiny
        limit = torch.finfo(constraint.dtype).max
        off = (values - weight.clamp(-limit, limit)).abs() > 1.01 * digits * weight.abs().clamp_min(least)
        return "a weight of 16 bits is not the nearest" if bool(off.any()) else ""
    if isinstance(constraint, (Codebook, TrainedTernarizer)):
        cells = torch.unique(values, return_inverse=True)[1]
    elif isinstance(constraint, Binarizer) and constraint.granularity != "none":
        rows = torch.arange(weight.shape[constraint.axis]) if constraint.granularity == "channel" else torch.zeros(1)
        shape = [-1 if axis == constraint.axis else 1 for axis in range(weight.ndim)]
        cells = rows.long().to(weight.device).view(shape).expand_as(weight)
    else:
        return ""
    return _not_the_mean(cells, weight, values, SHARED if isinstance(constraint, Codebook) else MORE)


def _not_the_mean(cells: Tensor, weight: Tensor, values: Tensor, times: float) -> str:
    """A value shared by many weights is their mean, signs aside, or another would have a smaller squared error."""
    counted = (weight != 0) & (values != 0)
    cells, weight, values = cells[counted], weight[counted].double(), values[counted].double()
    if not len(cells):
        return ""
    towards = weight * values.sign()
    count = int(cells.max()) + 1
    sums, sizes = torch.zeros(2, count, dtype=torch.float64, device=weight.device)
    means = sums.index_add(0, cells, towards) / sizes.index_add(0, cells, torch.ones_like(towards)).clamp_min(1)
    found, least = (weight - values).square().sum(), (towards - means[cells]).square().sum()
    if found <= times * least + 1e-8 * weight.square().sum():
        return ""
    return f"its shared values have {float(found / least.clamp_min(1e-30)):.3g} times the least squared error"


def _spread(quantizer: WeightQuantizer, numbers: Tensor, weight: Tensor) -> Tensor:
    """Return the number of each weight's scale, by its place among the rows that share one."""
    moved = weight.movedim(quantizer.axis, 0)
    each = torch.arange(weight.numel(), device=weight.device).view(moved.shape)
    if quantizer.grid.granularity == "tensor":
        owner = torch.zeros_like(each)
    else:
        width = moved[0].numel()
        channel, place = each // width, each % width
        size = quantizer.grid.group_size if quantizer.grid.granularity == "group" else width
        owner = channel * -(-width // size) + place // size
    return numbers.double()[owner].movedim(0, quantizer.axis)


def _off_grid(quantizer: WeightQuantizer, weight: Tensor, values: Tensor) -> str:
    """The values computed a second time, from scale and zero point; a tie may be broken either way."""
    step, expected = _spread(quantizer, quantizer.step.detach(), weight), _nearest(quantizer, weight)
    ratio = weight.double() / step
    tie = ((ratio - ratio.floor()) - 0.5).abs() < 1e-3
    off = ((values - expected).abs() > 1e-3 * step) & ~tie
    if not bool(off.any()):
        return ""
    return f"{int(off.sum()):,} of its {weight.numel():,} weights are not the nearest value of their grid"


def _nearest(quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
    """Return the nearest value of each weight, float64."""
    step = _spread(quantizer, quantizer.step.detach(), weight)
    zero = _spread(quantizer, quantizer.zero_point, weight)
    low, high = quantizer.levels.start - zero, quantizer.levels.stop - 1 - zero
    return torch.maximum(torch.minimum((weight.double() / step).round(), high), low) * step


def _scale_problem(quantizer: WeightQuantizer, weight: Tensor, values: Tensor) -> str:
    grid = quantizer.grid
    owner = _spread(quantizer, torch.arange(len(quantizer.scale), device=weight.device), weight).long().flatten()
    flat, step = weight.double().flatten(), quantizer.step.detach().double()

    def reduced(numbers: Tensor, how: str) -> Tensor:
        return torch.zeros_like(step).scatter_reduce(0, owner, numbers, how, include_self=True)

    used = reduced(flat.abs(), "amax") > 0
    high, low = reduced(flat.clamp_min(0), "amax"), reduced(flat.clamp_max(0), "amin")
    limit = quantizer.levels.stop - 1
    span = torch.maximum(high, -low) / limit if grid.symmetric else (high - low) / (len(quantizer.levels) - 1)
    if grid.ranges == "mse":
        errors = reduced((values.double().flatten() - flat).square(), "sum")
        least = torch.full_like(errors, float("inf"))
        for share in torch.linspace(0.2, 1, SHARES).tolist():
            trial = _allowed(span * share, power_of_two=grid.power_of_two)
            zero = (
                torch.zeros_like(trial) if grid.symmetric else (quantizer.levels.start - (low * share / trial).round())
            )
            ratio = (flat / trial[owner]).round() + zero[owner]
            moved = (ratio.clamp(quantizer.levels.start, limit) - zero[owner]) * trial[owner] - flat
            least = torch.minimum(least, reduced(moved.square(), "sum"))
        slack = 1e-9 * reduced(flat.square(), "sum")
        # A portable scale is as wide as its neighbours need, whatever the error.
        wide = quantizer.reduce_range & (step >= span * (1 - 1e-3))
        wrong = used & ~wide & (errors > SCARCE * least + slack)
        if not bool(wrong.any()) and bool(errors[~wide].sum() > MORE * least[~wide].sum() + slack.sum()):
            wrong = used & ~wide & (errors > MORE * least + slack)
        what = "has more than the least error of its grid"
    else:
        if grid.ranges == "mean":
            sizes = reduced((flat != 0).double(), "sum").clamp_min(1)
            span = 2 * reduced(flat.abs(), "sum") / sizes / limit**0.5
        widest = WIDEST if quantizer.reduce_range or grid.power_of_two else 1.001
        wrong = used & ((step < 0.999 * span) | (step > widest * span))
        what = f"is not what {grid.ranges} asks for"
    if not bool(wrong.any()):
        return ""
    first = int(wrong.nonzero()[0])
    return (
        f"{int(wrong.sum()):,} of its {len(step):,} scales are wrong, the first the {first}th, which {what}: found "
        f"{float(step[first]):.4g}, where all its weights would take {float(span[first]):.4g}"
    )


def _allowed(scale: Tensor, *, power_of_two: bool) -> Tensor:
    scale = scale.clamp_min(1e-12)
    return torch.exp2(torch.ceil(torch.log2(scale))) if power_of_two else scale


class _Tap(nn.Module):
    """Lets values through, and notes what their quantizer would do to them."""

    def __init__(self, quantizer: ActivationQuantizer, op: str) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.op = op
        self.problem = ""

    def forward(self, x: Tensor) -> Tensor:
        self.problem = self.problem or _activation_problem(self.quantizer, x, self.op)
        return x


def activation_problems(
    body: nn.Module, record: Record, quantizers: Mapping[str, nn.Module], x: Inputs
) -> dict[str, str]:
    """Return what is wrong with activation quantizers, by site, in the order of execution.

    Args:
        body: without them.
        record: its walk.
        quantizers: by site, with the ranges that were just measured.
        x: some of the inputs that they were measured on.
    """
    taps = {
        name: _Tap(quantizer, record.sites[name].op)
        for name, quantizer in quantizers.items()
        if isinstance(quantizer, ActivationQuantizer)
    }
    watched = InstrumentedModel(body, record, taps)
    try:
        run(watched, x)
    finally:
        watched.unwrap()
    return {name: taps[name].problem for name in _ordered(record, taps) if taps[name].problem}


def _ordered(record: Record, names: Iterable[str]) -> list[str]:
    chosen = set(names)
    return [name for name in record.sites if name in chosen]


def _activation_problem(quantizer: ActivationQuantizer, x: Tensor, op: str) -> str:
    grid, step, zero = quantizer.grid, quantizer.step, quantizer.zero_point
    largest = 2**grid.bits - 1
    low, high = -zero * step, (largest - zero) * step
    moved = (quantizer.frozen()(x) - x).double()
    inside = (x >= low) & (x <= high)
    worst = float(moved[inside].abs().max()) if bool(inside.any()) else 0.0
    if worst > HALF * step + 1e-6 * max(-low, high):
        return f"a value inside its range {low:.4g} to {high:.4g} is moved by {worst / step:.3g} steps"
    bottom, top = float(x.min()), float(x.max())
    covers = grid.ranges == "minmax"
    if covers and (bottom < low - step or top > high + step):
        return f"its range is {low:.4g} to {high:.4g}, and values go from {bottom:.4g} to {top:.4g}"
    if op in ("relu", "relu6") and zero:
        return f"its zero point is {zero} although no value is below zero"
    found, least = float(moved.square().mean()), _least_error(x, grid.bits)
    if found > WASTED * least + 1e-12 * float(x.double().square().mean()):
        return f"its range {low:.4g} to {high:.4g} has {found / max(least, 1e-30):.3g} times the least squared error"
    return ""


def _least_error(x: Tensor, bits: int) -> float:
    """Return the least mean squared error of an unsigned grid of so many bits on ``x``, among shrunken ranges."""
    low, high = x.min().clamp_max(0.0), x.max().clamp_min(0.0)
    least = float("inf")
    for share in (1.0, 0.7, 0.5, 0.35, 0.25) if bits < 8 else (1.0,):
        step = ((high - low) * share / (2**bits - 1)).clamp_min(1e-12)
        zero = (-low * share / step).round()
        values = (((x / step).round() + zero).clamp(0, 2**bits - 1) - zero) * step
        least = min(least, float((values - x).double().square().mean()))
    return least
