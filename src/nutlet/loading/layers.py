"""ATen calls on parameters, turned back into the layers they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Made", "layer_for"]

_CONV: dict[str, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}
_NORM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True)
class Made:
    """A layer, where it belongs, and what it was made from: calls with equal keys are one layer used twice."""

    path: str
    key: tuple[Any, ...]
    module: nn.Module


def layer_for(
    target: str, named: Mapping[str, Any], names: Mapping[str, str], tensors: Mapping[str, Tensor], rank: int
) -> Made | None:
    """Return the layer that one call of an exported graph stands for, or None where it is not a plain layer.

    Args:
        target: ``torch.ops.aten.conv2d.default`` and the like.
        named: arguments of the call by name, as in the file; those left at their default are absent.
        names: value name to parameter or buffer name.
        tensors: parameters and buffers by name.
        rank: number of axes of the call's input, batch included.
    """
    operation = target.removeprefix("torch.ops.aten.").partition(".")[0]
    if operation not in (*_CONV, "linear", "batch_norm"):
        return None
    weight, bias = _tensor(named, "weight", names), _tensor(named, "bias", names)
    if weight is None or not weight.endswith(".weight") or (bias is not None and not bias.endswith(".bias")):
        return None
    if not isinstance(tensors[weight], nn.Parameter) or (bias and not isinstance(tensors[bias], nn.Parameter)):
        return None
    if bias is None and named.get("bias", {"as_none": True}) != {"as_none": True}:
        return None  # a bias that is computed
    # With tied weights the export writes one name for both, but the biases keep theirs.
    path = (bias or weight).rpartition(".")[0]
    if operation == "batch_norm":
        module: nn.Module | None = _batch_norm(named, names, tensors, rank)
    elif operation == "linear":
        outputs, inputs = tensors[weight].shape
        module = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    else:
        module = _conv(_CONV[operation], named, tensors[weight], bias is not None)
    if module is None:
        return None
    module.weight = tensors[weight]
    if bias is not None:
        module.bias = tensors[bias]
    options = {name: value for name, value in named.items() if name not in ("input", "weight", "bias")}
    return Made(path, (operation, weight, bias, repr(sorted(options.items()))), module)


def _tensor(named: Mapping[str, Any], argument: str, names: Mapping[str, str]) -> str | None:
    """Return the parameter or buffer that an argument reads, or None where it reads none."""
    value = named.get(argument, {})
    value = value.get("as_optional_tensor", value)
    return names.get(value["as_tensor"]["name"]) if "as_tensor" in value else None


def _conv(
    kind: type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d], named: Mapping[str, Any], weight: Tensor, bias: bool
) -> nn.Module | None:
    axes = weight.ndim - 2
    groups = named.get("groups", {"as_int": 1}).get("as_int")
    stride, dilation = (_spread(named.get(name), axes, 1) for name in ("stride", "dilation"))
    padding = named.get("padding", {})
    zeros = padding["as_string"] if "as_string" in padding else _spread(padding, axes, 0)
    if groups is None or stride is None or dilation is None or zeros is None:
        return None
    return kind(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        stride=stride,  # type: ignore[arg-type]
        padding=zeros,  # type: ignore[arg-type]
        dilation=dilation,  # type: ignore[arg-type]
        groups=groups,
        bias=bias,
        device="meta",  # its parameters are put in by the caller
    )


def _spread(argument: Mapping[str, Any] | None, axes: int, default: int) -> tuple[int, ...] | None:
    """Read a list of integers, one per spatial axis; None where it is no list of plain integers."""
    values = argument.get("as_ints") if argument else [default]
    if argument is not None and not argument:
        values = [default]
    if values is None or len(values) not in (1, axes):
        return None
    return tuple(values) * axes if len(values) == 1 else tuple(values)


def _batch_norm(
    named: Mapping[str, Any], names: Mapping[str, str], tensors: Mapping[str, Tensor], rank: int
) -> nn.Module | None:
    mean, variance = _tensor(named, "running_mean", names), _tensor(named, "running_var", names)
    training = named.get("training", {}).get("as_bool", True)
    if mean is None or variance is None or training or rank not in _NORM or _tensor(named, "bias", names) is None:
        return None
    features = len(tensors[mean])
    module = _NORM[rank](features, eps=named["eps"]["as_float"], momentum=named["momentum"]["as_float"])
    module.running_mean, module.running_var = tensors[mean], tensors[variance]
    counter = tensors.get(mean.removesuffix("running_mean") + "num_batches_tracked")
    if counter is not None:
        module.num_batches_tracked = counter.clone().to(torch.int64)
    return module
