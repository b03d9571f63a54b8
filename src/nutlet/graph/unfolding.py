"""What a batch norm does to the weight before it, by itself: the comparisons do not trust the code that folds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.constraints.stack import output_axis

__all__ = ["norm_factor", "scaled"]


def norm_factor(norm: nn.Module) -> Tensor:
    """Return what a batch norm in evaluation mode multiplies each channel by, ``(channels,)``: two inputs tell."""
    width = len(norm.get_buffer("running_mean"))
    shape = {nn.BatchNorm3d: (1, width, 1, 1, 1), nn.BatchNorm2d: (1, width, 1, 1)}
    like = next((s for kind, s in shape.items() if isinstance(norm, kind)), (1, width))
    one = torch.ones(like, device=norm.get_buffer("running_mean").device)
    ends = [
        F.batch_norm(
            x,
            norm.get_buffer("running_mean").double(),
            norm.get_buffer("running_var").double(),
            norm.weight.detach().double() if isinstance(norm.weight, Tensor) else None,
            eps=float(norm.eps),  # type: ignore[arg-type]
        )
        for x in (one.double(), 0 * one.double())
    ]
    return (ends[0] - ends[1]).flatten()


def scaled(layer: nn.Module, weight: Tensor, factor: Tensor) -> Tensor:
    """Return ``weight`` of ``layer`` with each output channel times its ``factor``, ``(outputs,)``.

    >>> scaled(nn.Linear(1, 2), torch.ones(2, 1), torch.tensor([2.0, 3.0])).tolist()
    [[2.0], [3.0]]
    """
    factor = factor.to(weight)
    if not output_axis(layer):
        return weight * factor.view(-1, *[1] * (weight.ndim - 1))
    groups = int(getattr(layer, "groups", 1))
    parts = zip(weight.chunk(groups), factor.chunk(groups), strict=True)
    return torch.cat([part * own.view(1, -1, *[1] * (weight.ndim - 2)) for part, own in parts])
