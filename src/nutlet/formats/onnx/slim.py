"""What an exported graph says twice, or says although every runtime assumes it, is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

__all__ = ["slim", "strip"]

_ASSUMED = {"strides": 1, "dilations": 1, "pads": 0}
"""Attributes of convolutions and pools whose default, this number along every axis, the ONNX schema gives in prose."""


def slim(proto: Any) -> None:
    """Remove what the file need not say, and computations that change nothing.

    Those are attributes at their default values, each ReLU that the quantization after it already is, and the way
    through floating point where padding in one scale only moves codes.
    Outputs stay the same bit for bit, and a runtime that fuses integer operations fuses the same ones.
    """
    _drop_defaults(proto)
    _drop_clamped_relus(proto.graph)
    _pad_codes(proto.graph)


def _drop_defaults(proto: Any) -> None:
    import onnx

    value = onnx.helper.get_attribute_value
    versions = {opset.domain: opset.version for opset in proto.opset_import}
    for node in proto.graph.node:
        if node.domain:
            continue
        known = onnx.defs.get_schema(node.op_type, versions[""]).attributes
        for attribute in list(node.attribute):
            default = known[attribute.name].default_value
            stated = default.type == attribute.type and value(default) == value(attribute)
            assumed = _ASSUMED.get(attribute.name)
            if stated or (assumed is not None and all(number == assumed for number in attribute.ints)):
                node.attribute.remove(attribute)


def _drop_clamped_relus(graph: Any) -> None:
    """A ReLU whose result is read only by a QuantizeLinear with uint8 zero point 0 does what its clamp at 0 does."""
    import onnx

    zero_points = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.UINT8}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    relus = {node.output[0]: node for node in graph.node if node.op_type == "Relu"}
    for node in list(graph.node):
        if node.op_type != "QuantizeLinear" or readers[node.input[0]] != 1 or len(node.input) < 3:
            continue
        relu, zero = relus.get(node.input[0]), zero_points.get(node.input[2])
        if relu is not None and zero is not None and not onnx.numpy_helper.to_array(zero).any():
            node.input[0] = relu.input[0]
            graph.node.remove(relu)


def _pad_codes(graph: Any) -> None:
    """Pad (and slice) codes where values are dequantized, padded and quantized in the same scale; runtimes do not."""
    producer = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    for last in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        chain = []
        node = producer.get(last.input[0])
        while node is not None and node.op_type in ("Pad", "Slice") and readers[node.output[0]] == 1:
            chain.append(node)
            node = producer.get(node.input[0])
        pads = [moving for moving in chain if moving.op_type == "Pad"]
        if node is None or node.op_type != "DequantizeLinear" or node.input[1:] != last.input[1:]:
            continue
        # Zeros alone: what a Pad with a value of its own writes need not be on the grid.
        if not pads or any(len(pad.input) > 2 or pad.attribute for pad in pads):
            continue
        chain[-1].input[0] = node.input[0]
        for pad in pads:
            pad.input.append(last.input[2])
        for reader in graph.node:
            reader.input[:] = [chain[0].output[0] if name == last.output[0] else name for name in reader.input]
        graph.node.remove(last)


def strip(proto: Any) -> None:
    """Remove everything a runtime does not need: it is most of the file's overhead and tells how the model was made."""
    graph = proto.graph
    for holder in (proto, graph):
        holder.doc_string = ""
        del holder.metadata_props[:]
    proto.producer_name, proto.producer_version, proto.domain, graph.name = "", "", "", "g"
    del graph.value_info[:]
    del proto.functions[:]
    named = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {"": ""} | {name: name for name in named}

    def rename(name: str) -> str:
        return short.setdefault(name, _short_name(len(short) - 1 - len(named), named))

    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    for node in graph.node:
        node.name, node.doc_string = "", ""
        del node.metadata_props[:]
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
    used = {node.domain for node in graph.node}
    kept = [opset for opset in proto.opset_import if opset.domain in used or opset.domain == ""]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _short_name(number: int, kept: Collection[str]) -> str:
    """Return the shortest name not given before: a, b and so on; with an underscore where an input has it."""
    letters = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return letters + "_" if letters in kept else letters
