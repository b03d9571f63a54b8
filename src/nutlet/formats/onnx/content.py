"""The content of an ONNX file of unknown origin, looked at before anything else is done with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nutlet.errors import StorageError
from nutlet.formats.files import read_file
from nutlet.formats.onnx.limited import Trials
from nutlet.storage import LARGEST_ONNX

if TYPE_CHECKING:
    import onnx

__all__ = ["check_content", "read_onnx"]


def read_onnx(path: Path | str) -> bytes:
    """Return the content of an ONNX file, checked.

    Raises:
        StorageError: there is no such file, or it is larger than :data:`~nutlet.storage.LARGEST_ONNX`; see also
            :func:`check_content`.
        ModelError: see :func:`check_content`.
    """
    content = read_file(path, "an ONNX file", LARGEST_ONNX)
    check_content(content, Path(path))
    return content


def check_content(content: bytes, path: Path) -> Trials:
    """Check that a file is ONNX, whole, and on its own; return the trials that it passed.

    External data are refused: such a file names other files to read, which a file of unknown origin must not. The file
    is opened, and run on one row, in a process with limits before it is parsed here.

    Args:
        content: of the file.
        path: for messages.

    Raises:
        StorageError: it is not ONNX (or cut off), or it points to external data.
        ModelError: it takes too much memory or time; see :mod:`nutlet.formats.onnx.limited`.
    """
    import onnx
    from google.protobuf.message import DecodeError

    trials = Trials.of(content, path)
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise StorageError(
            f"{path} ({len(content):,} bytes) is not ONNX, or cut off; expected a whole ONNX file: export it again"
        ) from error
    if not model.HasField("graph") or not model.graph.output:
        raise StorageError(
            f"{path} ({len(content):,} bytes) holds no ONNX graph with an output; expected a whole ONNX file: "
            "export it again"
        )
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise StorageError(
                f"{path} keeps the tensor {tensor.name!r} in another file; expected all weights inside: "
                "save it with onnx.save_model(model, path, save_as_external_data=False)"
            )
    return trials


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model: weights, sparse weights, and constants in nodes, subgraphs and functions."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)
        yield from _of_attributes(function.attribute_proto)
    for training in model.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        yield from _of_attributes(node.attribute)


def _of_attributes(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _of_graph(graph)
