"""The channels of a layer's weight: seen by group, output and input, and scaled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import output_axis, raw_weight

__all__ = ["by_group", "scale_inputs", "scale_outputs"]


def by_group(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a view of ``weight`` as ``(groups, outputs per group, inputs per group, positions)``.

    Args:
        layer: a dense layer or any convolution, transposed ones included.
        weight: of its weight's shape.

    >>> by_group(nn.Conv2d(4, 6, 3, groups=2), torch.zeros(6, 2, 3, 3)).shape
    torch.Size([2, 3, 2, 9])
    >>> by_group(nn.ConvTranspose1d(4, 6, 5, groups=2), torch.zeros(4, 3, 5)).shape
    torch.Size([2, 3, 2, 5])
    """
    groups: int = getattr(layer, "groups", 1)
    positions = weight[0, 0].numel()
    grouped = weight.view(groups, len(weight) // groups, weight.shape[1], positions)
    return grouped.transpose(1, 2) if output_axis(layer) else grouped


def scale_outputs(layer: nn.Module, factor: Tensor) -> None:
    """Multiply each output channel of the dense weight by its ``factor``, ``(outputs,)``, in place; biases stay."""
    with torch.no_grad():
        weight = by_group(layer, raw_weight(layer))
        weight.mul_(factor.view(len(weight), -1, 1, 1))


def scale_inputs(layer: nn.Module, factor: Tensor) -> None:
    """Multiply what the dense weight takes from each input channel by its ``factor``, ``(inputs,)``, in place."""
    with torch.no_grad():
        weight = by_group(layer, raw_weight(layer))
        weight.mul_(factor.view(len(weight), 1, -1, 1))
