"""The shipped ONNX file: integers stored as integers, and nothing in it of the code it came from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.errors import ExportError
from nutlet.formats.onnx.comparison import agreeing
from nutlet.formats.onnx.flat import flat
from nutlet.formats.onnx.limited import trust
from nutlet.formats.onnx.optimize import optimize
from nutlet.formats.onnx.packing import pack_initializers
from nutlet.formats.onnx.slim import slim, strip
from nutlet.formats.onnx.trial import explain, silence
from nutlet.graph.finalize import finalize
from nutlet.memory import release
from nutlet.storage import LARGEST_ONNX, write_atomic
from nutlet.tasks.forward import adapted
from nutlet.tasks.inputs import Inputs, NamedInputs, as_tensors
from nutlet.tasks.predict import gives_several

__all__ = ["export_onnx"]

OPSET = 20
OUTPUT = "y"
"""Name of the output of every file."""


def export_onnx(
    model: nn.Module,
    path: Path | str,
    example: Inputs | Mapping[str, Tensor],
    *,
    output: str | int | None = None,
    packed: bool = True,
) -> Path:
    """Write ``model`` as an ONNX file with a dynamic batch, one output ``y``, and its inputs by name, ``x`` if one.

    Quantized weights are stored as int8 and quantized activations appear as QuantizeLinear / DequantizeLinear pairs,
    which runtimes fuse to integer kernels. Names, doc strings, stack traces and shape hints are removed.

    Args:
        model: any module or result of the chain; constraints are finalized on a copy.
        path: where the file goes; it is written aside and renamed.
        example: two real inputs, batch first, one tensor or several by name: what the file answers to them is compared
            with what the module does.
        output: which output the file gives, where the module gives several.
        packed: weights of few values and weights with many zeros take as few bits as they need, and ordinary operators
            decode them. ONNX Runtime (1.18 and later) does so once, when a session is made; for a runtime that would do
            it at every call, or give up its integer kernels (OpenVINO), leave them unpacked.

    Raises:
        ExportError: the model cannot be traced, is larger than one ONNX file can be, gives no valid ONNX, or a file
            that answers otherwise, see :func:`nutlet.formats.onnx.comparison.agreeing`.
        StorageError: the file cannot be written.
    """
    inputs = example if isinstance(example, (Tensor, NamedInputs)) else NamedInputs(example)
    with adapted(model, inputs, output, several=gives_several(model, inputs)):
        content = agreeing(model, inputs, partial(_content, packed=packed))
    write_atomic(Path(path), lambda aside: aside.write_bytes(content))
    trust(content)
    return Path(path)


def _content(model: nn.Module, example: Inputs, *, packed: bool) -> bytes:
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
    strip(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _trace(model: nn.Module, example: Inputs) -> Any:
    module, tensors, shapes = flat(model, example)
    names = list(as_tensors(example))
    if OUTPUT in names and len(names) > 1:
        raise ExportError(f"an input is called {OUTPUT!r}, which is the name of the output; expected another name")
    try:
        with silence():
            program = torch.onnx.export(
                module,
                tensors,
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=[OUTPUT],
                dynamic_shapes=shapes,
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
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.shape.dim[0].dim_value:
            # torch falls back on a fixed size where the forward depends on it.
            raise ExportError(
                "the exported graph would take or give batches of one size only; expected a forward that works for a "
                "batch of any size: take it from x.shape[0], and do not compare it with a number"
            )
    return proto
