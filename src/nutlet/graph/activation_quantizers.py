"""In which ranges activations are quantized, and by what; :mod:`nutlet.graph.placement` says where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers torch.ops.quantized_decomposed

from nutlet.constraints.quantizer import LEAST_SCALE, round_ste, scale_grad
from nutlet.errors import ModelError
from nutlet.graph.kernels import KERNELS, KernelProfile
from nutlet.graph.observers import RangeKind, observer
from nutlet.graph.placement import place
from nutlet.graph.record import Record
from nutlet.graph.statistics import Batches, run_through
from nutlet.graph.trace import InstrumentedModel, trace
from nutlet.tasks.inputs import Inputs

__all__ = [
    "ActivationGrid",
    "ActivationQuantizer",
    "Activations",
    "attach",
    "calibrate",
    "grid_of",
    "reattach",
    "with_scales",
]

Activations = dict[str, dict[str, Any]]
"""Site name to ``{"scale": float, "zero_point": int}`` with what is unusual of the grid, or to ``{"same_as": site
name}``: plain JSON, part of a plan."""


@dataclass(frozen=True, kw_only=True)
class ActivationGrid:
    """How activations are put on integers; plain data, part of a plan.

    Args:
        bits: 2 to 8; the model's input always has 8.
        ranges: what a scale covers, see :data:`nutlet.graph.observers.RangeKind`.
        learn: the scale is trained (learned step size, Esser et al. 2020, arXiv:1902.08153).
        power_of_two: scales are powers of two.
        kernels: what they are placed for.
    """

    bits: int = 8
    ranges: RangeKind = "minmax"
    learn: bool = False
    power_of_two: bool = False
    kernels: KernelProfile = KERNELS

    def changes(self) -> dict[str, Any]:
        """Return what differs from the defaults as plain JSON, of which :meth:`of` makes the same grid."""
        usual = ActivationGrid()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: value for name, value in values.items() if value != getattr(usual, name)}
        return {**changed, "kernels": self.kernels.to_dict()} if "kernels" in changed else changed

    @staticmethod
    def of(entry: Mapping[str, Any]) -> ActivationGrid:
        """Return the grid of an entry of :data:`Activations` with a scale of its own."""
        options = {name: value for name, value in entry.items() if name not in ("scale", "zero_point")}
        if "kernels" in options:
            options["kernels"] = KernelProfile.from_dict(options["kernels"])
        return ActivationGrid(**options)


class ActivationQuantizer(nn.Module):
    """Unsigned affine quantization of a whole tensor: ``q = clamp(round(x / s) + z, 0, 2^bits - 1)``.

    In training the gradient passes straight through inside the range (Bengio et al. 2013, arXiv:1308.3432);
    in evaluation and export it is the pair of operations every runtime knows.
    """

    def __init__(self, scale: float, zero_point: int, grid: ActivationGrid | None = None) -> None:
        super().__init__()
        self.grid = grid or ActivationGrid()
        # Plain numbers, as they stand in the plan: exporters want constants here, not tensors.
        self.scale = nn.Parameter(torch.tensor(scale)) if self.grid.learn else scale
        self.zero_point = zero_point

    def forward(self, x: Tensor) -> Tensor:
        """Return the nearest representable values."""
        largest = 2**self.grid.bits - 1
        if self.training and isinstance(self.scale, Tensor):
            step = scale_grad(self.scale.abs().clamp_min(LEAST_SCALE), (x[0].numel() * largest) ** -0.5)
            return round_ste((x / step).clamp(-self.zero_point, largest - self.zero_point)) * step
        if self.training and isinstance(self.scale, float):
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, largest)
        grid = (self.step, self.zero_point, 0, 255, torch.uint8)
        codes = torch.ops.quantized_decomposed.quantize_per_tensor(x, *grid)
        if self.grid.bits < 8:
            # On the codes, and not before: the integer operation that makes them can then still be fused.
            codes = codes.clamp(max=largest)
        values: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(codes, *grid)
        return values

    @property
    def step(self) -> float:
        """The scale as it is applied."""
        scale = self.scale.item() if isinstance(self.scale, Tensor) else self.scale
        return max(abs(scale), LEAST_SCALE)

    def frozen(self) -> ActivationQuantizer:
        """Return the same with a plain number for a learned scale, as exporters want it."""
        return ActivationQuantizer(self.step, self.zero_point, ActivationGrid(bits=self.grid.bits))


def calibrate(model: nn.Module, record: Record, batches: Batches, grid: ActivationGrid | None = None) -> Activations:
    """Return scale and zero point of every site to quantize, from the values that the inputs in ``batches`` lead to.

    Raises:
        ModelError: a site gives NaN or infinity, or ``batches`` is empty.
    """
    grid = grid or ActivationGrid()
    placed = place(model, record, grid.kernels)
    seeing = {name: observer(grid.ranges) for name, tied in placed.items() if tied is None}
    observed = InstrumentedModel(model, record, seeing)
    try:
        seen = run_through(observed, batches)
    finally:
        observed.unwrap()
    if not seen:
        raise ModelError("found no calibration inputs; expected at least one batch to set activation ranges")
    result: Activations = {}
    for name, tied in placed.items():
        if tied is not None:
            result[name] = {"same_as": tied}
            continue
        own = replace(grid, bits=8) if record.sites[name].op == "input" else grid
        low, high = seeing[name].range(2**own.bits)
        scale = (high - low) / (2**own.bits - 1) or 1.0
        if not 0 < scale < float("inf"):
            raise ModelError(f"the activations at {name} range from {low} to {high}; expected finite numbers")
        if own.power_of_two:
            scale = 2.0 ** math.ceil(math.log2(scale))
        result[name] = {"scale": scale, "zero_point": round(-low / scale), **own.changes()}
    return result


def grid_of(edited: InstrumentedModel) -> ActivationGrid:
    """Return the grid of the activation quantizers of a model: what the sites of a changed one are to get."""
    grids = [edit.grid for edit in edited.by_site.values() if isinstance(edit, ActivationQuantizer)]
    return min(grids, key=lambda grid: grid.bits, default=ActivationGrid())


def attach(model: nn.Module, activations: Activations, example: Inputs) -> InstrumentedModel:
    """Return ``model`` with a quantizer at every site of ``activations``."""
    quantizers: dict[str, nn.Module] = {}
    # Those that share a scale last: a saved plan is in alphabetical order.
    for name, values in sorted(activations.items(), key=lambda item: "same_as" in item[1]):
        if "same_as" in values:
            quantizers[name] = quantizers[_own(activations, name)]
            continue
        scale, zero_point = values["scale"], values["zero_point"]
        grid = ActivationGrid.of(values)
        if not 0 < scale < float("inf") or grid.bits not in range(2, 9) or zero_point not in range(2**grid.bits):
            raise ModelError(
                f"found scale {scale}, zero point {zero_point} and {grid.bits} bits at {name}; expected a positive "
                "scale, a zero point among the codes, and 2 to 8 bits"
            )
        quantizers[name] = ActivationQuantizer(float(scale), int(zero_point), grid)
    return InstrumentedModel(model, trace(model, example), quantizers)


def reattach(
    earlier: InstrumentedModel, model: nn.Module, activations: Activations | None, example: Inputs
) -> nn.Module:
    """Return ``model``, which a step made of that in ``earlier``, with activation quantizers again.

    Where the step put weights into a format that no integer kernel takes, those beside them go: they would cost
    accuracy and gain nothing.

    Args:
        earlier: the model before the step; it has been taken off already.
        model: the model after it; where the step put quantizers of its own on, they stay.
        activations: where the step moved sites, their new ranges; ``None`` carries the quantizers of ``earlier``.
        example: two inputs, batch first.

    Raises:
        ModelError: the sites moved, and there are no new ranges.
    """
    if isinstance(model, InstrumentedModel):
        return model
    if activations is not None:
        return attach(model, activations, example)
    now = trace(model, example)
    if now.sites != earlier.record.sites:
        raise ModelError("the step moved the sites of quantized activations; expected new ranges for them in its plan")
    placed = place(model, now, grid_of(earlier).kernels)
    edits = {name: edit for name, edit in earlier.by_site.items() if name in placed}
    return InstrumentedModel(model, now, edits) if edits else model


def with_scales(activations: Activations) -> Activations:
    """Return the entries without those that are the same as one that is not there, or as one of those."""
    while left := [name for name, values in activations.items() if values.get("same_as", name) not in activations]:
        activations = {name: values for name, values in activations.items() if name not in left}
    return activations


def _own(activations: Activations, name: str) -> str:
    """Follow shared scales to the site that has one of its own."""
    for _ in activations:
        if "same_as" not in activations[name]:
            return name
        name = activations[name]["same_as"]
    raise ModelError(f"the activations at {name} share their scale in a circle; expected a site with its own")
