"""An exported file made ready for devices: batches of one size, and every bias in the integers of its layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nutlet.errors import ExportError, first_line
from nutlet.formats.onnx.content import read_onnx
from nutlet.formats.onnx.limited import trust
from nutlet.formats.onnx.packing import pack_initializers, unpack_initializers
from nutlet.formats.onnx.slim import strip
from nutlet.storage import write_atomic

__all__ = ["fix_batch"]

APART = 0.05
"""Of the largest answer, how far the two files may be apart: a dozen steps of 8 bits."""

Array = npt.NDArray[Any]


def fix_batch(source: Path | str, target: Path | str, batch: int = 1) -> Path:
    """Write an exported ONNX file again for batches of one size, as runtimes on phones want it.

    Accelerators plan their work beforehand and take shapes that are known. They also take the bias of an 8-bit layer as
    32-bit integers, in the scale of input times weight, with a zero point. On a processor ONNX Runtime makes such
    biases itself while it loads a file, with the same rounding; but without a zero point, on which its converter to the
    mobile format (``.ort``) fails: "sum of input arg count is not equal to size of input defs in node (_bias_dq)".

    Args:
        source: a file that :func:`nutlet.export_onnx` wrote.
        target: where the new file goes; it is written aside and renamed.
        batch: rows of a batch, 1 or more.

    Raises:
        StorageError: the file cannot be read or written.
        ExportError: it has branches or functions, is for batches of another size already, or answers otherwise
            afterwards.

    >>> fix_batch("model.onnx", "phone.onnx")  # doctest: +SKIP
    PosixPath('phone.onnx')
    """
    import onnx

    if batch < 1:
        raise ExportError(f"batch is {batch}; expected 1 or more rows")
    content = read_onnx(source)
    proto = onnx.load_model_from_string(content)
    if proto.functions or any(attribute.HasField("g") for node in proto.graph.node for attribute in node.attribute):
        raise ExportError(f"{source} has branches, loops or functions; expected a plain graph, as nutlet exports it")
    told = list(proto.metadata_props)
    nodes = len(proto.graph.node)
    unpack_initializers(proto)
    packed = len(proto.graph.node) < nodes
    _fix(proto.graph, batch, source)
    _integer_biases(proto.graph)
    if packed:
        pack_initializers(proto)
    strip(proto)
    proto.metadata_props.extend(told)
    onnx.checker.check_model(proto, full_check=True)
    fixed: bytes = proto.SerializeToString(deterministic=True)
    _compare(content, fixed, proto.graph, source)
    write_atomic(Path(target), lambda aside: aside.write_bytes(fixed))
    trust(fixed)
    return Path(target)


def _fix(graph: Any, batch: int, source: Path | str) -> None:
    stored = {tensor.name for tensor in graph.initializer}
    for value in (*(value for value in graph.input if value.name not in stored), *graph.output):
        rows = value.type.tensor_type.shape.dim[0]
        if rows.dim_value not in (0, batch):
            raise ExportError(
                f"{source} is for batches of {rows.dim_value}; expected a file with a free batch, or one for {batch}: "
                "export it again"
            )
        rows.dim_value = batch


def _integer_biases(graph: Any) -> None:
    """Store the bias of each layer that a runtime computes in integers as a DequantizeLinear of 32-bit codes.

    The layers are those for which ONNX Runtime does the same when it loads a file (its ``WeightBiasQuantization``).
    """
    import onnx

    stored = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    made: dict[int, Any] = {}
    zeros: dict[tuple[int, ...], str] = {}

    def store(array: Array, name: str) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    for index, node in enumerate(graph.node):
        layer, at = _layer_of(node, producers, readers)
        if layer is None or len(node.input) <= at or node.input[at] not in stored:
            continue
        x, weight = (_origin(name, producers) for name in layer.input[:2])
        if not (_dequantizes(x, stored) and _dequantizes(weight, stored) and _is_quantized(node, readers)):
            continue
        bias, factor, scale = (
            onnx.numpy_helper.to_array(stored[name]) for name in (node.input[at], x.input[1], weight.input[1])
        )
        factor = (factor * scale).astype(np.float32)
        if factor.size == 1 and bias.size > 1:
            factor = factor.reshape(())
        elif factor.shape != bias.shape:
            continue
        codes = np.round(bias / factor)
        if bias.dtype != np.float32 or not np.abs(codes).max() < 2**31:
            continue
        name = f"{node.input[at]}/{index}"
        if factor.shape not in zeros:
            zeros[factor.shape] = store(np.zeros(factor.shape, np.int32), f"{name}/zero")
        inputs = [store(codes.astype(np.int32), f"{name}/codes"), store(factor, f"{name}/scale"), zeros[factor.shape]]
        options: dict[str, Any] = {"axis": 0} if factor.ndim else {}
        made[index] = onnx.helper.make_node("DequantizeLinear", inputs, [f"{name}/bias"], **options)
        node.input[at] = f"{name}/bias"
    nodes = [part for index, node in enumerate(graph.node) for part in (made.get(index), node) if part is not None]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    tensors = [
        onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in graph.initializer if tensor.name in read
    ]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)


def _layer_of(node: Any, producers: dict[str, Any], readers: dict[str, list[Any]]) -> tuple[Any, int]:
    """Return the layer whose bias ``node`` adds, which is itself or the MatMul before it, and the place of the bias."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return node, 2
    if node.op_type == "Add":
        for at in (0, 1):
            before = producers.get(node.input[1 - at])
            if before is not None and before.op_type == "MatMul" and len(readers[before.output[0]]) == 1:
                return before, at
    return None, 0


def _origin(name: str, producers: dict[str, Any]) -> Any:
    """Return the node that gives a value, or the values that it is another arrangement of."""
    node = producers.get(name)
    while node is not None and node.op_type in ("Transpose", "Reshape"):
        node = producers.get(node.input[0])
    return node


def _dequantizes(node: Any, stored: dict[str, Any]) -> bool:
    """Whether the values are codes in a scale that the file holds."""
    if node is None or node.op_type != "DequantizeLinear" or node.input[1] not in stored:
        return False
    return not any(attribute.name == "block_size" and attribute.i for attribute in node.attribute)


def _is_quantized(node: Any, readers: dict[str, list[Any]]) -> bool:
    """Whether the result goes into one QuantizeLinear alone, perhaps by way of a ReLU or a Clip."""
    while True:
        following = readers.get(node.output[0], [])
        if len(following) != 1:
            return False
        (node,) = following
        if node.op_type not in ("Relu", "Clip"):
            return bool(node.op_type == "QuantizeLinear")


def _compare(before: bytes, after: bytes, graph: Any, source: Path | str) -> None:
    """Raise ExportError unless both files answer alike."""
    from nutlet.formats.onnx.ort import NUMBERS, open_session

    random = np.random.default_rng(0)
    try:
        old, new = open_session(before), open_session(after)
        feed = {}
        for value in new.get_inputs():
            shape = [size if isinstance(size, int) else 1 for size in value.shape]
            dtype = NUMBERS[value.type]
            feed[value.name] = (random.normal(size=shape) if "float" in dtype else np.zeros(shape)).astype(dtype)
        apart = max(
            float(np.abs(one - other).max()) / max(float(np.abs(one).max()), 1e-30)
            for one, other in zip(old.run(None, feed), new.run(None, feed), strict=True)
        )
    except Exception as error:  # the runtime's exceptions have no common base
        raise ExportError(
            f"ONNX Runtime does not run {source} with a fixed batch: {first_line(error)}; expected a forward that "
            "works for a batch of any size"
        ) from error
    if not apart <= APART:
        raise ExportError(
            f"{source} with a fixed batch is {apart:.2g} of its answers away from what it was; expected the same "
            f"within {APART}: please report it"
        )
