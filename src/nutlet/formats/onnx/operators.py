"""The ONNX operators of classifiers, each as a function of torch tensors whose gradient is the usual one.

A function's parameters are the operator's inputs and, as keywords, its attributes: what is not among them is refused,
not ignored. Integer codes of quantized values are floating-point tensors here, so that gradients pass straight through
them (Bengio et al. 2013, arXiv:1308.3432). Semantics are those of opset 13 and later.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nutlet.formats.onnx.windows import average_pool, conv, max_pool, only

__all__ = ["OPERATORS", "quantize_without_rounding"]

_LARGEST_INTEGERS = 1 << 20
"""Elements that one tensor of integers may get by broadcasting; they are shapes and indices."""

Operator = Callable[..., Any]


def _ints(values: Tensor | Sequence[int]) -> list[int]:
    """Read a shape, axes or bounds, which the graph may have computed."""
    return [int(v) for v in (values.flatten().tolist() if isinstance(values, Tensor) else values)]


def _axes(x: Tensor, axes: Tensor | Sequence[int] | None) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axes is None else tuple(a % x.ndim for a in _ints(axes))


def _broadcast(*shapes: Sequence[int]) -> torch.Size:
    return torch.broadcast_shapes(*shapes)  # type: ignore[no-any-return, no-untyped-call]


def _elementwise(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def apply(*tensors: Tensor) -> Tensor:
        if not any(tensor.is_floating_point() for tensor in tensors):
            size = math.prod(_broadcast(*(tensor.shape for tensor in tensors)))
            if size > _LARGEST_INTEGERS:
                raise ValueError(f"found {size:,} integers; expected at most {_LARGEST_INTEGERS:,}")
        # What is computed from shapes is on the CPU, wherever the data are.
        place = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), torch.device("cpu"))
        return functools.reduce(function, (tensor.to(place) for tensor in tensors))

    return apply


def _divide(a: Tensor, b: Tensor) -> Tensor:
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def _reduction(function: Callable[..., Tensor]) -> Operator:
    def apply(
        x: Tensor,
        axes: Tensor | Sequence[int] | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        chosen = _axes(x, axes)
        if not chosen and noop_with_empty_axes:
            return x
        return function(x, chosen or tuple(range(x.ndim)), bool(keepdims))

    return apply


def _globally(function: Callable[..., Tensor]) -> Operator:
    def apply(x: Tensor) -> Tensor:
        return function(x, tuple(range(2, x.ndim)), True)

    return apply


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803  ONNX names it so
    transB: int = 0,  # noqa: N803
) -> Tensor:
    product = alpha * ((a.mT if transA else a) @ (b.mT if transB else b))
    return product if c is None else product + beta * c


def _batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    only(training_mode=(training_mode, 0))
    # Detached: a file may store equal tensors once, a bias and a mean of zeros.
    return F.batch_norm(x, mean.detach(), variance.detach(), scale, bias, False, 1 - momentum, epsilon)


def _layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    only(stash_type=(stash_type, 1))
    normal = F.layer_norm(x, x.shape[axis % x.ndim :], eps=epsilon) * scale
    return normal if bias is None else normal + bias


def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, None, None, scale, bias, eps=epsilon)


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else x.clamp(low, high)


def _pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, *, mode: str = "constant"
) -> Tensor:
    sides, chosen = _ints(pads), _axes(x, axes)
    if len(sides) != 2 * len(chosen):
        raise ValueError(f"found {len(sides)} pads; expected two for each of {len(chosen)} axes")
    begin, end = dict(zip(chosen, sides, strict=False)), dict(zip(chosen, sides[len(chosen) :], strict=True))
    flat = [side for axis in reversed(range(x.ndim)) for side in (begin.get(axis, 0), end.get(axis, 0))]
    if mode == "constant":
        padded = F.pad(x, flat)
        return padded if value is None else torch.where(F.pad(torch.ones_like(x), flat) > 0, padded, value)
    spatial = 2 * (x.ndim - 2)
    only(padding_of_batch_or_channels=(any(flat[spatial:]), False))
    return F.pad(x, flat[:spatial], mode={"reflect": "reflect", "edge": "replicate"}[mode])


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    begin, end = _ints(starts), _ints(ends)
    chosen = list(range(len(begin))) if axes is None else _axes(x, axes)
    jumps = [1] * len(begin) if steps is None else _ints(steps)
    for axis, first, last, step in zip(chosen, begin, end, jumps, strict=True):
        found = range(*slice(first, last, step).indices(x.shape[axis]))
        if step > 0:
            x = x[(slice(None),) * axis + (slice(found.start, max(found.start, found.stop), step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(found), dtype=torch.long, device=x.device))
    return x


def _reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    sizes = _ints(shape)
    if not allowzero:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze(tuple(a for a in _axes(x, axes) if axes is not None or x.shape[a] == 1))


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(a % rank for a in _ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(tuple(perm) if perm is not None else tuple(reversed(range(x.ndim))))


def _gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis = axis % x.ndim
    if not x.is_floating_point() and x.numel() // max(1, x.shape[axis]) * indices.numel() > _LARGEST_INTEGERS:
        raise ValueError(f"found more integers gathered than {_LARGEST_INTEGERS:,}; expected a shape")
    flat = indices.flatten().long()
    picked = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat).to(x.device))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _split(
    x: Tensor, split: Tensor | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> tuple[Tensor, ...]:
    if split is not None:
        return tuple(torch.split(x, _ints(split), axis))
    if not num_outputs or num_outputs < 1:
        raise ValueError("found no sizes to split into; expected `split` or `num_outputs`")
    return tuple(torch.split(x, -(-x.shape[axis] // num_outputs), axis))


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(_broadcast(x.shape, _ints(shape)))  # a view: nothing is allocated


def _constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    return (torch.zeros(()) if value is None else value.reshape(())).expand(_ints(shape))


def _cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    only(saturate=(saturate, 1))
    types = {1: torch.float32, 10: torch.float32, 11: torch.float32, 16: torch.float32, 6: torch.int64, 7: torch.int64}
    return x.to({**types, 9: torch.bool}[to])


def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _dropout(x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None, *, seed: int = 0) -> Tensor:
    return x  # as in evaluation


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Return one number, or one per channel, in a shape that broadcasts against ``x``."""
    values = values.to(x.device, torch.float32)
    return values.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)] if values.numel() > 1 else [])


def _quantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, saturate: int = 1, block_size: int = 0
) -> Tensor:
    only(saturate=(saturate, 1), block_size=(block_size, 0))
    codes = torch.iinfo(torch.uint8 if zero is None else zero.dtype)
    offset = torch.zeros(()) if zero is None else _along(zero, x, axis)
    inside = torch.clamp(x / _along(scale, x, axis), codes.min - offset, codes.max - offset)
    return inside + (inside.round() - inside).detach() + offset


def quantize_without_rounding(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, saturate: int = 1, block_size: int = 0
) -> Tensor:
    """QuantizeLinear that neither rounds nor clips; where the smallest code means 0 it stays the ReLU that it also is.

    Exporters leave a ReLU out before such a quantization.
    """
    only(saturate=(saturate, 1), block_size=(block_size, 0))
    smallest = torch.iinfo(torch.uint8 if zero is None else zero.dtype).min
    offset = torch.zeros(()) if zero is None else _along(zero, x, axis)
    codes = x / _along(scale, x, axis)
    return torch.where(offset == smallest, codes.relu(), codes) + offset


def _dequantize(
    codes: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0
) -> Tensor:
    only(block_size=(block_size, 0))
    values = codes.float() if zero is None else codes.float() - _along(zero, codes, axis)
    return values * _along(scale, codes, axis)


def _one(function: Callable[[Tensor], Tensor]) -> Operator:
    """Let ``function`` see one tensor and none of the options that torch has for it."""
    return lambda x: function(x)


def _along_axis(function: Callable[[Tensor, int], Tensor]) -> Operator:
    return lambda x, *, axis=-1: function(x, axis)


OPERATORS: dict[str, Operator] = {
    "Abs": _one(torch.abs),
    "Add": _elementwise(operator.add),
    "And": _elementwise(torch.logical_and),
    "AveragePool": average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda *tensors, axis: torch.cat(tensors, axis),
    "ConstantOfShape": _constant_of_shape,
    "Conv": conv,
    "DequantizeLinear": _dequantize,
    "Div": _elementwise(_divide),
    "Dropout": _dropout,
    "Elu": lambda x, *, alpha=1.0: F.elu(x, alpha),
    "Equal": _elementwise(torch.eq),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda x, *, approximate="none": F.gelu(x, approximate=approximate),
    "Gemm": _gemm,
    "GlobalAveragePool": _globally(torch.mean),
    "GlobalMaxPool": _globally(torch.amax),
    "Greater": _elementwise(torch.gt),
    "GreaterOrEqual": _elementwise(torch.ge),
    "HardSigmoid": lambda x, *, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "HardSwish": _one(F.hardswish),
    "Identity": lambda x: x,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, *, alpha=0.01: F.leaky_relu(x, alpha),
    "Less": _elementwise(torch.lt),
    "LessOrEqual": _elementwise(torch.le),
    "Log": _one(torch.log),
    "LogSoftmax": _along_axis(torch.log_softmax),
    "MatMul": lambda a, b: a @ b,
    "Max": _elementwise(torch.maximum),
    "MaxPool": max_pool,
    "Min": _elementwise(torch.minimum),
    "Mish": _one(F.mish),
    "Mul": _elementwise(operator.mul),
    "Neg": _one(torch.neg),
    "Not": lambda x: torch.logical_not(x),
    "Or": _elementwise(torch.logical_or),
    "PRelu": lambda x, slope: torch.where(x < 0, slope * x, x),
    "Pad": _pad,
    "Pow": _elementwise(torch.pow),
    "QuantizeLinear": _quantize,
    "Reciprocal": _one(torch.reciprocal),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
    "Relu": _one(F.relu),
    "Reshape": _reshape,
    "Selu": lambda x, *, alpha=1.6732632, gamma=1.0507010: gamma * F.elu(x, alpha),
    "Shape": _shape,
    "Sigmoid": _one(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _along_axis(torch.softmax),
    "Softplus": _one(F.softplus),
    "Split": _split,
    "Sqrt": _one(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _elementwise(operator.sub),
    "Sum": _elementwise(operator.add),
    "Tanh": _one(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda condition, a, b: torch.where(condition, a, b),
}
"""By the name that the ONNX standard gives them; ``Constant`` is read with the weights."""
