"""What becomes of channels where two tensors are multiplied as matrices: attention, above all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nutlet.graph.coupling.follow import Call, Follower
from nutlet.graph.coupling.numbers import NOTHING, aligned, compact, first_along, varying
from nutlet.graph.coupling.rules import merged, rule, unknown

__all__: list[str] = []


@rule("matmul", "bmm", "mm", "baddbmm", "addmm")
def matmul(f: Follower, call: Call) -> Any:
    """Follow ``(..., m, k) @ (..., k, n)``."""
    a, b = call.tensors[-2:]
    if (call.op in ("baddbmm", "addmm") and bool(f.of(call.tensors[0]).any())) or min(a.ndim, b.ndim) < 2:
        return unknown(f, call)
    ndim = max(a.ndim, b.ndim)
    batch = list(range(ndim - 2))
    first, second = [*batch[ndim - a.ndim :], ndim, -1], [*batch[ndim - b.ndim :], -1, ndim + 1]
    return product(f, call, [(a, first), (b, second)], [*batch, ndim, ndim + 1])


@rule("einsum")
def einsum(f: Follower, call: Call) -> Any:
    """Follow an equation of two tensors whose letters are all different within a term."""
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    terms, arrow, out = str(equation).replace(" ", "").partition("->")
    inputs = terms.split(",")
    if len(inputs) != 2 or not arrow or "." in equation or any(len(set(t)) < len(t) for t in (*inputs, out)):
        return unknown(f, call)
    named = [(tensor, [ord(letter) for letter in term]) for tensor, term in zip(operands, inputs, strict=True)]
    return product(f, call, named, [ord(letter) for letter in out])


def product(f: Follower, call: Call, operands: list[tuple[Tensor, list[int]]], out: list[int]) -> Any:
    """Follow a sum of products of two tensors over the dimensions that the result does not have.

    Args:
        f: the walk.
        call: that multiplies.
        operands: each with a name for each of its dimensions.
        out: the names of the dimensions of the result.
    """
    (a, first), (b, second) = operands
    summed = [name for name in first if name in second and name not in out]
    numbers = [f.of(a), f.of(b)]
    for name in summed:
        _contracted(f, call, a, first.index(name), b, second.index(name))
    result = call.run() if not summed else _silenced(f, call, a, b)
    placed = []
    for own, names in zip(numbers, (first, second), strict=True):
        if f.whole_heads(call):
            own = f.join_along(own, {d for d in varying(own) if not (names[d] in first and names[d] in second)})
        taken = {d for d in varying(own) if names[d] not in out}
        passing = bool(varying(own) - taken)
        own = f.join_along(own, taken) if passing else torch.zeros_like(first_along(own, taken))
        shape = [own.shape[names.index(name)] if name in names else 1 for name in out]
        order = [names.index(name) for name in out if name in names]
        kept = own
        for d in sorted(set(range(own.ndim)) - set(order), reverse=True):
            kept = kept.select(d, 0)
        ranks = sorted(order)
        placed.append(kept.permute([ranks.index(d) for d in order]).reshape(shape))
    for own in placed:
        _note_heads(f, call, own)
    rows, columns = map(varying, placed)
    f.products.setdefault(call.path, "")
    if rows - columns and columns - rows:
        f.products[call.path] = f"{call} multiplies channels with channels"
    return f.put(result, merged(f, call, [(own, result) for own in placed]))


def _contracted(f: Follower, call: Call, a: Tensor, at: int, b: Tensor, bt: int) -> None:
    one, other = f.of(a), f.of(b)
    if f.whole_heads(call):
        return  # the channels of each head are joined, and heads where their products meet
    if one.shape[at] > 1 and other.shape[bt] > 1:
        f.ledger.join(_line(f, one, at), _line(f, other, bt))
    elif one.shape[at] > 1 or other.shape[bt] > 1:
        numbers = one if one.shape[at] > 1 else other
        f.ledger.fix(numbers, f"{call} multiplies them with as many values that stay")


def _note_heads(f: Follower, call: Call, scores: Tensor) -> None:
    """Take note of the numbers of heads, where values are mixed by scores that a softmax was taken of."""
    numbers = [number for number in scores.flatten().tolist() if number in f.scored - {0}]
    if numbers:
        f.attention.setdefault(call.path, list(dict.fromkeys(numbers)))


def _line(f: Follower, numbers: Tensor, dim: int) -> Tensor:
    """Return the numbers along a dimension, those at the same place joined."""
    rest = varying(numbers) - {dim}
    return f.join_along(numbers, rest).flatten()


def _silenced(f: Follower, call: Call, a: Tensor, b: Tensor) -> Any:
    quiet = {id(a): f.silent(a), id(b): f.silent(b)}

    def put(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(put(item) for item in value)
        return quiet.get(id(value), value) if isinstance(value, Tensor) else value

    return call.func(*put(call.args), **{key: put(value) for key, value in call.kwargs.items()})


@rule("scaled_dot_product_attention")
def attention(f: Follower, call: Call) -> Any:
    """Follow queries and keys, which are multiplied, and values, which are mixed."""
    q, k, v = call.get(0, "query"), call.get(1, "key"), call.get(2, "value")
    numbers = [compact(f.of(x)) for x in (q, k, v)]
    width = q.ndim - 1
    f.products.setdefault(call.path, "")
    scaled = call.kwargs.get("scale") is None
    if numbers[0].shape[width] > 1 or numbers[1].shape[width] > 1:
        _contracted(f, call, q, width, k, width)
        if scaled and not f.whole_heads(call):
            f.products[call.path] = f"the scale of {call} follows from the width of a head"
            f.ledger.fix(numbers[0], f.products[call.path])
    scores = merged(f, call, [(_across_width(f, x), q) for x in numbers[:2]])
    tokens = v.ndim - 2
    if numbers[2].shape[tokens] > 1:
        f.ledger.fix(numbers[2], f"{call} mixes channels that lie side by side")
        return f.put(call.run(), NOTHING)
    f.scored |= set(scores.flatten().tolist())
    _note_heads(f, call, scores)
    for place, name, x in ((0, "query", q), (1, "key", k)):
        call.put(place, name, f.silent(x))
    return f.put(call.run(), merged(f, call, [(aligned(scores, v.ndim), v), (numbers[2], v)]))


def _across_width(f: Follower, numbers: Tensor) -> Tensor:
    """Return the numbers of heads, those of the channels of each joined."""
    last = numbers.ndim - 1
    if varying(numbers) - {last}:
        return f.join_along(numbers, varying(numbers) & {last})
    return torch.zeros_like(first_along(numbers, {last}))
