"""What can be read in an ONNX file without running it: texts, stored numbers, operators with weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nutlet.formats.base import Contents, StoredTensor, Text
from nutlet.formats.onnx.content import read_onnx
from nutlet.formats.onnx.metadata import meant
from nutlet.formats.onnx.packing import load_unpacked

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

__all__ = ["inspect_onnx"]

_MOST_TEXTS = 50_000
_LONGEST_TEXT = 500
_LAYERS = frozenset({"Conv", "ConvInteger", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul", "MatMulInteger",
                     "QLinearConv", "QLinearMatMul", "RNN"})  # fmt: skip
_WEIGHT_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 10: 16, 11: 64, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4,
                23: 4}  # fmt: skip
"""Bits of one number by its ONNX type: floats, and the integers that weights are quantized to."""
_INTEGER_TYPES = {2, 3, 4, 5, 21, 22}


def inspect_onnx(path: Path | str) -> Contents:
    """Return what can be read in a file; see :class:`nutlet.formats.base.Contents`.

    Trained tensors are the stored ones of floats and of integers up to 16 bits, without scales and zero points.

    Raises:
        StorageError, ModelError: see :func:`nutlet.formats.onnx.content.read_onnx`.
    """
    model = load_unpacked(read_onnx(path))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    stored |= {
        node.output[0]: attribute.t
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and node.output and attribute.name == "value"
    }
    training = len(model.training_info)
    told, other = {}, []
    for entry in model.metadata_props:
        if entry.key not in told and meant(entry.key, entry.value) is not None:
            told[entry.key] = entry.value[:_LONGEST_TEXT]
        else:
            other.append(entry)
    inputs = [Text("input", f"{name} {value}") for name, value in told.items()]
    del model.metadata_props[:]
    model.metadata_props.extend(other)
    texts = [Text(_kind(place), text) for place, text in islice(_texts(model, ""), _MOST_TEXTS - len(inputs))]
    return Contents(
        texts=(*inputs, *texts),
        tensors=tuple(_trained(list(model.graph.node), stored)),
        operators=tuple(_operators(list(model.graph.node), stored)),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        training=(f"training_info of {training} entries",) if training else (),
    )


def _kind(place: str) -> Literal["name", "doc", "metadata", "other"]:
    if place.endswith(".doc_string"):
        return "doc"
    if ".metadata_props." in place and place.endswith(".value"):
        return "metadata"
    return "name" if place.rpartition(".")[2] in ("name", "input", "output") else "other"


def _texts(message: Message, place: str) -> Iterator[tuple[str, str]]:
    """Yield every text of a message that is not empty, with the names of the fields that lead to it.

    The depth is that of the message, which the parser has bounded.
    """
    for field, value in message.ListFields():
        here = f"{place}.{field.name}"
        if field.type == field.TYPE_MESSAGE:
            for inner in (value,) if hasattr(value, "ListFields") else value:
                yield from _texts(inner, here)
        elif field.type == field.TYPE_STRING or here.endswith((".attribute.s", ".attribute.strings")):
            for text in (value,) if isinstance(value, (str, bytes)) else value:
                if text:
                    text = text[:_LONGEST_TEXT]
                    yield here, text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def _trained(nodes: list[onnx.NodeProto], stored: dict[str, onnx.TensorProto]) -> Iterator[StoredTensor]:
    grids = [node for node in nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    settings = {name for node in grids for name in node.input[1:]}
    zero_points = {
        node.input[0]: (node.input[2], next((a.i for a in node.attribute if a.name == "axis"), 1))
        for node in grids
        if len(node.input) > 2
    }
    for name, tensor in stored.items():
        if tensor.data_type not in _WEIGHT_BITS or not tensor.dims or name in settings:
            continue
        numbers = _numbers(tensor)
        if numbers is not None:
            zero, axis = zero_points.get(name, ("", 1))
            zeros = _aligned(stored.get(zero), numbers.shape, axis)
            yield StoredTensor(numbers, _WEIGHT_BITS[tensor.data_type], zeros)


def _numbers(tensor: onnx.TensorProto) -> np.ndarray[Any, Any] | None:
    """Return the values of a tensor, or None where the file does not hold those it announces."""
    import onnx

    count = 1
    for size in tensor.dims:
        count *= size
    # Half a byte is the least that a number takes; dims are not to be trusted with an allocation.
    if min(tensor.dims, default=0) < 0 or count > 2 * tensor.ByteSize():
        return None
    try:
        array = onnx.numpy_helper.to_array(tensor)
        with np.errstate(all="ignore"):
            return np.asarray(array).astype(np.int32 if tensor.data_type in _INTEGER_TYPES else np.float32)
    except (TypeError, ValueError):
        return None


def _aligned(zero_point: onnx.TensorProto | None, shape: tuple[int, ...], axis: int) -> np.ndarray[Any, Any]:
    """Return the stored number that stands for zero, to be compared with a tensor of ``shape``."""
    zeros = None if zero_point is None else _numbers(zero_point)
    if zeros is not None and zeros.size == 1:
        return zeros.reshape(1)
    if zeros is not None and -len(shape) <= axis < len(shape) and zeros.shape == (shape[axis],):
        along = [1] * len(shape)
        along[axis] = zeros.size
        return zeros.reshape(along)
    return np.zeros(1)


def _operators(nodes: list[onnx.NodeProto], stored: dict[str, onnx.TensorProto]) -> list[str]:
    """Return the operators with weights and the shapes of these, in the order of the file."""
    shapes = {name: tuple(tensor.dims) for name, tensor in stored.items()}
    lines = []
    for node in nodes:
        if node.op_type in ("DequantizeLinear", "Reshape", "Transpose", "Identity", "Cast"):
            if node.input and node.output and node.input[0] in shapes:
                shapes[node.output[0]] = shapes[node.input[0]]
        elif node.op_type in _LAYERS:
            own = [shapes[name] for name in node.input if len(shapes.get(name, ())) > 1]
            if own:
                lines.append(f"{node.op_type} {'x'.join(map(str, own[0]))}")
    return lines
