"""The shipped ONNX file: integers stored as integers, and nothing in it of the code it came from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.errors import ExportError
from nutlet.formats.onnx.comparison import agreeing
from nutlet.formats.onnx.limited import trust
from nutlet.formats.onnx.optimize import optimize
from nutlet.formats.onnx.packing import pack_initializers
from nutlet.formats.onnx.slim import slim
from nutlet.formats.onnx.trial import explain, silence
from nutlet.graph.finalize import finalize
from nutlet.memory import release
from nutlet.storage import LARGEST_ONNX, write_atomic

__all__ = ["export_onnx"]

OPSET = 20


def export_onnx(model: nn.Module, path: Path | str, example: Tensor, *, packed: bool = True) -> Path:
    """Write ``model`` as an ONNX file with a dynamic batch, one input ``x`` and one output ``y``.

    Quantized weights are stored as int8 and quantized activations appear as QuantizeLinear / DequantizeLinear pairs,
    which runtimes fuse to integer kernels. Names, doc strings, stack traces and shape hints are removed.

    Args:
        model: any module or result of the chain; constraints are finalized on a copy.
        path: where the file goes; it is written aside and renamed.
        example: two real inputs, batch first: what the file answers to them is compared with what the module does.
        packed: weights of few values and weights with many zeros take as few bits as they need, and ordinary operators
            decode them. ONNX Runtime (1.18 and later) does so once, when a session is made; for a runtime that would do
            it at every call, or give up its integer kernels (OpenVINO), leave them unpacked.

    Raises:
        ExportError: the model cannot be traced, is larger than one ONNX file can be, gives no valid ONNX, or a file
            that answers otherwise, see :func:`nutlet.formats.onnx.comparison.agreeing`.
        StorageError: the file cannot be written.
    """
    content = agreeing(model, example, partial(_content, packed=packed))
    write_atomic(Path(path), lambda aside: aside.write_bytes(content))
    trust(content)
    return Path(path)


def _content(model: nn.Module, example: Tensor, *, packed: bool) -> bytes:
    """Return the content of the file of ``model``."""
    import onnx

    final = finalize(model)
    size = sum(tensor.nbytes for tensor in final.state_dict().values())
    if size > LARGEST_ONNX:
        raise ExportError(
            f"the weights take {size:,} bytes; expected at most {LARGEST_ONNX:,}, the most that one ONNX file can "
            "hold: compress further (Quantize makes them a quarter)"
        )
    proto = _trace(final, example)
    del final
    release(model)
    slim(proto)
    if packed:
        pack_initializers(proto)
    _strip(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _trace(model: nn.Module, example: Tensor) -> Any:
    batch = torch.export.Dim("batch")
    try:
        with silence():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["x"],
                output_names=["y"],
                dynamic_shapes=({0: batch},),
                verbose=False,
                optimize=False,
            )
            assert program is not None
            optimize(program.model)
    except Exception as error:
        raise ExportError(f"torch could not export this model to ONNX: {explain(error)}") from error
    proto = program.model_proto
    if any(attribute.HasField("g") for node in proto.graph.node for attribute in node.attribute):
        raise ExportError(
            "the exported graph holds a branch or a loop (torch.cond, while_loop); expected the same operations for "
            "every input: compute both branches and choose with torch.where"
        )
    for value in (proto.graph.input[0], proto.graph.output[0]):
        if value.type.tensor_type.shape.dim[0].dim_value:
            # torch falls back on a fixed size where the forward depends on it.
            raise ExportError(
                "the exported graph would take or give batches of one size only; expected a forward that works for a "
                "batch of any size: take it from x.shape[0], and do not compare it with a number"
            )
    return proto


def _strip(proto: Any) -> None:
    """Remove everything a runtime does not need: it is most of the file's overhead and tells how the model was made."""
    graph = proto.graph
    for holder in (proto, graph):
        holder.doc_string = ""
        del holder.metadata_props[:]
    proto.producer_name, proto.producer_version, proto.domain, graph.name = "", "", "", "g"
    del graph.value_info[:]
    del proto.functions[:]
    short: dict[str, str] = {"": "", "x": "x", "y": "y"}

    def rename(name: str) -> str:
        return short.setdefault(name, _short_name(len(short) - 3))

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


def _short_name(number: int) -> str:
    """Return the shortest name not given before: a, b and so on."""
    letters = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return letters + "_" if letters in ("x", "y") else letters
