"""AdaRound: whether each weight is rounded up or down is learned, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nutlet.graph.scope import weighted_layers
from nutlet.methods.base import Plan, register
from nutlet.methods.quantization.integers import Bits, OnIntegers, usual_grid
from nutlet.methods.quantization.rounding import Rounding, rounding_plan
from nutlet.options import Count
from nutlet.training.context import Context

__all__ = ["AdaRound"]

STRETCH = (-0.1, 1.1)
"""The sigmoid is stretched to these ends and cut off at 0 and 1, so that it arrives there (equation 23)."""
SHARPNESS = (20.0, 2.0)
"""The exponent of the regulariser, from the beginning to the end (equation 24)."""
STRENGTH = 10.0
"""Of the regulariser, against errors measured by those of rounding to the nearest."""
RATE = 0.05


@register
@dataclass(frozen=True, kw_only=True)
class AdaRound(OnIntegers):
    """Round weights up or down by what it does to the outputs of their layer, not to the nearest.

    Learns a rectified sigmoid ``h`` for each weight, between the codes below and above it, that minimises
    ``tr((W - W_h) H (W - W_h)^T)`` with the second moments H of the layer's inputs, while a regulariser
    ``1 - |2h - 1|^beta`` with falling ``beta`` drives h to 0 or 1 (Nagel et al. 2020, arXiv:2004.10568). The moments
    stand for the data: the calibration examples are passed through the model once.

    It takes the place of a ``Quantize(activations=False)``: the same grids, with one scale per output channel and batch
    norms folded. A :class:`Quantize` after it keeps these weights and adds integer activations. Before it, only one of
    more bits makes sense: what weights were before rounding is not kept.

    Args:
        bits: bits of a weight, 2 to 8.
        steps: of optimisation, for each layer.

    Raises:
        ConfigError: bits outside 2 to 8, or no steps.

    >>> AdaRound(bits=3).to_dict()
    {'AdaRound': {'bits': 3}}
    """

    effect: ClassVar[str] = "grid"
    use_when: ClassVar[str] = "weights of 2 to 4 bits where nothing is trained: seconds for each layer, few examples"

    bits: Bits = 4
    steps: Count = 1000

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the grids, and the rounded weights as values."""
        grids = dict.fromkeys(weighted_layers(model, self), usual_grid(self.bits))
        return rounding_plan(self, model, context, grids, self._learned)

    def _learned(self, rounding: Rounding) -> Tensor:
        ratio = (rounding.weight - rounding.zero) / rounding.step
        below = rounding.clamp(ratio.floor())
        nearest = rounding.error(rounding.values(rounding.clamp(ratio.round()))).clamp_min(1e-12)
        low, high = STRETCH
        # Begun where the weight is exactly what it was; not at the very ends, where nothing would move.
        start = (((ratio - below).clamp(0, 1) - low) / (high - low)).clamp(0.01, 0.99)
        logits = torch.logit(start).requires_grad_(True)
        optimizer = torch.optim.Adam([logits], lr=RATE)
        with torch.enable_grad():
            for step in range(self.steps):
                up = (torch.sigmoid(logits) * (high - low) + low).clamp(0, 1)
                sharpness = SHARPNESS[0] + (SHARPNESS[1] - SHARPNESS[0]) * step / self.steps
                undecided = (1 - (2 * up - 1).abs().pow(sharpness)).mean(-1)
                error = rounding.error(rounding.values(rounding.clamp(below + up))) / nearest
                optimizer.zero_grad()
                (error + STRENGTH * undecided).sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return rounding.clamp(below + (logits.detach() >= 0))
