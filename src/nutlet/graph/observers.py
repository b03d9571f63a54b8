"""Which range of values a quantizer of activations should cover, from what calibration shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Observer", "RangeKind", "observer"]

RangeKind = Literal["minmax", "moving", "percentile", "mse", "entropy"]
"""The smallest and largest value; their moving averages over batches; all but one value in 10,000; the range with the
smallest squared error, or with the smallest loss of information, after rounding."""

_MOMENTUM = 0.1
_OUTSIDE = 1e-4
_BINS = 4096
_SHARES = 64


class Observer(nn.Module):
    """Lets tensors through and says which range to cover; zero is always inside."""

    def range(self, levels: int) -> tuple[float, float]:
        """Return the smallest and largest value to cover with ``levels`` codes."""
        raise NotImplementedError


def observer(kind: RangeKind) -> Observer:
    """Return what finds ranges of ``kind``."""
    return _Extremes(_MOMENTUM if kind == "moving" else None) if kind in ("minmax", "moving") else _Histogram(kind)


class _Extremes(Observer):
    """Smallest and largest value, of all batches or as a moving average over them."""

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.momentum = momentum
        self.extremes: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        low, high = x.detach().aminmax()
        now = torch.stack([low.clamp_max(0.0), high.clamp_min(0.0)])  # keeps a NaN
        if self.extremes is None:
            self.extremes = now
        elif self.momentum is not None:
            self.extremes = torch.lerp(self.extremes, now, self.momentum)
        else:
            low, high = torch.minimum(self.extremes[0], now[0]), torch.maximum(self.extremes[1], now[1])
            self.extremes = torch.stack([low, high])
        return x

    def range(self, levels: int) -> tuple[float, float]:
        assert self.extremes is not None
        low, high = self.extremes.tolist()
        return low, high


class _Histogram(Observer):
    """Counts values in bins between a power of two and its negative; for larger values bins are joined in pairs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.counts = torch.zeros(_BINS, dtype=torch.float64)
        self.reach = 0.0
        self.extremes = _Extremes(None)

    def forward(self, x: Tensor) -> Tensor:
        self.extremes(x)
        low, high = self.extremes.range(0)
        largest = max(-low, high)
        if not 0 < largest < float("inf"):
            return x
        needed = 2.0 ** torch.tensor(largest, dtype=torch.float64).log2().ceil().item()
        if self.reach == 0.0:
            self.reach = needed
        while self.reach < needed:
            joined = self.counts.view(-1, 2).sum(1)
            self.counts = torch.nn.functional.pad(joined, (_BINS // 4, _BINS // 4))
            self.reach *= 2
        self.counts += torch.histc(x.detach().float().cpu(), _BINS, -self.reach, self.reach).double()
        return x

    def range(self, levels: int) -> tuple[float, float]:
        low, high = self.extremes.range(levels)
        if self.reach == 0.0 or not high - low < float("inf"):
            return low, high
        centres = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (2 * self.reach / _BINS) - self.reach
        if self.kind == "percentile":
            passed = self.counts.cumsum(0) / self.counts.sum()
            # A tail of zeros only is no tail: what is left of it has no outliers.
            tail = _OUTSIDE / 2 if low < 0 < high else _OUTSIDE
            first = centres[int((passed < tail).sum())] if low < 0 else 0.0
            last = centres[min(int((passed < 1 - tail).sum()), _BINS - 1)]
            return max(low, min(float(first), 0.0)), min(high, max(float(last), 0.0))
        loss: Callable[[float, float], float] = self._squared_error if self.kind == "mse" else self._information_lost
        self._centres, self._levels = centres, levels
        shares = torch.linspace(1 / _SHARES, 1, _SHARES, dtype=torch.float64).flip(0).tolist()
        best = min(shares, key=lambda share: loss(low * share, high * share))
        return low * best, high * best

    def _coded(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Return the code of each bin and the value of that code."""
        step = (high - low) / (self._levels - 1) or 1.0
        codes = torch.round((self._centres.clamp(low, high) - low) / step)
        return codes.long(), low + codes * step

    def _squared_error(self, low: float, high: float) -> float:
        values = self._coded(low, high)[1]
        return float((self.counts * (values - self._centres).square()).sum())

    def _information_lost(self, low: float, high: float) -> float:
        """Return KL(p || q) in nats, where q spreads the values of one code evenly over its bins.

        As in TensorRT's calibration (Migacz 2017, "8-bit inference with TensorRT"): values outside count for the
        outermost bins in p, and are missing in q.
        """
        inside = (self._centres >= low) & (self._centres <= high)
        if not bool(inside.any()):
            return float("inf")
        p = self.counts[inside].clone()
        edges = [self.counts[self._centres < low].sum(), self.counts[self._centres > high].sum()]
        kept = p.clone()
        p[0] += edges[0]
        p[-1] += edges[1]
        codes = self._coded(low, high)[0][inside]
        filled = (kept > 0).double()
        totals = torch.zeros(self._levels, dtype=torch.float64).index_add_(0, codes, kept)
        spread = torch.zeros(self._levels, dtype=torch.float64).index_add_(0, codes, filled)
        q = totals[codes] / spread[codes].clamp_min(1) * filled
        p, q = p / p.sum(), q / q.sum().clamp_min(1e-300)
        seen = p > 0
        return float((p[seen] * (p[seen] / q[seen].clamp_min(1e-12)).log()).sum())
