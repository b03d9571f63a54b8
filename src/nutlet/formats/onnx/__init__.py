"""ONNX files, run by ONNX Runtime."""

from pathlib import Path

from nutlet.formats.base import Format
from nutlet.formats.onnx.export import export_onnx
from nutlet.formats.onnx.inference import open_onnx, runtime
from nutlet.formats.onnx.inspect import inspect_onnx
from nutlet.formats.onnx.metadata import describe, described
from nutlet.formats.onnx.reader import load_onnx
from nutlet.formats.onnx.trial import export_problem
from nutlet.graph.kernels import KERNELS
from nutlet.storage import LARGEST_ONNX

__all__ = ["ONNX"]


class _Reader:
    """See :class:`nutlet.formats.base.Reader`."""

    load = staticmethod(load_onnx)
    inspect = staticmethod(inspect_onnx)


ONNX = Format(
    name="ONNX",
    suffixes=(".onnx",),
    # The first field is the version of the format, a small number; it was 3 when opset 1 came.
    magic=tuple(bytes([8, version]) for version in range(3, 32)),
    largest=LARGEST_ONNX,
    runtime=runtime,
    export=export_onnx,
    open=open_onnx,
    reader=_Reader(),
    kernels=KERNELS,
    export_problem=export_problem,
    bare=Path(__file__).with_name("ort.py"),
    describe=describe,
    described=described,
)
