"""Quantization of weights and activations to integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from torch import nn

from nutlet.constraints import QuantScheme
from nutlet.constraints.stack import constrained_weight
from nutlet.errors import ConfigError
from nutlet.graph.activation_quantizers import ActivationGrid
from nutlet.graph.kernels import KernelProfile
from nutlet.graph.observers import RangeKind
from nutlet.graph.scope import weighted_layers
from nutlet.methods.base import Plan, register
from nutlet.methods.quantization.formats import edge_layers
from nutlet.methods.quantization.integers import Bits, OnIntegers, grouped, integer_plan, usual_grid
from nutlet.methods.quantization.tolerance import keep_sensitive_in_float
from nutlet.options import Range
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["Quantize"]

TOLERANCE, WEIGHT_TOLERANCE = 0.1, 0.018
"""Relative L2 errors of the outputs that 8 bits may make, and 8-bit weights alone: 20 and 35 dB of signal to noise."""


@register
@dataclass(frozen=True, kw_only=True)
class Quantize(OnIntegers):
    """Store weights as integers of 2 to 8 bits, and compute with unsigned integer activations.

    Batch norms are folded (Jacob et al. 2018, arXiv:1712.05877). Ranges of activations come from the calibration
    examples. Fine-tuning afterwards is quantization-aware training; with ``learn`` it trains the scales as well.

    Args:
        bits: bits of a weight, 2 to 8; two are ternary. A saved file takes so many, an exported one a byte.
        granularity: what has one scale: an output ``channel``, the whole ``tensor``, or a ``group`` of weights of a
            channel (no integer kernel takes groups: activations stay in floating point there).
        group_size: weights of a group; it has to divide those of a channel, or the layer has one scale per channel.
        symmetric: codes around zero; otherwise with a zero point, which integer kernels do not take either.
        ranges: what a weight's scale covers: ``minmax`` all, ``mse`` what makes the squared error smallest, ``mean``
            what learning begins with; by default ``minmax`` at 8 bits, ``mean`` to be learned, ``mse`` otherwise.
        edge_bits: bits of the first and the last layer; by default those of the others.
        activations: quantize activations as well; without, the file is as small but computes in floating point.
        activation_bits: bits of an activation, 2 to 8, by default 8; the input has 8.
        activation_ranges: what an activation's scale covers: ``minmax``, the default; ``moving`` averages of it over
            batches;
            ``percentile`` all but one value in 10,000; ``mse`` and ``entropy`` (KL divergence) the best on calibration.
        learn: later training learns the scales of weights and activations (LSQ, Esser et al. 2020, arXiv:1902.08153).
        fold: fold batch norms at once; otherwise when a file with integer activations is made, and training goes on
            with them (without norms it may diverge at the usual learning rates). By default at once, but for scales to
            be learned.
        reduce_range: choose scales with which 16-bit intermediate sums cannot saturate, so that the file gives the same
            answers on x86 processors without VNNI; costs a little precision. By default where it matters: integer
            kernels with weights of 8 bits.
        tolerance: the largest relative L2 error of the outputs, ``|after - before| / |before|`` of this step on 16
            calibration examples; on 16 validation examples, some of whose values are beyond the ranges, twice as much.
            Where it would be larger, the layers and activations that make most of it stay in floating point, and the
            history names them. By default 0.1, or 0.018 without activations; only 8 bits are held to it, not fewer or
            what training will move.

    Raises:
        ConfigError: bits outside 2 to 8, a group size without groups or that divides no layer, a ``tolerance`` that is
            not positive, ``reduce_range`` where no integer kernel computes with 8-bit weights.

    >>> Quantize(activations=False).to_dict()
    {'Quantize': {'activations': False}}
    """

    effect: ClassVar[str] = "grid"
    use_when: ClassVar[str] = (
        "try it first: far smaller at once, no training; often faster (small layers only where the CPU has VNNI)"
    )

    bits: Bits = 8
    granularity: Literal["channel", "tensor", "group"] = "channel"
    group_size: Annotated[int, Range(0, noun="a number of weights")] = 0
    symmetric: bool = True
    ranges: Literal["minmax", "mse", "mean"] | None = None
    edge_bits: Bits | None = None
    activations: bool = True
    activation_bits: Bits | None = None
    activation_ranges: RangeKind | None = None
    learn: bool = False
    fold: bool | None = None
    reduce_range: bool | None = None
    tolerance: Annotated[float, Range(0, left_open=True, noun="a share of the outputs")] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.activations and (self.activation_bits, self.activation_ranges) != (None, None):
            raise ConfigError(
                "Quantize.activation_bits and activation_ranges need activations; found activations: false"
            )
        if (self.granularity == "group") != (self.group_size > 0):
            raise ConfigError(
                f"Quantize.granularity is {self.granularity!r} with group_size {self.group_size}; expected a positive "
                "group_size (32 or 128, say) with 'group', and none without"
            )
        if self.reduce_range is not None and not self._saturates:
            raise ConfigError(
                "Quantize.reduce_range chooses scales for integer kernels with 8-bit weights; found none here (bits "
                "below 8, activations: false, groups or zero points); expected it to be left out"
            )

    @property
    def _saturates(self) -> bool:
        """Whether integer kernels compute with weights of 8 bits, whose products some processors let saturate."""
        kernels = self.activations and self.symmetric and self.granularity != "group"
        return kernels and 8 in (self.bits, self.edge_bits)

    @property
    def folds_norms(self) -> bool:
        """Whether norms are folded at once."""
        return not self.learn if self.fold is None else self.fold

    @property
    def _tolerance(self) -> float | None:
        """How far the outputs may move, None where nothing is said of it."""
        if self.tolerance is not None:
            return self.tolerance
        asked = {self.bits, self.edge_bits or 8, self.activation_bits or 8} != {8} or self.learn
        return None if asked else TOLERANCE if self.activations else WEIGHT_TOLERANCE

    def skip_reasons(self, model: nn.Module, example: Inputs) -> dict[str, str]:
        """Return why layers are left alone; groups that :meth:`plan` refuses are refused here already."""
        found = super().skip_reasons(model, example)
        self._check_groups(weighted_layers(model, self))
        return found

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return what is folded, the grid of each weight, and the ranges of the activations."""
        layers = weighted_layers(model, self)
        self._check_groups(layers)
        edges = edge_layers(model, layers, context.example) if self.edge_bits is not None else set()
        grids: dict[str, QuantScheme] = {}
        notes: list[str] = []
        for name, layer in layers.items():
            grids[name] = self._grid(self.edge_bits if name in edges and self.edge_bits else self.bits, context.kernels)
            if self.granularity == "group":
                grids[name], told = grouped(name, layer, grids[name], self.group_size)
                notes += told
        activations = (
            ActivationGrid(
                bits=self.activation_bits or 8,
                ranges=self.activation_ranges or "minmax",
                learn=self.learn,
                kernels=context.kernels,
            )
            if self.activations
            else None
        )
        plan = integer_plan(self, model, context, grids, activations=activations)
        if self._tolerance is not None:
            plan = keep_sensitive_in_float(model, plan, context, self._tolerance, activations)
        if plan["fold"]:
            notes.append(
                "batch norms are part of layers now: train at a learning rate below 1e-3 from here, or set fold: false"
            )
        return {**plan, "notes": notes + plan["notes"]}

    def _check_groups(self, layers: Mapping[str, nn.Module]) -> None:
        widths = sorted({constrained_weight(layer).shape[1:].numel() for layer in layers.values()})
        if self.granularity == "group" and all(width % self.group_size for width in widths):
            raise ConfigError(
                f"Quantize.group_size is {self.group_size}, which divides the weights of no channel; expected a divisor"
                f" of one of {', '.join(map(str, widths))}"
            )

    def _grid(self, bits: int, kernels: KernelProfile) -> QuantScheme:
        usual = usual_grid(bits)
        return replace(
            usual,
            granularity=self.granularity,
            symmetric=self.symmetric,
            ranges=self.ranges or ("mean" if self.learn and bits < 8 else usual.ranges),
            learn=self.learn,
            reduce_range=self._saturates and kernels.pairs_saturate if self.reduce_range is None else self.reduce_range,
        )

    def milder(self) -> Quantize | None:
        """Return it with activations in floating point."""
        return (
            replace(
                self, activations=False, activation_bits=None, activation_ranges=None, reduce_range=None, tolerance=None
            )
            if self.activations
            else None
        )
