"""Operators that slide a window over spatial axes, and how their attributes are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["average_pool", "conv", "max_pool", "only", "spread"]


def spread(values: Sequence[int] | None, axes: int, default: int) -> tuple[int, ...]:
    """Return one number per spatial axis, each at least ``default``: 1 for strides and dilations, 0 for padding.

    Raises:
        ValueError: another number of them, or one that is too small.

    >>> spread(None, 2, 1), spread([2, 3], 2, 1)
    ((1, 1), (2, 3))
    """
    found = tuple(values) if values is not None else (default,) * axes
    if len(found) != axes or min(found, default=default) < default:
        raise ValueError(f"found {list(found)}; expected {axes} numbers of {default} or more")
    return found


def only(**found: Any) -> None:
    """Raise ValueError for an attribute that is not at the only value understood, ``name=(value, wanted)``."""
    for name, (value, wanted) in found.items():
        if value != wanted:
            raise ValueError(f"found {name} of {value!r}; expected {wanted!r}")


def _padding(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Any, auto_pad: str
) -> list[int]:
    """Return what :func:`torch.nn.functional.pad` wants: begin and end of each spatial axis, the last axis first."""
    axes = len(kernel)
    if auto_pad in ("NOTSET", "VALID"):
        both = spread(pads if auto_pad == "NOTSET" else None, 2 * axes, 0)
        return [side for axis in reversed(range(axes)) for side in (both[axis], both[axis + axes])]
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"found auto_pad of {auto_pad!r}; expected NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    result = []
    for axis in reversed(range(axes)):
        size = x.shape[axis + 2]
        covered = (-(-size // strides[axis]) - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        total = max(0, covered - size)
        small, large = total // 2, total - total // 2
        result += [small, large] if auto_pad == "SAME_UPPER" else [large, small]
    return result


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Conv, with the padding done apart where its two sides may differ."""
    axes = weight.ndim - 2
    kernel = weight.shape[2:]
    only(kernel_shape=(tuple(kernel_shape or kernel), tuple(kernel)))
    steps, gaps = spread(strides, axes, 1), spread(dilations, axes, 1)
    if group < 1:
        raise ValueError(f"found {group} groups; expected 1 or more")
    padded = F.pad(x, _padding(x, kernel, steps, gaps, pads, auto_pad))
    convolve: Callable[..., Any] = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    result: Tensor = convolve(padded, weight, bias, steps, 0, gaps, group)
    return result


def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """MaxPool; padding never wins."""
    only(storage_order=(storage_order, 0))
    axes = x.ndim - 2
    kernel, steps, gaps = spread(kernel_shape, axes, 1), spread(strides, axes, 1), spread(dilations, axes, 1)
    padded = F.pad(x, _padding(x, kernel, steps, gaps, pads, auto_pad), value=-math.inf)
    pool: Callable[..., Any] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
    result: Tensor = pool(padded, kernel, steps, 0, gaps, bool(ceil_mode))
    return result


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """AveragePool; padding counts only where ``count_include_pad`` says so."""
    axes = x.ndim - 2
    kernel, steps, gaps = spread(kernel_shape, axes, 1), spread(strides, axes, 1), (1,) * axes
    only(dilations=(spread(dilations, axes, 1), gaps))
    sides = _padding(x, kernel, steps, gaps, pads, auto_pad)
    pool: Callable[..., Any] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    result: Tensor = pool(F.pad(x, sides), kernel, steps, 0, bool(ceil_mode))
    if any(sides) and not count_include_pad:
        result = result / pool(F.pad(torch.ones_like(x), sides), kernel, steps, 0, bool(ceil_mode))
    return result
