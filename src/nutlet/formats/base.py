"""What a file format is: how a module becomes a file, how the file runs, and how it is read back.

Everything above this folder finds the format of a file by its name and its first bytes
(:func:`nutlet.formats.format_of`) and works with these protocols alone. A new format is one :class:`Format`, given to
:func:`register_format`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import nn

from nutlet.errors import ModelError
from nutlet.formats.files import read_file
from nutlet.graph.kernels import KERNELS, KernelProfile
from nutlet.registry import Registry
from nutlet.tasks.inputs import Inputs

__all__ = [
    "REGISTRY",
    "Contents",
    "Exporter",
    "Format",
    "Opener",
    "Reader",
    "Session",
    "StoredTensor",
    "TensorSpec",
    "Text",
    "register_format",
]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a file.

    Args:
        name: of the value.
        dtype: as NumPy calls it, ``float32``; the runtime's own word, with brackets, where it is no tensor.
        shape: batch first; a name, or None, for a size that is free.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor, and no map or sequence."""
        return "(" not in self.dtype

    @property
    def is_text(self) -> bool:
        """Whether it holds texts."""
        return self.dtype == "str"

    @property
    def is_scores_by_class(self) -> bool:
        """Whether it is a list of maps from a class to its score, one for each example, as scikit-learn's files give.

        A session returns it as a matrix ``(N, classes)``, in the order of the classes.
        """
        return self.dtype in ("seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))")

    @property
    def is_floating(self) -> bool:
        """Whether it holds floating-point numbers that NumPy has."""
        return self.dtype in ("float16", "float32", "float64")

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers that examples can be cast to."""
        return self.is_floating or self.dtype in ("int32", "int64", "bool")


class Session(Protocol):
    """A file in its runtime. Several threads may run it at a time.

    Args:
        content: the bytes of the file.
        threads: threads for one operator.
        inputs: what it takes, the batch first.
        outputs: what it gives.
    """

    content: bytes
    threads: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def admit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make sure that inputs of these shapes ask for no more memory and time than a file of unknown origin may.

        What takes long is done here, so that it falls into no measured time.

        Raises:
            ModelError: they ask for more.
        """

    def run(self, feed: Mapping[str, Array], outputs: tuple[str, ...] = ()) -> tuple[Array, ...]:
        """Return the outputs for one batch, its inputs given by name: those named, or all in the order of the file.

        Raises:
            ModelError: the file fails to run on it.
        """

    def reopened(self, threads: int) -> Session:
        """Return the same bytes opened with another number of threads."""


class Opener(Protocol):
    """Opens files of one format in their runtime."""

    def __call__(self, content: bytes, path: Path, threads: int) -> Session:
        """Open a file of unknown origin.

        Args:
            content: of the file; all of it, nothing else is read.
            path: for messages.
            threads: threads for one operator, 1 or more.

        Raises:
            StorageError: it is damaged, cut off, of another format, or needs other files.
            ModelError: the runtime refuses it.
        """


class Exporter(Protocol):
    """Writes files of one format."""

    def __call__(
        self,
        model: nn.Module,
        path: Path | str,
        example: Inputs,
        *,
        output: str | int | None = None,
        packed: bool = True,
    ) -> Path:
        """Write ``model`` into one file, written aside and renamed, and return its path.

        Args:
            model: any module or result of the chain, constraints and quantizers on it; it is not changed.
            path: where the file goes.
            example: two real inputs, batch first, one tensor or several by name: what the file answers to them has to
                be what the module does.
            output: which output the file gives, where the module gives several.
            packed: whether weights may take as few bits as they need; False: as plainly as the format stores them.

        Raises:
            ExportError: the format has no form for the model, or the file answers otherwise.
            StorageError: the file cannot be written.
        """


@dataclass(frozen=True)
class Text:
    """A text in a file.

    Args:
        kind: what it stands there for; ``input`` is what whoever runs the file has to know: how inputs are prepared,
            what outputs are called.
        text: it, cut where it is long.
    """

    kind: Literal["name", "doc", "metadata", "input", "other"]
    text: str


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """Trained numbers as they are stored.

    Args:
        values: the numbers: floats, or integer codes.
        bits: that each takes in the file's own type, before any packing.
        zero: the numbers that stand for zero, broadcast against ``values``.
    """

    values: Array
    bits: int
    zero: Array = field(default_factory=lambda: np.zeros(1))


@dataclass(frozen=True)
class Contents:
    """What anybody can read in a file without running it.

    Args:
        texts: every text in it that is not empty.
        tensors: every trained tensor; not scales and zero points.
        operators: those with weights, in the order of the file, each with the shape of its weight: ``Conv 8x3x3x3``.
        producer: what wrote it, as the file says; empty where it does not.
        training: what was left in it of the training, beside texts: one line each.
    """

    texts: tuple[Text, ...]
    tensors: tuple[StoredTensor, ...]
    operators: tuple[str, ...]
    producer: str = ""
    training: tuple[str, ...] = ()


class Reader(Protocol):
    """Reads files of one format without its runtime."""

    def load(self, path: Path | str, *, output: str | None = None) -> nn.Module:
        """Return the file as a module that can be differentiated and trained, in evaluation mode.

        Args:
            path: of the file.
            output: name of the output to compute; the only one where it is not given.

        Raises:
            StorageError: it is damaged or of another format.
            ModelError: something in it is not understood.
        """

    def inspect(self, path: Path | str) -> Contents:
        """Return what can be read in the file.

        Raises:
            StorageError: it is damaged or of another format.
        """


def _tells_nothing(model: nn.Module, example: Inputs) -> str:
    """Return no problem: what keeps a model from being exported shows in the export."""
    return ""


def _says_nothing(path: Path) -> dict[str, Any]:
    """Return no description."""
    return {}


@dataclass(frozen=True)
class Format:
    """A file format with its runtime.

    Args:
        name: as its makers write it: ``ONNX``.
        suffixes: ends of file names, the usual one first: ``(".onnx",)``.
        runtime: returns the name and version of what runs the files.
        export: writes one.
        open: opens one in the runtime.
        magic: beginnings of files, one of which every file of the format has; none where any beginning may be.
        largest: bytes that a file may have.
        reader: reads one without its runtime; None where nothing does.
        kernels: what the integer kernels of the runtime take.
        export_problem: returns in seconds what would keep a module (with two inputs) from being exported, or nothing.
        bare: a Python file that imports the runtime and nothing of nutlet, with a function ``open_bare(path)`` that
            returns one that runs a batch, its inputs by name: for the measurement of memory. None: memory is not told.
        describe: writes into a file how its input is prepared, see :func:`nutlet.describe`; None: it has no place for
            that.
        described: reads it.
    """

    name: str
    suffixes: tuple[str, ...]
    runtime: Callable[[], str]
    export: Exporter
    open: Opener
    magic: tuple[bytes, ...] = ()
    largest: int = 2**31 - 1
    reader: Reader | None = None
    kernels: KernelProfile = KERNELS
    export_problem: Callable[[nn.Module, Inputs], str] = _tells_nothing
    bare: Path | None = None
    describe: Callable[..., Path] | None = None
    described: Callable[[Path], dict[str, Any]] = _says_nothing

    @property
    def file(self) -> str:
        """How a file of this format is called in a message: ``an ONNX file``."""
        return f"{'an' if self.name[0] in 'AEIOU' else 'a'} {self.name} file"

    def need_reader(self) -> Reader:
        """Return the reader.

        Raises:
            ModelError: there is none.
        """
        if self.reader is None:
            raise ModelError(f"nothing here reads {self.file}; expected a format with a reader, as ONNX has one")
        return self.reader

    def read(self, path: Path | str) -> bytes:
        """Return the content of a file of this format, to be opened.

        Raises:
            StorageError: there is no such file, it is no regular one, or it is larger than :attr:`largest`.
        """
        return read_file(path, self.file, self.largest)


REGISTRY: Registry[Format] = Registry("a format", "nutlet.formats")
"""All that are registered; :func:`nutlet.formats.known_formats` has ours among them."""


def register_format(added: Format) -> Format:
    """Make a format known: whatever writes, measures, audits or reads files takes its files from now on.

    An installed package declares its own under the entry point group ``nutlet.formats``.

    Raises:
        ConfigError: there is a format of that name.
    """
    REGISTRY.add(added)
    return added
