"""An ONNX file in ONNX Runtime, opened as a file of unknown origin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nutlet.errors import ModelError, first_line
from nutlet.formats.base import TensorSpec
from nutlet.formats.onnx.content import check_content
from nutlet.formats.onnx.limited import Trials

__all__ = ["OnnxSession", "open_onnx", "runtime"]

_DTYPES = {"float": "float32", "double": "float64", "string": "str"}
"""Names of types in ONNX Runtime that NumPy has others for."""


def runtime() -> str:
    """Return ONNX Runtime with its version."""
    from nutlet.formats.onnx import ort

    return f"ONNX Runtime {ort.VERSION}"


def open_onnx(content: bytes, path: Path, threads: int) -> OnnxSession:
    """Open a file of unknown origin; see :class:`nutlet.formats.base.Opener`.

    A file that this process did not write is tried first in a process of its own, limited in memory and time: when it
    is opened, and on each larger batch (:mod:`nutlet.formats.onnx.limited`).

    Raises:
        StorageError: see :func:`nutlet.formats.onnx.content.check_content`.
        ModelError: ONNX Runtime refuses the file.
    """
    return OnnxSession(content, path, threads, check_content(content, path))


class OnnxSession:
    """A file in ONNX Runtime on the CPU, with all graph optimisations; see :class:`nutlet.formats.base.Session`.

    Args:
        content: of the file, checked.
        path: for messages.
        threads: threads for one operator.
        trials: what is known of it.

    Raises:
        ModelError: ONNX Runtime refuses the file.
    """

    def __init__(self, content: bytes, path: Path, threads: int, trials: Trials) -> None:
        from nutlet.formats.onnx import ort

        self.content, self.threads = content, threads
        self._path, self._trials = path, trials
        try:
            self._session = ort.open_session(content, threads)
        except Exception as error:  # the runtime's exceptions have no common base
            raise ModelError(
                f"{runtime()} refuses {path}: {first_line(error)}; expected a file it can "
                "run on the CPU: export it again, with operators and an opset this version knows"
            ) from error
        self.inputs = tuple(map(_spec, self._session.get_inputs()))
        self.outputs = tuple(map(_spec, self._session.get_outputs()))

    def admit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Try a file of unknown origin on inputs of these shapes, in a process with limits.

        Raises:
            ModelError: it takes too much memory or time.
        """
        self._trials.check(dict(shapes))

    def run(self, feed: Mapping[str, npt.NDArray[Any]], outputs: tuple[str, ...] = ()) -> tuple[npt.NDArray[Any], ...]:
        """Return the outputs for one batch: those named, or all in the order of the file.

        Raises:
            ModelError: the file fails to run, or takes too much memory or time for such a batch.
        """
        self.admit({name: values.shape for name, values in feed.items()})
        try:
            given = self._session.run(list(outputs) or None, dict(feed))
            return tuple(map(_scores_by_class, given))
        except Exception as error:  # the runtime's exceptions have no common base
            raise ModelError(
                f"{self._path} fails on a batch of {len(next(iter(feed.values())))}: {first_line(error)}; expected it "
                "to run: export it again with a batch of two or more and a dynamic batch dimension"
            ) from error

    def reopened(self, threads: int) -> OnnxSession:
        """Return the same bytes opened with another number of threads."""
        return OnnxSession(self.content, self._path, threads, self._trials)


def _scores_by_class(value: Any) -> Any:
    """Return a list of maps from each class to its score as a matrix, and anything else as it is."""
    if not isinstance(value, list) or not value or not all(isinstance(row, dict) for row in value):
        return value
    classes = list(value[0])
    if any(list(row) != classes for row in value):
        return value
    return np.array([list(row.values()) for row in value], np.float32)


def _spec(value: Any) -> TensorSpec:
    kind: str = value.type
    if kind.startswith("tensor("):
        kind = kind.removeprefix("tensor(").removesuffix(")")
        kind = _DTYPES.get(kind, kind)
    return TensorSpec(value.name, kind, tuple(value.shape or ()))
