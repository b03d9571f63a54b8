"""A shipped ONNX file in ONNX Runtime, opened as a file of unknown origin."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nutlet.data.examples import Examples
from nutlet.errors import DataError, ModelError, StorageError, first_line
from nutlet.formats.onnx.limited import Trials
from nutlet.formats.onnx.outputs import chosen_output
from nutlet.machine import cores
from nutlet.progress import Progress
from nutlet.storage import LARGEST_ONNX
from nutlet.tasks.inputs import Inputs, as_tensors
from nutlet.tasks.outputs import check_finite

if TYPE_CHECKING:
    import onnx

__all__ = ["Runtime", "read_onnx"]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}

Feed = dict[str, npt.NDArray[Any]]
"""One batch by the names of the inputs of a file, in its dtypes."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class InputSpec:
    """What one input of a file takes.

    Args:
        shape: batch first; names stand for sizes that are free.
        dtype: as NumPy names it.
    """

    shape: tuple[int | str | None, ...]
    dtype: str


def read_onnx(path: str | Path) -> bytes:
    """Read an ONNX file and check that it is one, whole, within bounds, and on its own.

    External data are refused: such a file names other files to read, which a file of unknown origin must not. The file
    is opened, and run on one row, in a process with limits before it is parsed here.

    Raises:
        StorageError: there is no such file, it is larger than :data:`~nutlet.storage.LARGEST_ONNX`, it is not ONNX (or
            cut off), or it points to external data.
        ModelError: it takes too much memory or time; see :mod:`nutlet.formats.onnx.limited`.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(path)
    if not path.is_file():
        found = "is not a regular file" if path.exists() else "does not exist"
        raise StorageError(f"{path} {found}; expected an ONNX file: give the path of one")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = b"" if size > LARGEST_ONNX else file.read(size)
    except OSError as error:
        raise StorageError(f"could not read {path}: {error.strerror}; expected a readable ONNX file") from error
    if size > LARGEST_ONNX:
        raise StorageError(
            f"{path} has {size:,} bytes; expected an ONNX file of at most {LARGEST_ONNX:,}: "
            "none without external data is larger"
        )
    Trials.of(content, path)
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
    return content


class Runtime:
    """A shipped file, opened in ONNX Runtime on the CPU with all graph optimisations.

    A file that this process did not write is tried first in a process of its own, limited in memory and time: when it
    is opened, and on each larger batch (:mod:`nutlet.formats.onnx.limited`).

    Args:
        path: the ONNX file: inputs ``(N, ...)``, one output ``(N, classes)`` or as its task has it.
        threads: threads for one operator; 0 for all cores. ``self.threads`` holds the true count.
        output: name of the output that holds the scores; by default the only one that can.

    Raises:
        StorageError: see :func:`read_onnx`.
        ModelError: ONNX Runtime refuses the file, or it has an input of no numbers, or not one output of scores.
        ConfigError: there is no such output.
    """

    def __init__(self, path: str | Path, *, threads: int = 0, output: str | None = None) -> None:
        self.path = Path(path)
        content = read_onnx(path)
        self._open(content, threads, output, Trials.of(content, self.path))

    def reopened(self, threads: int) -> Runtime:
        """Return the same bytes opened with another number of threads."""
        return Runtime.from_bytes(self.content, self.path, threads=threads, output=self.output)

    @staticmethod
    def from_bytes(content: bytes, path: Path, *, threads: int = 0, output: str | None = None) -> Runtime:
        """Open what :func:`read_onnx` returned for ``path``."""
        runtime = object.__new__(Runtime)
        runtime.path = path
        runtime._open(content, threads, output, Trials.of(content, path))
        return runtime

    def _open(self, content: bytes, threads: int, output: str | None, trials: Trials) -> None:
        import onnxruntime as ort

        self.content = content
        self._trials = trials
        self.threads = threads or cores()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4
        # The bytes were checked as ONNX: they must not be read as the runtime's own format.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        # Idle threads of one session would otherwise go on spinning while another session is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = ort.InferenceSession(
                content, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:  # the runtime's exceptions have no common base
            raise ModelError(
                f"ONNX Runtime {ort.__version__} refuses {self.path}: {first_line(error)}; expected a file it can "
                "run on the CPU: export it again, with operators and an opset this version knows"
            ) from error
        outputs = self._session.get_outputs()
        self.inputs = {given.name: _input_spec(self.path, given) for given in self._session.get_inputs()}
        if not self.inputs:
            raise ModelError(f"{self.path} takes no input; expected a batch of examples")
        self.output = chosen_output(self.path, outputs, output)

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size the file takes, or None where it takes any."""
        first = next(iter(self.inputs.values())).shape[0]
        return first if isinstance(first, int) else None

    def predict(
        self, examples: Examples, *, batch: int = 64, progress: Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the outputs ``(N, ...)`` for all examples; see :meth:`answers`."""
        return np.concatenate([outputs for outputs, _ in self.answers(examples, batch=batch, progress=progress)])

    def answers(
        self, examples: Examples, *, batch: int = 64, progress: Progress | None = None
    ) -> Iterator[tuple[npt.NDArray[np.float32], Tensor]]:
        """Yield outputs ``(B, ...)`` and targets batch by batch: those of all examples may not fit into memory.

        Args:
            examples: inputs in the shape the file takes.
            batch: examples at a time; a file of fixed batch size is fed that many, the last ones padded.
            progress: shows a bar.

        Raises:
            DataError: the examples do not fit the input of the file.
            ModelError: the file fails to run, or its outputs are not finite scores, ``(B, classes)`` for classes.
        """
        progress = progress or Progress(quiet=True)
        self.check(examples)
        batch = self.fixed_batch or batch
        classes = examples.task.name == "classification"
        done = 0
        with progress.task(f"predicting with {self.path.name}", total=-(-len(examples) // batch)) as task:
            for x, targets in examples.batches(batch):
                feed = self.feed(_arrays(x), self.fixed_batch or len(x))
                outputs = (self.run(feed) if classes else self._floats(feed))[: len(x)]
                check_finite(str(self.path), outputs, first=done, total=len(examples))
                yield outputs, targets
                done += len(x)
                task.advance()

    def run(self, x: Feed | npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the outputs ``(B, classes)`` for one batch of the right dtypes.

        Raises:
            ModelError: the file fails to run, or its outputs are not scores ``(B, classes)``.
        """
        return self._floats(x, expected="scores", ndim=2)

    def _floats(
        self, x: Feed | npt.NDArray[Any], expected: str = "numbers", ndim: int | None = None
    ) -> npt.NDArray[np.float32]:
        y, rows = self.run_raw(x), len(next(iter(self._feed(x).values())))
        shape = getattr(y, "shape", None)
        fits = shape and shape[0] == rows and len(shape) == (ndim or max(len(shape), 2))
        if not fits or not np.issubdtype(y.dtype, np.floating):
            found = f"{getattr(y, 'dtype', type(y).__name__)} of shape {shape}"
            raise ModelError(
                f"{self.path} gives {found} for {rows} examples; expected floating-point {expected} "
                f"({rows}, {'classes' if ndim else '...'}): export the module that returns one row of scores for each"
            )
        return np.asarray(y, dtype=np.float32)

    def run_raw(self, x: Feed | npt.NDArray[Any]) -> Any:
        """Return what the runtime gives for one batch, unchecked: the call that is timed.

        Raises:
            ModelError: the file fails to run, or takes too much memory or time for such a batch.
        """
        feed = self._feed(x)
        self._trials.check({name: values.shape for name, values in feed.items()})
        try:
            return self._session.run([self.output], feed)[0]
        except Exception as error:  # the runtime's exceptions have no common base
            raise ModelError(
                f"{self.path} fails on a batch of {len(next(iter(feed.values())))}: {first_line(error)}; expected it "
                "to run: export it again with a batch of two or more and a dynamic batch dimension"
            ) from error

    def batch_of(self, examples: Examples, size: int) -> Feed:
        """Return ``size`` real examples in the dtypes of the file, repeated where there are too few.

        Raises:
            DataError: the examples do not fit, or the file takes another batch size only.
            ModelError: the file takes too much memory or time for such a batch.
        """
        self.check(examples)
        if self.fixed_batch not in (None, size):
            raise DataError(
                f"{self.path} takes batches of {self.fixed_batch} only, asked for was {size}; export it with a "
                f"dynamic batch dimension, or measure with batches=({self.fixed_batch},)"
            )
        feed = self.feed(_arrays(examples.batch(slice(0, size))[0]), size)
        self._trials.check(
            {name: values.shape for name, values in feed.items()}
        )  # not within the time of the first call
        return feed

    def check(self, examples: Examples) -> None:
        """Raise DataError unless there are examples of the names, shapes and kinds of numbers that the file takes."""
        if len(examples) == 0:
            raise DataError(f"found no examples to run {self.path} on; expected at least one")
        for name, found in self.named(examples.shapes).items():
            expected = self.inputs[name].shape[1:]
            fits = len(found) == len(expected) and all(
                not isinstance(want, int) or want == have for have, want in zip(found, expected, strict=True)
            )
            if not fits:
                mend = "give the data the file was exported for, in the same size and layout"
                if len(found) == 3 and (found[1], found[2], found[0]) == tuple(expected):
                    mend = "the file takes channels last: permute the inputs, x.permute(0, 2, 3, 1)"
                elif len(found) == 3 and (found[2], found[0], found[1]) == tuple(expected):
                    mend = "the file takes channels first: permute the inputs, x.permute(0, 3, 1, 2)"
                raise DataError(
                    f"one example has shape {found}, but the input {name!r} of {self.path} expects "
                    f"({', '.join(map(str, expected))}); {mend}"
                )

    def named(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return what belongs to the inputs by their names in the file; one alone may have any name in the data.

        Raises:
            DataError: the file takes other inputs.
        """
        if len(values) == len(self.inputs) == 1:
            return {next(iter(self.inputs)): next(iter(values.values()))}
        if values.keys() != self.inputs.keys():
            raise DataError(
                f"the data give the inputs {', '.join(map(repr, values))}, {self.path} takes "
                f"{', '.join(map(repr, self.inputs))}; expected the same names: give the data those"
            )
        return dict(values)

    def feed(self, x: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]], size: int) -> Feed:
        """Repeat rows up to ``size`` and cast to the dtypes of the file.

        Raises:
            DataError: floating-point numbers for an input of integers.
        """
        feed = {}
        for name, values in self.named(x if isinstance(x, Mapping) else {"x": x}).items():
            dtype = self.inputs[name].dtype
            if np.issubdtype(values.dtype, np.floating) and not np.issubdtype(dtype, np.floating):
                raise DataError(
                    f"the data give {values.dtype} for the input {name!r} of {self.path}, which takes {dtype}; "
                    "expected integers (tokens) or a mask"
                )
            rows = np.resize(values, (size, *values.shape[1:])) if len(values) < size else values
            feed[name] = np.ascontiguousarray(rows, dtype=dtype)
        return feed

    def _feed(self, x: Feed | npt.NDArray[Any]) -> Feed:
        return x if isinstance(x, dict) else {next(iter(self.inputs)): x}


def _arrays(x: Inputs) -> dict[str, npt.NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in as_tensors(x).items()}


def _input_spec(path: Path, given: Any) -> InputSpec:
    """Return what one input takes.

    Raises:
        ModelError: it takes no batch of numbers.
    """
    if given.type not in _DTYPES or not given.shape:
        raise ModelError(
            f"{path} takes {given.type} of shape {given.shape} as {given.name!r}; expected a batch of numbers, one of "
            f"{', '.join(_DTYPES)}: export it with such an input"
        )
    return InputSpec(tuple(given.shape), _DTYPES[given.type])


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
