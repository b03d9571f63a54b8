"""A shipped file in its runtime, fed with examples and opened as a file of unknown origin, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nutlet.data.columns import Columns
from nutlet.data.examples import Examples
from nutlet.errors import DataError, ModelError, printable
from nutlet.formats.base import Format, Session, TensorSpec
from nutlet.formats.known import format_of
from nutlet.formats.outputs import chosen_output
from nutlet.formats.table import TableFeed
from nutlet.machine import cores
from nutlet.progress import Progress
from nutlet.tasks.inputs import Inputs, as_tensors
from nutlet.tasks.outputs import check_finite

__all__ = ["Runtime"]

Feed = dict[str, npt.NDArray[Any]]
"""One batch by the names of the inputs of a file, in its dtypes."""
Value = TypeVar("Value")


class Runtime:
    """A shipped file, opened in the runtime of its format on the CPU.

    Args:
        path: of the file: inputs ``(N, ...)``, one output ``(N, classes)`` or as its task has it.
        threads: threads for one operator; 0 for all cores. ``self.threads`` holds the true count.
        output: name of the output that holds the scores; by default the only one that can.
        columns: where the examples are rows of a table, what their numbers stand for: the file may take one input for
            each column, of numbers or texts.

    Raises:
        StorageError: there is no such file, it is of no known format, damaged, or needs other files.
        ModelError: the runtime refuses the file, or it has an input of no numbers, or not one output of scores.
        ConfigError: there is no such output.
    """

    def __init__(
        self, path: str | Path, *, threads: int = 0, output: str | None = None, columns: Columns | None = None
    ) -> None:
        self.path = Path(path)
        self.format = format_of(path)
        self._use(self.format.open(self.format.read(path), self.path, threads or cores()), output, columns)

    def reopened(self, threads: int) -> Runtime:
        """Return the same bytes opened with another number of threads."""
        return self._like(
            self.path, self.format, self._session.reopened(threads or cores()), self.output, self._columns
        )

    @staticmethod
    def from_bytes(
        content: bytes, path: Path, *, threads: int = 0, output: str | None = None, columns: Columns | None = None
    ) -> Runtime:
        """Open the content of the file that lay at ``path``."""
        form = format_of(path, content)
        return Runtime._like(path, form, form.open(content, path, threads or cores()), output, columns)

    @staticmethod
    def _like(path: Path, form: Format, session: Session, output: str | None, columns: Columns | None) -> Runtime:
        runtime = object.__new__(Runtime)
        runtime.path, runtime.format = path, form
        runtime._use(session, output, columns)
        return runtime

    def _use(self, session: Session, output: str | None, columns: Columns | None) -> None:
        self._session, self._columns = session, columns
        self.content, self.threads = session.content, session.threads
        for given in session.inputs:
            if given.is_text and given.shape and columns is None:
                raise ModelError(
                    f"{self.path} takes texts as {printable(given.name)!r}; expected a table, whose columns hold "
                    "texts: give a .csv or .parquet file and the name of its label (label=, --label)"
                )
            if not (given.is_number or given.is_text) or not given.shape:
                raise ModelError(
                    f"{self.path} takes {given.dtype} of shape {list(given.shape)} as {given.name!r}; expected a batch "
                    "of numbers, of float32, float16, float64, int64, int32 or bool: export it with such an input"
                )
        self.inputs: dict[str, TensorSpec] = {given.name: given for given in session.inputs}
        if not self.inputs:
            raise ModelError(f"{self.path} takes no input; expected a batch of examples")
        self.output = chosen_output(self.path, session.outputs, output)
        self._table = None if columns is None else TableFeed(self.path, self.inputs, columns)

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
        y, rows = self.run_raw(x), len(next(iter(self._named(x).values())))
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
        return self._session.run(self._named(x), outputs=(self.output,))[0]

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
        # Now, and not within the time of the first call.
        self._session.admit({name: values.shape for name, values in feed.items()})
        return feed

    def check(self, examples: Examples) -> None:
        """Raise DataError unless there are examples of the names, shapes and kinds of numbers that the file takes."""
        if len(examples) == 0:
            raise DataError(f"found no examples to run {self.path} on; expected at least one")
        if self._table is not None:
            if examples.columns != self._columns:
                raise DataError(
                    f"the examples are no rows of the table that {self.path} was opened for; expected its columns: "
                    "read both with one encoding (columns=)"
                )
            return
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

    def shapes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        """Return the shape of one example of each input of the file; ``shapes`` are those of the data.

        Raises:
            DataError: the file takes other inputs.
        """
        return dict(self._table.shapes()) if self._table is not None else self.named(shapes)

    def blank_texts(self) -> dict[str, Any]:
        """Return one row of each input of texts, such as the file knows."""
        row = {} if self._table is None else self._table.blank()
        return {name: values.tolist()[0] for name, values in row.items() if self.inputs[name].is_text}

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
        named = x if isinstance(x, Mapping) else {"x": x}
        for name, values in (self.named(named) if self._table is None else self._table(named["x"])).items():
            wanted = self.inputs[name]
            if self._table is None and np.issubdtype(values.dtype, np.floating) and not wanted.is_floating:
                raise DataError(
                    f"the data give {values.dtype} for the input {name!r} of {self.path}, which takes {wanted.dtype}; "
                    "expected integers (tokens) or a mask"
                )
            rows = np.resize(values, (size, *values.shape[1:])) if len(values) < size else values
            feed[name] = np.ascontiguousarray(rows, dtype=object if wanted.is_text else wanted.dtype)
        return feed

    def _named(self, x: Feed | npt.NDArray[Any]) -> Feed:
        return x if isinstance(x, dict) else {next(iter(self.inputs)): x}


def _arrays(x: Inputs) -> dict[str, npt.NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in as_tensors(x).items()}
