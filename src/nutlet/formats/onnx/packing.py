"""Stored tensors in the bits that their values need, decoded by ordinary ONNX operators.

A runtime that folds constants decodes them once, when a session is made, and then runs the same kernels on the same
values as before. What is stored in fewer bits: few distinct values as indices into a table of them (Han et al. 2016,
arXiv:1510.00149, section 3), many zeros as a bitmap or as gaps between the other values (section 2 there). Every tensor
gets whichever makes the file smallest, the decoding operators counted in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["load_unpacked", "pack_initializers", "unpack_initializers"]

Array = NDArray[Any]

_FEWEST = 64
"""Tensors of fewer elements are left: decoding operators take more bytes than there are to gain."""
_UNPACKED = 1 << 24
"""Elements that decoding may make of the smallest file; see :func:`unpack_initializers`."""
_PLANES = (4, 2, 1)
"""Widths in bits of the fields that divide a byte; an index of another width is a sum of such fields."""


@dataclass(eq=False)
class _Graph:
    """Nodes and constants that are about to be added to a graph; equal constants are stored once.

    Args:
        prefix: begins every name made here.
        shared: names of constants that are there already, by their content.
    """

    prefix: str
    shared: dict[tuple[Any, ...], str]
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def constant(self, array: Array, name: str = "") -> str:
        import onnx

        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if not name and key in self.shared:
            return self.shared[key]
        name = name or f"{self.prefix}c{len(self.constants)}"
        self.shared[key] = name
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def call(self, operator: str, *inputs: str, **attributes: Any) -> str:
        import onnx

        output = f"{self.prefix}n{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output

    @property
    def bytes(self) -> int:
        """Bytes in the file, with short names: the exporter renames everything."""
        names = [name for node in self.nodes for name in (*node.input, *node.output)]
        names += [tensor.name for tensor in self.constants]
        whole = sum(int(item.ByteSize()) + 3 for item in (*self.nodes, *self.constants))
        return whole + sum(3 - len(name) for name in names)


def pack_initializers(proto: Any) -> int:
    """Store the initializers of a model in fewer bits where that makes the file smaller, in place.

    Outputs stay the same bit for bit (but that a negative zero becomes a positive one). The operators used are those of
    opset 18; ONNX Runtime folds all of them when a session is made, before it looks for integer kernels.

    Args:
        proto: an ``onnx.ModelProto``.

    Returns:
        Bytes saved, names not counted.
    """
    import onnx

    graph = proto.graph
    shared: dict[tuple[Any, ...], str] = {}
    nodes: list[Any] = []
    saved = 0
    for tensor in list(graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        if array.size < _FEWEST or array.dtype not in (np.int8, np.uint8, np.float16, np.float32):
            continue
        best = min(_encodings(array, tensor.name, shared), key=lambda made: made.bytes)
        if not best.nodes:
            continue
        saved += tensor.ByteSize() + 3 - best.bytes
        best.nodes[-1].output[0] = tensor.name
        nodes += best.nodes
        graph.initializer.remove(tensor)
        graph.initializer.extend(best.constants)
        shared.update(best.shared)
    # A node comes after those that it reads.
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *others])
    return saved


def _encodings(array: Array, name: str, shared: dict[tuple[Any, ...], str]) -> Iterator[_Graph]:
    """Yield every way to store ``array``, as it is included; in each the last node gives its values and its shape."""
    flat = array.reshape(-1)
    makers: list[Callable[[_Graph], str]] = [
        lambda graph: graph.constant(array, name),
        lambda graph: _table(graph, flat, array.shape),
    ]
    if 4 * np.count_nonzero(flat) < 3 * flat.size:
        makers.append(lambda graph: _bitmap(graph, flat, array.shape))
        makers.append(lambda graph: _bitmap_of_few(graph, flat, array.shape))
        makers += [partial(_gaps, flat=flat, width=width, shape=array.shape) for width in range(3, 9)]
    for make in makers:
        graph = _Graph(f"{name}/", dict(shared))
        try:
            make(graph)
        except _NotFewer:
            continue
        yield graph


class _NotFewer(Exception):
    """There are too many values for a table of them."""


def _values(graph: _Graph, flat: Array) -> str:
    """Store values in the smaller of two ways, as they are or by a table; return the name of the vector."""
    plain = _Graph(graph.prefix, dict(graph.shared))
    plain.constant(flat)
    indexed = _Graph(graph.prefix, dict(graph.shared))
    try:
        _table(indexed, flat, flat.shape)
    except _NotFewer:
        return graph.constant(flat)
    return _table(graph, flat, flat.shape) if indexed.bytes < plain.bytes else graph.constant(flat)


def _table(graph: _Graph, flat: Array, shape: tuple[int, ...]) -> str:
    """Store an index of a few bits for every value, and the values once."""
    values, indices = np.unique(flat, return_inverse=True)
    width = max(1, int(len(values) - 1).bit_length())
    if width >= 8 * flat.itemsize or width >= 8:
        raise _NotFewer
    if flat.dtype == np.uint8 and width in _PLANES and np.array_equal(values, np.arange(len(values))):
        return _field(graph, indices, width, shape)  # the values are the indices
    return graph.call("Gather", graph.constant(values), _indices(graph, indices, width, shape))


def _bitmap(graph: _Graph, flat: Array, shape: tuple[int, ...]) -> str:
    """Store a bit for every value that says whether it is zero, and the others one after the other.

    The k-th value that is not zero is found by a running count. (``NonZero`` would say where they are, but runtimes do
    not fold it.)
    """
    there = flat != 0
    _, place = _counted(graph, there)
    values = _values(graph, np.concatenate([np.zeros(1, flat.dtype), flat[there]]))
    return _shaped(graph, graph.call("Gather", values, place), flat.shape, shape)


def _bitmap_of_few(graph: _Graph, flat: Array, shape: tuple[int, ...]) -> str:
    """Store the bitmap, and for the others an index into a table in which zero has no place: a sign, if ternary."""
    there = flat != 0
    values, indices = np.unique(flat[there], return_inverse=True)
    width = max(1, int(len(values) - 1).bit_length())
    if not len(values) or width >= 8:
        raise _NotFewer
    bits, place = _counted(graph, there)
    first = np.concatenate([np.zeros(1, np.int64), indices])
    index = graph.call("Gather", _indices(graph, first, width, first.shape), place)
    index = graph.call("Mul", graph.call("Add", index, graph.constant(np.array(1, np.int32))), bits)
    table = graph.constant(np.concatenate([np.zeros(1, flat.dtype), values]))
    return _shaped(graph, graph.call("Gather", table, index), flat.shape, shape)


def _counted(graph: _Graph, there: Array) -> tuple[str, str]:
    """Store a bitmap; return the names of its bits, and of the number of each set one among them, from 1; int32."""
    bits = _indices(graph, there.astype(np.int64), 1, there.shape)
    count = graph.call("CumSum", bits, graph.constant(np.array(0, np.int32)))
    return bits, graph.call("Mul", count, bits)


def _gaps(graph: _Graph, flat: Array, width: int, shape: tuple[int, ...]) -> str:
    """Store the values that are not zero and their distances, in ``width`` bits; longer ways rest on a stored zero."""
    places = np.flatnonzero(flat)
    most = 2**width - 1
    distances = np.diff(places, prepend=0)
    rests = np.maximum(distances - 1, 0) // most
    steps = np.full(len(places) + int(rests.sum()), most)
    kept = np.zeros(len(steps), flat.dtype)
    at = np.arange(len(places)) + np.cumsum(rests)
    steps[at], kept[at] = distances - rests * most, flat[places]
    sums = graph.call("CumSum", _indices(graph, steps, width, steps.shape), graph.constant(np.array(0, np.int32)))
    zeros = graph.call("Expand", graph.constant(np.zeros(1, flat.dtype)), graph.constant(np.array([flat.size])))
    return _shaped(graph, graph.call("ScatterElements", zeros, sums, _values(graph, kept)), flat.shape, shape)


def _indices(graph: _Graph, indices: Array, width: int, shape: tuple[int, ...]) -> str:
    """Store whole numbers of ``width`` bits; return the name of them as int32, which Gather and CumSum take."""
    total, low = "", 0
    for plane in [8] if width == 8 else [plane for plane in _PLANES if width & plane]:
        part = graph.call("Cast", _field(graph, indices >> low & (2**plane - 1), plane, shape), to=6)
        if low:
            part = graph.call("Mul", part, graph.constant(np.array(2**low, np.int32)))
        total = graph.call("Add", total, part) if total else part
        low += plane
    return total


def _field(graph: _Graph, codes: Array, width: int, shape: tuple[int, ...]) -> str:
    """Store numbers of 1, 2, 4 or 8 bits side by side in bytes; return the name of them as uint8."""
    if width == 8:
        return graph.constant(codes.astype(np.uint8).reshape(shape))
    each = 8 // width
    padded = np.zeros(-(-codes.size // each) * each, np.uint8)
    padded[: codes.size] = codes.reshape(-1)
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    stored = graph.constant(np.bitwise_or.reduce(padded.reshape(-1, each) << shifts, axis=1, dtype=np.uint8)[:, None])
    fields = graph.call("BitShift", stored, graph.constant(shifts[None]), direction="RIGHT")
    fields = graph.call("BitwiseAnd", fields, graph.constant(np.array(2**width - 1, np.uint8)))
    if padded.size > codes.size:
        fields = _shaped(graph, fields, (padded.size // each, each), (padded.size,))
        fields = graph.call("Slice", fields, graph.constant(np.array([0])), graph.constant(np.array([codes.size])))
        return _shaped(graph, fields, (codes.size,), shape)
    return _shaped(graph, fields, (padded.size // each, each), shape)


def _shaped(graph: _Graph, name: str, now: tuple[int, ...], shape: tuple[int, ...]) -> str:
    return name if now == shape else graph.call("Reshape", name, graph.constant(np.array(shape, np.int64)))


def load_unpacked(content: bytes) -> Any:
    """Return the ``onnx.ModelProto`` of a file, its tensors unpacked; see :func:`unpack_initializers`."""
    import onnx

    proto = onnx.load_model_from_string(content)
    unpack_initializers(proto)
    return proto


def unpack_initializers(proto: Any) -> None:
    """Store the tensors of a packed model as they are, in place: for readers and runtimes that do not fold constants.

    A model without decoding operators is left as it is.

    Args:
        proto: an ``onnx.ModelProto``; it may come from outside.

    Raises:
        ValueError: decoding fails, or would make more numbers than a file of this size has any use for.
    """
    import onnx

    graph = proto.graph
    if not any(node.op_type in _ONLY_HERE for node in graph.node):
        return
    allowance = _UNPACKED + 64 * proto.ByteSize()
    names = {name for node in graph.node if node.op_type in _DECODERS for name in node.input}
    known = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name in names}
    left = []
    for node in graph.node:
        decode, options = _DECODERS.get(node.op_type, (None, set()))
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if decode is None or attributes.keys() - options or any(name not in known for name in node.input):
            left.append(node)
            continue
        inputs = [known[name] for name in node.input]
        allowance -= _elements(node.op_type, inputs)
        if allowance < 0:
            raise ValueError("the packed tensors would unfold to more numbers than a file of this size needs")
        known[node.output[0]] = decode(*inputs, **attributes)
    read = {name for node in left for name in node.input} | {output.name for output in graph.output}
    made = [onnx.numpy_helper.from_array(known[name], name) for name in sorted(known.keys() & read)]
    kept = [tensor for tensor in graph.initializer if tensor.name not in known]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(left)
    graph.initializer.extend([*kept, *made])


def _elements(operator: str, inputs: list[Array]) -> int:
    """Return how many numbers a decoding operator gives, before it is given any memory for them."""
    if operator == "Expand":
        return int(np.prod(np.maximum(inputs[1], 1), dtype=np.float64)) * inputs[0].size
    if operator == "Gather":
        return inputs[1].size * max(1, inputs[0][:1].size)
    if operator in ("BitShift", "BitwiseAnd", "Mul", "Add"):
        return math.prod(np.broadcast_shapes(*(array.shape for array in inputs)))
    return inputs[0].size


def _scattered(zeros: Array, places: Array, values: Array, *, axis: int = 0) -> Array:
    result = zeros.copy()
    np.put_along_axis(result, places, values, axis)
    return result


_ONLY_HERE = frozenset({"BitShift", "CumSum", "ScatterElements"})
"""Operators that a classifier hardly has and a packed tensor always does."""
_TYPES = {2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 1: np.float32}
_DECODERS: dict[str, tuple[Callable[..., Array], set[str]]] = {
    "Add": (np.add, set()),
    "BitShift": (
        lambda x, by, *, direction: np.right_shift(x, by) if direction == b"RIGHT" else x << by,
        {"direction"},
    ),
    "BitwiseAnd": (np.bitwise_and, set()),
    "Cast": (lambda x, *, to: x.astype(_TYPES[to]), {"to"}),
    "CumSum": (lambda x, axis: np.cumsum(x, int(axis), dtype=x.dtype), set()),
    "Expand": (lambda x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape))), set()),
    "Gather": (lambda x, places, *, axis=0: np.take(x, places, axis), {"axis"}),
    "Mul": (np.multiply, set()),
    "Reshape": (lambda x, shape: x.reshape(tuple(shape)), set()),
    "ScatterElements": (_scattered, {"axis"}),
    "Slice": (lambda x, start, end: x[tuple(slice(*ends) for ends in zip(start, end, strict=True))], set()),
}
"""Each with the attributes that it understands; a node with others is left to the reader."""
