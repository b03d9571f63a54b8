"""Operators on weights of their own, turned back into the layers they came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from nutlet.formats.onnx.windows import spread

__all__ = ["conv_layer", "dense_layer"]

Share = Callable[[Tensor], nn.Parameter]
"""Makes a tensor of the file a parameter; of one tensor the same parameter every time."""

_CONV: tuple[type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def conv_layer(attributes: dict[str, Any], weight: Tensor, bias: Tensor | None, share: Share) -> nn.Module | None:
    """Return a convolution with the weights ``(O, I / groups, ...)``, or None where torch has no such layer."""
    axes = weight.ndim - 2
    if axes not in (1, 2, 3) or attributes.get("auto_pad", "NOTSET") != "NOTSET" or weight.numel() == 0:
        return None
    pads = spread(attributes.get("pads"), 2 * axes, 0)
    groups = attributes.get("group", 1)
    kernel = tuple(weight.shape[2:])
    if pads[:axes] != pads[axes:] or groups < 1 or tuple(attributes.get("kernel_shape", kernel)) != kernel:
        return None
    layer: Any = _CONV[
        axes - 1
    ](
        weight.shape[1] * groups,
        weight.shape[0],
        kernel,  # type: ignore[arg-type]
        stride=spread(attributes.get("strides"), axes, 1),  # type: ignore[arg-type]
        padding=pads[:axes],  # type: ignore[arg-type]
        dilation=spread(attributes.get("dilations"), axes, 1),  # type: ignore[arg-type]
        groups=groups,
        bias=bias is not None,
        device="meta",  # its parameters are put in below
    )
    layer.weight = share(weight)
    if bias is not None:
        layer.bias = share(bias)
    return layer  # type: ignore[no-any-return]


def dense_layer(weight: Tensor, bias: Tensor | None, share: Share) -> nn.Linear:
    """Return a dense layer with the weights ``(outputs, inputs)``."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = share(weight)
    if bias is not None:
        layer.bias = share(bias)
    return layer
