"""A shipped file in its runtime, fed with examples and opened as a file of unknown origin, whatever its format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nutlet.data.examples import Examples
from nutlet.errors import DataError, ModelError
from nutlet.formats.base import Format, Session
from nutlet.formats.known import format_of
from nutlet.formats.outputs import chosen_output
from nutlet.machine import cores
from nutlet.progress import Progress
from nutlet.tasks.outputs import check_finite

__all__ = ["Runtime"]


class Runtime:
    """A shipped file, opened in the runtime of its format on the CPU.

    Args:
        path: of the file: one input ``(N, ...)``, one output ``(N, classes)``.
        threads: threads for one operator; 0 for all cores. ``self.threads`` holds the true count.
        output: name of the output that holds the scores; by default the only one that can.

    Raises:
        StorageError: there is no such file, it is of no known format, damaged, or needs other files.
        ModelError: the runtime refuses the file, or it has not one floating-point input and one output of scores.
        ConfigError: there is no such output.
    """

    def __init__(self, path: str | Path, *, threads: int = 0, output: str | None = None) -> None:
        self.path = Path(path)
        self.format = format_of(path)
        self._use(self.format.open(self.format.read(path), self.path, threads or cores()), output)

    def reopened(self, threads: int) -> Runtime:
        """Return the same bytes opened with another number of threads."""
        return self._like(self.path, self.format, self._session.reopened(threads or cores()), self.output)

    @staticmethod
    def from_bytes(content: bytes, path: Path, *, threads: int = 0, output: str | None = None) -> Runtime:
        """Open the content of the file that lay at ``path``."""
        form = format_of(path, content)
        return Runtime._like(path, form, form.open(content, path, threads or cores()), output)

    @staticmethod
    def _like(path: Path, form: Format, session: Session, output: str | None) -> Runtime:
        runtime = object.__new__(Runtime)
        runtime.path, runtime.format = path, form
        runtime._use(session, output)
        return runtime

    def _use(self, session: Session, output: str | None) -> None:
        self._session = session
        self.content, self.threads = session.content, session.threads
        inputs = session.inputs
        if len(inputs) != 1:
            raise ModelError(
                f"{self.path} has the inputs {[i.name for i in inputs]}; "
                "expected one: export a module that takes one tensor and returns one, (N, classes)"
            )
        if not inputs[0].is_floating or not inputs[0].shape:
            raise ModelError(
                f"{self.path} takes {inputs[0].dtype} of shape {list(inputs[0].shape)}; expected a batch of "
                "floating-point examples, of float32, float16 or float64: export it with such an input"
            )
        self.input_name = inputs[0].name
        self.input_shape = inputs[0].shape
        self.dtype = inputs[0].dtype
        self.output = chosen_output(self.path, session.outputs, output)

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size the file takes, or None where it takes any."""
        first = self.input_shape[0]
        return first if isinstance(first, int) else None

    def predict(
        self, examples: Examples, *, batch: int = 64, progress: Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the outputs ``(N, classes)`` for all examples.

        Args:
            examples: inputs in the shape the file takes.
            batch: examples at a time; a file of fixed batch size is fed that many, the last ones padded.
            progress: shows a bar.

        Raises:
            DataError: the examples do not fit the input of the file.
            ModelError: the file fails to run, or its outputs are not finite scores ``(N, classes)``.
        """
        progress = progress or Progress(quiet=True)
        self.check(examples)
        batch = self.fixed_batch or batch
        rows = []
        with progress.task(f"predicting with {self.path.name}", total=-(-len(examples) // batch)) as task:
            for x, _ in examples.batches(batch):
                rows.append(self.run(self.feed(x.numpy(), self.fixed_batch or len(x)))[: len(x)])
                task.advance()
        outputs: npt.NDArray[np.float32] = np.concatenate(rows)
        check_finite(str(self.path), outputs)
        return outputs

    def run(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the outputs ``(B, classes)`` for one batch ``(B, ...)`` of the right dtype.

        Raises:
            ModelError: the file fails to run, or its outputs are not scores ``(B, classes)``.
        """
        y = self.run_raw(x)
        shape = getattr(y, "shape", None)
        if shape is None or len(shape) != 2 or shape[0] != len(x) or not np.issubdtype(y.dtype, np.floating):
            found = f"{getattr(y, 'dtype', type(y).__name__)} of shape {shape}"
            raise ModelError(
                f"{self.path} gives {found} for {len(x)} examples; expected floating-point scores "
                f"({len(x)}, classes): export the module that returns one row of scores per example"
            )
        return np.asarray(y, dtype=np.float32)

    def run_raw(self, x: npt.NDArray[Any]) -> Any:
        """Return what the runtime gives for one batch, unchecked: the call that is timed.

        Raises:
            ModelError: the file fails to run, or takes too much memory or time for such a batch.
        """
        return self._session.run(x, outputs=(self.output,))[0]

    def batch_of(self, examples: Examples, size: int) -> npt.NDArray[Any]:
        """Return ``size`` real examples in the dtype of the file, repeated where there are too few.

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
        batch = self.feed(examples.batch(slice(0, size))[0].numpy(), size)
        self._session.admit(batch.shape)  # now, and not within the time of the first call
        return batch

    def check(self, examples: Examples) -> None:
        """Raise DataError unless there are examples of the shape the file takes."""
        if len(examples) == 0:
            raise DataError(f"found no examples to run {self.path} on; expected at least one")
        found, expected = tuple(examples.x.shape[1:]), self.input_shape[1:]
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
                f"one example has shape {found}, but the input {self.input_name!r} of {self.path} expects "
                f"({', '.join(map(str, expected))}); {mend}"
            )

    def feed(self, x: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
        """Repeat rows up to ``size`` and cast to the dtype of the file."""
        if len(x) < size:
            x = np.resize(x, (size, *x.shape[1:]))
        return np.ascontiguousarray(x, dtype=self.dtype)
