"""What becomes of channels at layers with a weight: they read channels, and make others."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nutlet.graph.coupling.follow import Call, Follower
from nutlet.graph.coupling.numbers import NOTHING, varying
from nutlet.graph.coupling.rules import by_groups, rule, unknown
from nutlet.graph.nested import tensors

__all__: list[str] = []


@rule("linear")
def linear(f: Follower, call: Call) -> Any:
    """Read along the last dimension, make anew."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    last = x.ndim - 1
    if f.passes_through(x, last):
        # Tokens are mixed, each channel by itself; what the layer makes lies beside channels and stays.
        for dim in (0, 1):
            f.ledger.fix(f.axis(call, weight, dim), f"{call} works along another dimension than channels")
        return f.put(call.run(), f.of(x))
    read = f.along(x, last)
    f.axis(call, weight, 1, read)
    made = f.axis(call, weight, 0)
    _join_bias(f, bias, made)
    call.put(0, "input", f.silent(x))
    return f.put(call.run(), made)


@rule("conv1d", "conv2d", "conv3d")
def convolution(f: Follower, call: Call) -> Any:
    """Read along dimension 1, in groups, and make anew."""
    return _convolution(f, call, call.get(6, "groups", 1), outputs=0)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed(f: Follower, call: Call) -> Any:
    """Read along dimension 1, in groups, and make anew; the weight holds inputs first."""
    return _convolution(f, call, call.get(6, "groups", 1), outputs=1)


def _convolution(f: Follower, call: Call, groups: int, outputs: int) -> Any:
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    beside = (1,) * (x.ndim - 2)
    if varying(f.of(x)) - {0, 1} and f.passes_through(x, 1):
        f.ledger.fix(f.of(x), f"{call} mixes channels that lie side by side")
        return f.put(call.run(), NOTHING)
    read = f.along(x, 1)
    width = len(read) // groups
    kind = "dense" if groups == 1 else "depthwise" if width == 1 else "grouped"
    if kind == "grouped" and outputs == 0 and len(weight) == groups:
        kind = "one output each"
    kind = f.as_before(call, kind)
    if kind == "dense":
        f.axis(call, weight, 1 - outputs, read)
        made = f.axis(call, weight, outputs)
    elif kind == "depthwise":
        made = _depthwise(f, call, weight, outputs, read)
    elif kind == "one output each":  # a group goes as a whole
        made = f.axis(call, weight, 0)
        f.ledger.join(made, f.join_along(read.view(groups, -1), {1}).flatten())
    else:
        made = _grouped(f, call, weight, outputs, read, groups)
    _join_bias(f, bias, made)
    call.put(0, "input", f.silent(x))
    return f.put(call.run(), made.view(1, -1, *beside))


def _depthwise(f: Follower, call: Call, weight: Tensor, outputs: int, read: Tensor) -> Tensor:
    """One group for each channel: the groups go with their channel, and so does what they make."""
    made = f.axis(call, weight, 0)
    if outputs == 1:  # the first axis is that of the channels read, one for each group
        f.ledger.join(made, read)
        if weight.shape[1] > 1:
            f.ledger.fix(read, f"{call} makes more than one channel of each")
        return read.repeat_interleave(weight.shape[1])
    f.ledger.join(made, read.repeat_interleave(len(made) // len(read)))
    return made


def _grouped(f: Follower, call: Call, weight: Tensor, outputs: int, read: Tensor, groups: int) -> Tensor:
    """Each group loses the same channels, of those it reads and of those it makes."""
    read = by_groups(f, read, groups)
    if outputs == 0:
        f.axis(call, weight, 1, read[: len(read) // groups])
        made = f.axis(call, weight, 0)
        by_groups(f, made, groups)
        return made
    f.axis(call, weight, 0, read)
    return f.axis(call, weight, 1).repeat(groups)


def _join_bias(f: Follower, bias: Tensor | None, made: Tensor) -> None:
    if bias is not None:
        f.ledger.join(f.of(bias), made)


@rule("embedding")
def embedding(f: Follower, call: Call) -> Any:
    """Make channels along the last dimension."""
    return f.put(call.run(), f.axis(call, call.get(1, "weight"), 1))


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(f: Follower, call: Call) -> Any:
    """Read along the last dimension; make hidden channels, each by as many rows as there are gates."""
    if len(call.args) != 9:
        return unknown(f, call)  # packed sequences
    x, state, weights, has_bias, layers, _, _, both, _ = call.args
    directions, each = 2 if both else 1, 4 if has_bias else 2
    if len(weights) != each * layers * directions or any(id(weight) not in f.names for weight in weights):
        return unknown(f, call)  # projections, or weights that something else makes
    read, silenced = f.along(x, x.ndim - 1), []
    # One width holds for all layers and directions: each loses the same channels.
    made = f.axis(call, weights[1], 1)
    for start in range(0, len(weights), each):
        silenced += _gates(f, call, weights[start : start + each], read, made)
        if start // each % directions == directions - 1:
            read = made.repeat(directions)
    states = made[None, None]  # (layers * directions, 1, hidden)
    for tensor in tensors(state):
        f.ledger.join(f.of(tensor), states)
    call.put(2, "params", silenced)
    result = call.run()
    f.put(result[0], read)
    f.put(result[1:], states)
    return result


def _gates(f: Follower, call: Call, weights: list[Tensor], read: Tensor, made: Tensor) -> list[Tensor]:
    """Join the rows of all gates with the channels that they make; return the weights as they are to be read."""
    rows = made.repeat(len(weights[0]) // len(made))
    for weight, numbers in zip(weights, (read, made), strict=False):
        f.axis(call, weight, 0, rows)
        f.axis(call, weight, 1, numbers)
    for bias in weights[2:]:
        f.ledger.join(f.of(bias), rows)
    # What a layer gives itself and the next never leaves the call: it is silenced in the weights that read it.
    return [f.silent(weights[0], read[None]), f.silent(weights[1], made[None]), *weights[2:]]
