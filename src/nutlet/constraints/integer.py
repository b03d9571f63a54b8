"""Weights on a grid of integers: 2 to 8 bits, by tensor, channel or group, symmetric or not."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.constraints.quantizer import LEAST_SCALE, Quantizer, along, fitting, round_ste, scale_grad

__all__ = ["QuantScheme", "WeightQuantizer"]

_MOST_OF_A_PAIR = 128
_SHARES = 40
"""Ranges that the search for the smallest squared error tries, from a quarter of the largest weight up."""


@dataclass(frozen=True, kw_only=True)
class QuantScheme:
    """How weights are put on integers; plain data, part of a plan.

    Args:
        bits: 2 to 8.
        granularity: what has one scale: the ``tensor``, an output ``channel``, or a ``group`` of weights of one.
        group_size: weights of a group, in the order in which a channel stores them; the last may be smaller.
        symmetric: codes around zero; otherwise a zero point shifts them, so that one-sided weights waste none.
        ranges: what a scale covers: ``minmax`` every weight, ``mse`` as much as makes the squared error smallest,
            ``mean`` what Esser et al. 2020 (arXiv:1902.08153) begin learning from, ``2 mean|w| / sqrt(limit)``.
        learn: the scale is trained (learned step size, the same paper).
        power_of_two: scales are powers of two, so that a shift does what a multiplication would.
        reduce_range: two neighbouring codes sum to at most 128 in either direction; see :class:`WeightQuantizer`.
    """

    bits: int = 8
    granularity: Literal["tensor", "channel", "group"] = "channel"
    group_size: int = 0
    symmetric: bool = True
    ranges: Literal["minmax", "mse", "mean"] = "minmax"
    learn: bool = False
    power_of_two: bool = False
    reduce_range: bool = True

    @property
    def levels(self) -> range:
        """All codes."""
        limit = int(2 ** (self.bits - 1)) - 1
        return range(-limit if self.symmetric else -limit - 1, limit + 1)

    def changes(self) -> dict[str, Any]:
        """Return the entries that differ from the defaults; ``QuantScheme(**changes)`` is the same grid."""
        usual = QuantScheme()
        return {name: value for name, value in asdict(self).items() if value != getattr(usual, name)}

    def for_free_values(self) -> QuantScheme:
        """Return the grid for a weight of few freely chosen values.

        It has one scale, with which equal values stay equal, and 8 bits, with which they hardly move.
        """
        return replace(self, bits=8, granularity="tensor", group_size=0, ranges="minmax")


class WeightQuantizer(Quantizer):
    """Integers with a scale: ``q = clamp(round(w / s) + z)`` and ``w' = s (q - z)``; zero stays exactly zero.

    Symmetric codes lie in ``-limit .. limit`` with ``limit = 2^(bits-1) - 1`` and ``z = 0`` (Krishnamoorthi 2018,
    arXiv:1806.08342, section 2); others use all ``2^bits`` codes. Two symmetric bits are ternary weights, and the
    grid with ``ranges="mse"`` then solves the problem of ternary weight networks (Li et al. 2016, arXiv:1605.04711),
    whose threshold at the optimum is half the scale.

    A ``reduce_range`` grid of 8 bits widens a scale where needed so that the codes of two inputs that lie side by side
    sum to at most 128 in either direction. x86 processors without VNNI multiply such pairs by 8-bit activations into
    16 bits, which saturate above 32,767: 255 x 128 does not. Halving the range of all weights, the usual remedy, costs
    a whole bit.

    Args:
        scale: ``(1,)``, ``(channels,)`` or ``(channels * groups,)``, positive.
        zero_point: int32 of the same shape, in codes.
        axis: axis of the output channels in the weight.
        grid: everything else.
        shape: of the weight; only groups need it.
    """

    order: ClassVar[int] = 1
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        scale: Tensor,
        zero_point: Tensor | None = None,
        axis: int = 0,
        grid: QuantScheme | None = None,
        shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.grid = grid or QuantScheme()
        self.axis = axis
        self.shape = shape
        # One axis only, however many groups: weight decay, which would shrink a learned scale, is for matrices.
        if self.grid.learn:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        self.register_buffer(
            "zero_point", zeros if zero_point is None else zero_point, persistent=not self.grid.symmetric
        )

    @staticmethod
    def fit(weight: Tensor, axis: int = 0, grid: QuantScheme | None = None) -> WeightQuantizer:
        """Return the quantizer of ``weight`` with ranges as ``grid`` says."""
        grid = grid or QuantScheme()
        count = len(_rows(weight, axis, grid))
        quantizer = WeightQuantizer(weight.new_ones(count), None, axis, grid, tuple(weight.shape))
        quantizer.refit(weight)
        return quantizer

    @property
    def limit(self) -> int:
        """The largest code."""
        return self.levels.stop - 1

    @property
    def levels(self) -> range:
        """All codes."""
        return self.grid.levels

    @property
    def integer(self) -> bool:
        """Whether integer kernels take these codes: they know one scale per channel, and no zero points."""
        return self.grid.symmetric and self.grid.granularity != "group"

    @property
    def supports_scaling(self) -> bool:
        """Whether a factor per channel can go into the scales."""
        return self.grid.symmetric and self.grid.granularity != "tensor" and not self.grid.power_of_two

    @property
    def reduce_range(self) -> bool:
        """Whether neighbouring codes are kept from saturating; codes of fewer bits never do."""
        return self.grid.reduce_range and self.integer and self.grid.bits == 8

    @property
    def step(self) -> Tensor:
        """The scale as it is applied: training may move a learned one anywhere."""
        return self.scale.abs().clamp_min(LEAST_SCALE) if self.grid.learn else self.scale

    def forward(self, weight: Tensor) -> Tensor:
        """Return the nearest representable weights; the gradient of a learned scale is that of LSQ."""
        if not (self.grid.learn and self.training):
            return super().forward(weight)
        share = (weight.numel() / len(self.scale) * self.limit) ** -0.5
        spread, zero = self._spread(scale_grad(self.step, share), weight), self._spread(self.zero_point, weight)
        ratio = torch.maximum(weight / spread, self.levels.start - zero)
        return round_ste(torch.minimum(ratio, self.levels.stop - 1 - zero)) * spread

    def codes(self, weight: Tensor) -> Tensor:
        """Return the codes of ``weight``, int16."""
        ratio = torch.round(weight.detach() / self._spread(self.step.detach(), weight))
        codes = ratio + self._spread(self.zero_point, weight)
        return codes.clamp(self.levels.start, self.levels.stop - 1).to(torch.int16)

    def values(self, codes: Tensor) -> Tensor:
        """Return the float weight of ``codes``."""
        moved = codes.movedim(self.axis, 0)
        if self.grid.granularity == "group" and moved[0].numel() % self.grid.group_size == 0:
            # By rows: an exported file would hold a scale that is spread over the weight once for each of them.
            rows = moved.reshape(len(self.scale), -1).float()
            if not self.grid.symmetric:
                rows = rows - self.zero_point[:, None]
            return (rows * self.step.detach()[:, None]).reshape(moved.shape).movedim(0, self.axis)
        centred = codes.float() if self.grid.symmetric else codes.float() - self._spread(self.zero_point, codes)
        return centred * self._spread(self.step.detach(), codes)

    def refit(self, weight: Tensor) -> None:
        """Set the ranges anew, as the grid says."""
        if not fitting():
            return
        rows = _rows(weight.detach(), self.axis, self.grid)
        if self.grid.ranges == "mean":
            # Zeros are not counted: there are many in a pruned weight, and they are exact at any scale.
            mean = rows.abs().sum(1) / (rows != 0).sum(1).clamp_min(1)
            high = 2 * mean * self.limit**0.5
            scale, zero_point = self._covering(-high, high)
        else:
            low, high = rows.amin(1).clamp_max(0.0), rows.amax(1).clamp_min(0.0)
            scale, zero_point = self._covering(low, high)
            if self.grid.ranges == "mse":
                scale, zero_point = self._least_error(rows, low, high)
        self._set(torch.maximum(scale, self._least(weight)), zero_point)

    def expand_range(self, weight: Tensor) -> None:
        """Make room for weights that training has moved; no scale becomes smaller."""
        step = self.step.detach()
        scale = step
        if self.reduce_range:
            scale = torch.where(self._saturated(weight), torch.maximum(scale, self._least(weight)), scale)
        if self.grid.ranges == "minmax" and self.grid.symmetric and not self.grid.learn:
            rows = _rows(weight.detach(), self.axis, self.grid)
            needed = self._covering(rows.amin(1), rows.amax(1))[0]
            scale = torch.where(needed > scale * (1 + 1e-6), needed, scale)
        self._set(scale, self.zero_point)

    def saturates(self, weight: Tensor) -> bool:
        """Return whether codes of ``weight`` lie side by side that a portable grid keeps apart."""
        return self.reduce_range and bool(self._saturated(weight).any())

    def _saturated(self, weight: Tensor) -> Tensor:
        """Return which scales have a pair of codes that saturates; those of weights on the grid already do not move."""
        pairs = _largest_pair(self.codes(weight).float().movedim(self.axis, 0))
        pairs = pairs.amax(0, keepdim=True) if self.grid.granularity == "tensor" else pairs
        return pairs > _MOST_OF_A_PAIR

    def fit_like(self, weight: Tensor, axis: int = 0) -> WeightQuantizer:
        """Return the same grid fitted to another weight."""
        return WeightQuantizer.fit(weight, axis, self.grid)

    def scale_outputs(self, factor: Tensor) -> None:
        """Follow a weight whose output channels are multiplied by ``factor``: codes change in sign at most."""
        each = factor.abs().repeat_interleave(len(self.scale) // len(factor))
        self._set((self.step.detach() * each).clamp_min(LEAST_SCALE), self.zero_point)

    def select(self, dim: int, keep: Tensor) -> WeightQuantizer:
        """Return the quantizer of the kept slices; ranges stay, they still cover what is left.

        Groups along a channel that loses weights are formed anew, with the widest range that one of theirs had.
        """
        scale, zero = self.step.detach().clone(), self.zero_point.clone()
        shape = tuple(len(keep) if d == dim else n for d, n in enumerate(self.shape))
        if self.grid.granularity == "group":
            weight = torch.empty(self.shape, device="meta")
            bounds = [(bound - zero) * scale for bound in (self.levels.start, self.levels.stop - 1)]
            low, high = (
                _rows(self._spread(b, weight).expand(self.shape).index_select(dim, keep), self.axis, self.grid)
                for b in bounds
            )
            scale, zero = self._covering(low.amin(1), high.amax(1))
        elif self.grid.granularity == "channel" and dim == self.axis:
            scale, zero = scale.index_select(0, keep), zero.index_select(0, keep)
        return WeightQuantizer(scale, zero, self.axis, self.grid, shape)

    def _covering(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scales and zero points with which the codes reach from ``low`` (not above 0) to ``high``."""
        span = torch.maximum(-low, high) / self.limit if self.grid.symmetric else (high - low) / (len(self.levels) - 1)
        scale = self._allowed(span)
        if self.grid.symmetric:
            return scale, torch.zeros_like(scale, dtype=torch.int32)
        zero = self.levels.start - torch.round(low / scale)
        return scale, zero.clamp(self.levels.start, self.levels.stop - 1).to(torch.int32)

    def _least_error(self, rows: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scales and zero points with the smallest squared error among shrunken ranges."""
        scale, zero = self._covering(low, high)
        least = torch.full_like(scale, float("inf"))
        for share in torch.linspace(0.25, 1, _SHARES).tolist():
            s, z = self._covering(low * share, high * share)
            codes = (torch.round(rows / s[:, None]) + z[:, None]).clamp(self.levels.start, self.levels.stop - 1)
            error = ((codes - z[:, None]) * s[:, None] - rows).square().sum(1)
            better = error < least
            least, scale, zero = (torch.where(better, *p) for p in ((error, least), (s, scale), (z, zero)))
        return scale, zero

    def _least(self, weight: Tensor) -> Tensor:
        """Return the smallest scales with which no pair of codes saturates."""
        if not self.reduce_range:
            return torch.zeros_like(self.scale.detach())
        # Two roundings may add one to a pair's sum, hence 127.5 and not 128.
        least = _largest_pair(weight.detach().movedim(self.axis, 0)) / 127.5
        return least.amax(0, keepdim=True) if self.grid.granularity == "tensor" else least

    def _allowed(self, scale: Tensor) -> Tensor:
        scale = scale.clamp_min(LEAST_SCALE)
        return torch.exp2(torch.ceil(torch.log2(scale))) if self.grid.power_of_two else scale

    def _set(self, scale: Tensor, zero_point: Tensor) -> None:
        with torch.no_grad():
            self.scale.copy_(self._allowed(scale))
            self.zero_point.copy_(zero_point)

    def _spread(self, values: Tensor, weight: Tensor) -> Tensor:
        """Return one value for each scale in a shape that broadcasts over ``weight``."""
        if self.grid.granularity != "group":
            return values.view(along(self.axis, weight.ndim))
        shape = weight.movedim(self.axis, 0).shape
        groups = values.view(shape[0], -1, 1).expand(-1, -1, self.grid.group_size)
        return groups.flatten(1)[:, : shape[1:].numel()].reshape(shape).movedim(0, self.axis)


def _rows(weight: Tensor, axis: int, grid: QuantScheme) -> Tensor:
    """Return what shares a scale as the rows of a matrix, the last group of a channel filled up with zeros."""
    if grid.granularity == "tensor":
        return weight.reshape(1, -1)
    rows = weight.movedim(axis, 0).flatten(1)
    if grid.granularity == "channel":
        return rows
    missing = -rows.shape[1] % grid.group_size
    padded: Tensor = torch.nn.functional.pad(rows, (0, missing))
    return padded.reshape(-1, grid.group_size)


def _largest_pair(channels: Tensor) -> Tensor:
    """Return per output channel the largest sum, in either direction, of two weights that a kernel multiplies at once.

    Kernels run over positions first and input channels inside; an odd number of input channels is either padded or
    runs on into the next position, so both are looked at.
    """
    inputs = channels.movedim(1, -1)  # (outputs, positions..., inputs)
    width = inputs.shape[-1]
    layouts = [inputs.reshape(len(channels), -1, width)]
    if width % 2:
        layouts.append(inputs.reshape(len(channels), 1, -1))
    largest = torch.zeros(len(channels), device=channels.device)
    for layout in layouts:
        padded = torch.nn.functional.pad(layout, (0, layout.shape[-1] % 2)).unflatten(-1, (-1, 2))  # type: ignore[no-untyped-call]
        for sign in (1, -1):
            largest = torch.maximum(largest, (sign * padded).clamp_min(0).sum(-1).flatten(1).amax(1))
    return largest
