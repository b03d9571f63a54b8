"""What becomes of channels at each kind of call.

A rule makes the call and puts numbers beside what it gives. Data movement needs no knowledge of the call: it is
repeated on the numbers. What no rule knows fixes the channels that go into it, and gives none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from nutlet.graph.coupling.follow import Call, Follower, Rule
from nutlet.graph.coupling.numbers import NOTHING, aligned, compact, varying
from nutlet.graph.nested import rebuild, tensors

__all__ = ["RULES", "rule", "unknown"]

RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of operations."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def unknown(f: Follower, call: Call) -> Any:
    """Fix the channels of all tensors."""
    result = call.run()
    if any(True for _ in tensors(result)):
        for tensor in call.tensors:
            f.ledger.fix(f.of(tensor), f"{call} is a call through which channels are not followed")
    return f.put(result, NOTHING)


@rule(
    *("abs", "acos", "add", "addcdiv", "addcmul", "asin", "atan", "bernoulli", "celu", "clamp", "clamp_max"),
    *("clamp_min", "clip", "clone", "contiguous", "copysign", "cos", "cosh", "cpu", "cuda", "detach", "div", "divide"),
    *("double", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "elu", "eq"),
    *("erf", "erfc", "exp", "exp2", "expm1", "float", "floor", "floor_divide", "frac", "ge", "gelu", "gt", "half"),
    *("hardshrink", "hardsigmoid", "hardswish", "hardtanh", "heaviside", "isfinite", "isinf", "isnan", "le"),
    *("leaky_relu", "lerp", "log", "log10", "log1p", "log2", "logical_and", "logical_not", "logical_or", "logit"),
    *("logsigmoid", "lt", "masked_fill", "maximum", "minimum", "mish", "mul", "multiply", "nan_to_num", "ne", "neg"),
    *("negative", "ones_like", "pos", "pow", "prelu", "rand_like", "randn_like", "reciprocal", "relu", "relu6"),
    *("requires_grad", "round", "rpow", "rrelu", "rsqrt", "selu", "sgn", "sigmoid", "sign", "silu", "sin", "sinh"),
    *("softplus", "softshrink", "softsign", "sqrt", "square", "sub", "subtract", "tan", "tanh", "tanhshrink", "tensor"),
    *("threshold", "to", "tril", "triu", "true_divide", "trunc", "type", "type_as", "where", "xlogy", "zeros_like"),
    *("full_like", "empty_like", "bfloat16", "long", "int", "bool", "invert", "and", "or", "remainder", "fmod"),
    *("log_sigmoid", "rdiv", "rtruediv", "bitwise_not", "fill", "zero", "copy", "atan2"),
)
def elementwise(f: Follower, call: Call) -> Any:
    """Join the numbers of all tensors."""
    operands = call.tensors
    if call.op == "prelu":
        x, slope = operands
        operands = [x, slope.view(-1, *(1,) * (x.ndim - 2))] if slope.numel() > 1 else [x]
        numbers = f.of(slope).reshape(-1, *(1,) * (x.ndim - 2)) if slope.numel() > 1 else NOTHING
        return f.put(call.run(), merged(f, call, [(f.of(x), x), (numbers, operands[-1])]))
    numbers = merged(f, call, [(f.of(tensor), tensor) for tensor in operands])
    return f.put(call.run(), numbers)


def merged(f: Follower, call: Call, operands: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Join numbers of tensors that broadcast together, and return those of the result.

    A single number that meets many (the one channel of a gate, a factor for all) is fixed instead: joined, it would tie
    all of them together. So are numbers along different dimensions, as of tokens and of channels.
    """
    result = NOTHING
    for given, tensor in operands:
        numbers = aligned(given, max(result.ndim, tensor.ndim, given.ndim))
        result = _met(f, call, aligned(result, numbers.ndim), numbers)
    return result


def _met(f: Follower, call: Call, one: Tensor, other: Tensor) -> Tensor:
    if not bool(one.any()):
        return other
    if not bool(other.any()):
        return one
    ledger = f.ledger
    if ledger.only_elements(one) and not ledger.only_elements(other):
        one, other = other, one
    element = ledger.only_elements(other) and not ledger.only_elements(one)
    first, second = varying(one), varying(other)
    apart = bool(first - second and second - first)
    reason = f"one value meets many channels in {call}"
    # Of the elements of a vector that each head is multiplied with none goes with a head.
    if apart or (first and not second) or (second < first and element and f.whole_heads(call)):
        ledger.fix(other, reason)
        if element or not apart:
            return one
    if apart or (second and not first):
        ledger.fix(one, reason)
        return other
    ledger.join(one, other)
    if first < second and bool((one > 0).all()):
        return one  # what is joined along a dimension need not vary there
    if second < first and bool((other > 0).all()):
        return other
    return torch.where(one > 0, one, other)


_NEW_SHAPES = ("view", "reshape", "unflatten", "view_as", "reshape_as")


@rule(
    *("as_tensor", "atleast_3d", "broadcast_to", "cat", "channel_shuffle", "column_stack", "concat", "concatenate"),
    *("diagonal", "expand", "expand_as", "flatten", "flip", "fliplr", "flipud", "gather", "get", "getitem"),
    *("hsplit", "hstack", "index_select", "movedim", "moveaxis", "narrow", "permute", "pixel_shuffle"),
    *("pixel_unshuffle", "ravel", "repeat", "repeat_interleave", "reshape", "reshape_as", "roll", "rot90", "select"),
    *("squeeze", "stack", "swapaxes", "swapdims", "t", "take_along_dim"),
    *("tile", "transpose", "unbind", "unflatten", "unsqueeze", "view", "view_as", "vsplit", "vstack"),
)
def movement(f: Follower, call: Call) -> Any:
    """Repeat the call on the numbers."""
    numbers = on_numbers(f, call)
    if call.op in _NEW_SHAPES:
        if not f.whole_heads(call):
            numbers = [_even_split(f, call, each) for each in numbers]
        f.shaped(call, numbers[0])
    result = call.run()
    for tensor, found in zip(tensors(result), numbers, strict=True):
        f.put(tensor, found)
    return result


def on_numbers(f: Follower, call: Call) -> list[Tensor]:
    """Repeat a call on the numbers of its tensors and return those of its results."""

    def beside(tensor: Tensor) -> Tensor:
        moved = tensor.is_floating_point() or tensor in f.beside
        return f.of(tensor).expand(tensor.shape) if moved else tensor

    if not any(bool(varying(f.of(t))) or bool(f.of(t).any()) for t in call.tensors if t.is_floating_point()):
        return [NOTHING for _ in tensors(call.run())]
    args, kwargs = rebuild(call.args, beside), rebuild(call.kwargs, beside)
    return [compact(found) for found in tensors(_repeated(call, *args, **kwargs))]


def _repeated(call: Call, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Make a call with other tensors; what was expanded cannot be viewed, but reshaped."""
    if call.op == "view" and isinstance(x, Tensor):
        x = x.contiguous()
    return call.func(x, *args, **kwargs)


def _even_split(f: Follower, call: Call, numbers: Tensor) -> Tensor:
    """Join channels of parts that a new shape splits a dimension into: each loses the same, or shapes do not fit."""
    x = call.tensors[0]
    before = f.of(x)
    for dim in varying(before):
        place = torch.arange(x.shape[dim]).view(-1, *(1,) * (x.ndim - dim - 1)).expand(x.shape)
        reached = sorted(varying(compact(_repeated(call, place, *call.args[1:], **call.kwargs))))
        if len(reached) > 1:
            numbers = f.join_along(numbers, {d for d in reached[:-1] if numbers.shape[d] > 1})
    return numbers


@rule("chunk", "split", "split_with_sizes", "tensor_split")
def parts(f: Follower, call: Call) -> Any:
    """Repeat the call on the numbers; parts of the same size lose the same channels, or they do not stay that."""
    numbers = on_numbers(f, call)
    dim = call.get(2, "dim", 0)
    if call.op != "tensor_split" and isinstance(call.get(1, "split_size_or_sections"), (tuple, list)):
        f.parts[call.number] = [aligned(each, call.tensors[0].ndim) for each in numbers]
    result = call.run()
    even = len({part.shape for part in result}) == 1 and all(each.numel() > 1 for each in numbers)
    if f.as_before(call, even) and not f.whole_heads(call) and f.of(call.tensors[0]).shape[dim] > 1:
        for each in numbers[1:]:
            f.ledger.join(numbers[0], each)
        numbers = [numbers[0]] * len(numbers)
    for tensor, found in zip(result, numbers, strict=True):
        f.put(tensor, found)
    return result


@rule("glu")
def gated(f: Follower, call: Call) -> Any:
    """One half is the gate of the other: both lose the same channels."""
    x, result = call.tensors[0], call.run()
    dim = call.get(1, "dim", -1) % x.ndim
    numbers = f.of(x)
    if numbers.shape[dim] > 1:
        numbers, gate = numbers.chunk(2, dim)
        f.ledger.join(numbers, gate)
    return f.put(result, numbers)


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
def new(f: Follower, call: Call) -> Any:
    """A constant has no channels."""
    return f.put(call.run(), NOTHING)


@rule("setitem")
def written(f: Follower, call: Call) -> Any:
    """Write the numbers as the values are."""
    x, place, value = call.args
    numbers = f.of(x).expand(x.shape).clone()
    numbers[place] = f.of(value).expand(value.shape) if isinstance(value, Tensor) else 0
    call.run()
    f.put(x, numbers)


@rule("pad")
def pad(f: Follower, call: Call) -> Any:
    """Keep the numbers where they do not vary; channels beside which others are put stay in their place."""
    x, widths, mode = call.tensors[0], list(call.get(1, "pad")), call.get(2, "mode", "constant")
    numbers, result = f.of(x), call.run()
    for k in range(len(widths) // 2):
        dim = x.ndim - 1 - k
        if numbers.shape[dim] == 1:
            continue
        if mode != "constant":
            f.ledger.fix(numbers, f"{call} repeats some of them")
            return f.put(result, NOTHING)
        edges = list(numbers.shape)
        added = []
        for width in widths[2 * k : 2 * k + 2]:
            edges[dim] = max(width, 0)
            fresh = f.ledger.issue(edges[dim])
            f.ledger.fix(fresh, f"{call} puts as many zeros beside channels whatever their number")
            added.append(fresh.view(-1, *(1,) * (x.ndim - dim - 1)).expand(edges))
        start = max(-widths[2 * k], 0)
        stop = numbers.shape[dim] + min(widths[2 * k + 1], 0)
        numbers = torch.cat([added[0], numbers.narrow(dim, start, stop - start), added[1]], dim)
    return f.put(result, numbers)


@rule(
    *(f"{kind}_pool{n}d" for kind in ("avg", "max", "lp", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)),
    *(f"{kind}_pool{n}d_with_indices" for kind in ("max", "adaptive_max") for n in (1, 2, 3)),
    *("interpolate", "upsample", "grid_sample", "upsample_nearest", "upsample_bilinear", "unfold"),
)
def spatial(f: Follower, call: Call) -> Any:
    """Keep the numbers, which must not vary over what is pooled."""
    x = call.tensors[0]
    if call.op == "unfold" and call.func is Tensor.unfold:
        return movement(f, call)
    if call.op == "unfold":
        return _windows(f, call)
    numbers = f.of(x)
    pooled = int(call.op.partition("_pool")[2][0]) if "_pool" in call.op else x.ndim - 2
    if varying(numbers) & set(range(x.ndim - pooled, x.ndim)):
        f.ledger.fix(numbers, f"{call} mixes channels that lie side by side")
        numbers = NOTHING
    return f.put(call.run(), numbers)


def _windows(f: Follower, call: Call) -> Any:
    """The columns of :func:`torch.nn.functional.unfold`: each channel once for each place of a window."""
    x, result = call.tensors[0], call.run()
    numbers = f.of(x)
    if varying(numbers) - {1}:
        f.ledger.fix(numbers, f"{call} mixes channels that lie side by side")
        return f.put(result, NOTHING)
    each = result.shape[1] // x.shape[1]
    return f.put(result, numbers.flatten(1)[:, :, None].expand(1, -1, each).reshape(1, -1, 1))


_KEEPING = ("softmax", "log_softmax", "softmin", "cumsum", "cumprod", "normalize", "sort", "argsort", "renorm")
_PLACING = ("argmax", "argmin", "max", "min", "median")
_DIM_AT = {"norm": 2, "normalize": 2, "vector_norm": 2, "renorm": 2}


@rule(
    *("all", "amax", "amin", "any", "argmax", "argmin", "aminmax", "count_nonzero", "logsumexp", "max", "mean"),
    *("median", "min", "nanmean", "nansum", "norm", "prod", "std", "std_mean", "sum", "var", "var_mean"),
    *("vector_norm", *_KEEPING),
)
def reduction(f: Follower, call: Call) -> Any:
    """Take channels together where they lie along what is reduced; keep their numbers elsewhere."""
    if len(call.tensors) > 1:
        return elementwise(f, call)  # max(a, b)
    x = call.tensors[0]
    dims = _dims(call, x)
    numbers = f.of(x)
    taken = varying(numbers) & dims
    kept = varying(numbers) - dims
    if kept:
        numbers = f.join_along(numbers, taken)
        result = call.run()
    elif taken:
        if call.op in ("sort", "argsort"):
            f.ledger.fix(numbers, f"{call} puts channels in another order")
        if len(taken) > 1:
            f.ledger.fix(numbers, f"{call} takes them together in more than one direction")
        (dim, *_) = taken
        result = f.across(
            x, dim, lambda pick: call.func(pick(x, dim), *call.args[1:], **call.kwargs), keeps=call.op in _KEEPING
        )
        if call.op in _PLACING:
            for tensor in tensors(result):
                if tensor.dtype == torch.long:
                    f.places[tensor] = f.of(x)
        if call.op not in _KEEPING:
            numbers = NOTHING
    else:
        result = call.run()
    if call.op == "softmax":
        f.scored |= set(numbers.flatten().tolist())
    if call.op in _KEEPING or numbers is NOTHING:
        return f.put(result, numbers)
    for tensor in tensors(result):
        f.put(tensor, numbers if tensor.ndim == x.ndim else _without(numbers, dims))
    return result


def _dims(call: Call, x: Tensor) -> set[int]:
    given = call.get(_DIM_AT.get(call.op, 1), "dim", call.kwargs.get("axis"))
    if call.op == "normalize" and given is None:
        given = 1
    if call.op == "softmax" and given is None:
        given = 0 if x.ndim in (0, 1, 3) else 1  # as torch takes it
    if given is None or isinstance(given, (torch.dtype, bool)) or given == ():
        return set(range(x.ndim))
    return {d % x.ndim for d in (given if isinstance(given, (tuple, list)) else [given])}


def _without(numbers: Tensor, dims: set[int]) -> Tensor:
    for dim in sorted(dims, reverse=True):
        numbers = numbers.select(dim, 0)
    return numbers


@rule("batch_norm", "instance_norm")
def batch_norm(f: Follower, call: Call) -> Any:
    """Join each channel with its gain, shift and statistics."""
    x = call.tensors[0]
    numbers = f.along(x, 1)
    for name, place in (("running_mean", 1), ("running_var", 2), ("weight", 3), ("bias", 4)):
        if isinstance(own := call.get(place, name), Tensor):
            f.ledger.join(f.of(own), numbers)
    return f.put(call.run(), f.of(x))


@rule("layer_norm", "rms_norm")
def layer_norm(f: Follower, call: Call) -> Any:
    """Take the channels together along the last dimensions; gain and shift go with them."""
    x, shape = call.tensors[0], tuple(call.get(1, "normalized_shape"))
    numbers = f.of(x)
    dims = set(range(x.ndim - len(shape), x.ndim))
    own = [t for t in (call.get(2, "weight"), call.get(3, "bias")) if isinstance(t, Tensor)]
    merged(f, call, [(numbers, x), *((f.of(t), t) for t in own)])
    if varying(numbers) - dims and varying(numbers) & dims:
        numbers = (
            f.join_along(numbers, varying(numbers) & dims)
            if f.whole_heads(call)
            else f.join_along(numbers, varying(numbers) - dims)
        )
    taken = varying(numbers) & dims
    if len(taken) != 1:
        if taken:
            f.ledger.fix(numbers, f"{call} takes them together in more than one direction")
        return f.put(call.run(), numbers)
    (dim,) = taken

    def run(pick: Any) -> Any:
        thin = pick(x, dim)
        call.put(1, "normalized_shape", tuple(thin.shape[x.ndim - len(shape) :]))
        for place, name in ((2, "weight"), (3, "bias")):
            call.put(place, name, pick(call.get(place, name), dim - x.ndim))
        return call.func(thin, *call.args[1:], **call.kwargs)

    return f.put(f.across(x, dim, run), numbers)


@rule("group_norm")
def group_norm(f: Follower, call: Call) -> Any:
    """Let each group lose the same channels; gain and shift go with them."""
    x, groups = call.tensors[0], call.get(1, "num_groups")
    numbers = by_groups(f, f.along(x, 1), groups)
    own = {place: call.get(place, name) for place, name in ((2, "weight"), (3, "bias"))}
    for tensor in own.values():
        if isinstance(tensor, Tensor):
            f.ledger.join(f.of(tensor), numbers)

    def run(pick: Any) -> Any:
        for place, name in ((2, "weight"), (3, "bias")):
            call.put(place, name, pick(call.get(place, name), 0))
        return call.func(pick(x, 1), *call.args[1:], **call.kwargs)

    return f.put(f.across(x, 1, run), numbers.view(1, -1, *(1,) * (x.ndim - 2)))


def by_groups(f: Follower, numbers: Tensor, groups: int) -> Tensor:
    """Join the channels at the same place of each group, and return the first of each in the place of all."""
    if groups == 1 or len(numbers) == groups:
        return numbers
    first = f.join_along(numbers.view(groups, -1), {0})
    return first.expand(groups, -1).flatten()
