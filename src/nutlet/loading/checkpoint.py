"""What a ``.pt`` file would take in memory, found out before ``torch.load`` takes it.

``torch.load(weights_only=True)`` runs no foreign code, but it believes the file: it unpacks compressed members, makes
storages as large as they say they are (in the format before PyTorch 1.6), and calls ``bytearray`` with any number. So
the pickle is read once beforehand, with something inert in the place of every name, and its claims are compared with
the bytes that are there.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from nutlet.errors import StorageError, shown

__all__ = ["check_checkpoint", "check_header", "check_stored", "check_tensor"]

_LARGEST_PICKLE = 64 * 2**20
_LARGEST_HEADER = 16 * 2**20
_SPARE = 16 * 2**20
"""Bytes that a tensor may have beyond those stored for it: a buffer may be one row, expanded."""


def check_checkpoint(path: Path) -> None:
    """Raise StorageError where reading ``path`` would take more memory than it has bytes.

    What is no checkpoint at all passes: ``torch.load`` says what is wrong with it.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic == b"PK\x03\x04":
            _check_archive(file, path)
        else:
            _check_legacy(file, path)


def check_header(path: Path) -> None:
    """Raise StorageError where the header of a ``.safetensors`` file, parsed as a whole, is larger than any needs."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _LARGEST_HEADER:
        raise StorageError(
            f"{path} declares a header of {length:,} bytes; expected at most {_LARGEST_HEADER:,}: it is damaged, or no "
            "safetensors file"
        )


def check_stored(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise StorageError unless all members are stored as they are, each with bytes of its own.

    PyTorch stores without compression, so that the members together cannot be larger than the file.
    """
    infos = archive.infolist()
    packed = next((info for info in infos if info.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise StorageError(
            f"{path} holds a compressed member {shown(packed.filename)}; expected stored ones only, as PyTorch writes "
            "them: write it anew with torch"
        )
    size = path.stat().st_size
    if sum(info.file_size for info in infos) > size:
        raise StorageError(f"{path} declares members of more bytes than the {size:,} it has; the file is damaged")
    if len({info.filename for info in infos}) < len(infos):
        raise StorageError(f"{path} holds two members of one name; expected each once: the file is damaged")


def check_tensor(name: str, tensor: Tensor, path: Path) -> None:
    """Raise StorageError where ``tensor``, read from ``path``, is no dense tensor of real numbers that are there.

    Weights in other forms would lose something without a word (of complex numbers the imaginary part), or need far
    more memory once they are made dense.
    """
    kinds = {
        "a nested tensor": tensor.is_nested,
        f"a sparse tensor ({tensor.layout})": tensor.layout != torch.strided,
        f"a quantized tensor ({tensor.dtype})": tensor.is_quantized,
        "a tensor without values (meta)": tensor.is_meta,
        f"a tensor of complex numbers ({tensor.dtype})": tensor.is_complex(),
    }
    odd = next((kind for kind, applies in kinds.items() if applies), None)
    if odd is not None:
        raise StorageError(
            f"{path}: {shown(name)} is {odd}; expected dense tensors of real numbers: convert it before saving "
            "(tensor.to_dense(), tensor.dequantize(), torch.view_as_real(tensor))"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() + _SPARE:
        raise StorageError(
            f"{path}: {shown(name)} has the shape {tuple(tensor.shape)}, of which the file holds only "
            f"{tensor.untyped_storage().nbytes():,} bytes; expected all values: save tensor.contiguous()"
        )


def _check_archive(file: IO[bytes], path: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            check_stored(archive, path)
            for name in [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]:
                _check_table(archive, name, path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return  # a damaged archive: torch.load says so


def _check_table(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    """Check the pickle ``name``, and that the archive holds as many bytes for each storage as it declares."""
    members = {info.filename: info.file_size for info in archive.infolist()}
    if members[name] > _LARGEST_PICKLE:
        raise StorageError(
            f"{path} has a table of {members[name]:,} bytes; expected at most {_LARGEST_PICKLE:,} beside the tensors: "
            "save the state dict alone"
        )
    with archive.open(name) as table:
        storages = _inspect(table, path, count=1)
    for key, size in storages.items():
        if size > members.get(f"{name.removesuffix('data.pkl')}data/{key}", 0):
            raise StorageError(
                f"{path} declares {size:,} bytes for the storage {shown(key)}, more than it holds; it is damaged"
            )


def _check_legacy(file: IO[bytes], path: Path) -> None:
    """Check the format before PyTorch 1.6: five pickles (a number, a version, a system, the object, the storages)."""
    storages = _inspect(file, path, count=5)
    size = path.stat().st_size
    if sum(storages.values()) > size:
        raise StorageError(
            f"{path} declares tensors of {sum(storages.values()):,} bytes, more than the {size:,} it has; it is damaged"
        )


def _inspect(file: IO[bytes], path: Path, count: int) -> dict[Any, int]:
    """Read ``count`` pickles inertly, and return the bytes of each storage they name."""
    storages: dict[Any, int] = {}
    try:
        for _ in range(count):
            _Inspector(file, storages).load()
    except _TooMuch as error:
        raise StorageError(f"{path} {error}; expected tensors only: save the state dict alone") from error
    except Exception:  # whatever ends the reading here ends torch.load, which says what the file is
        return storages
    return storages


class _TooMuch(Exception):
    pass


class _Inert:
    """Stands for anything a pickle names or makes: calling it, filling it or setting it up does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> _Inert:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take no notice."""

    def extend(self, values: Any) -> None:
        """Take no notice."""

    def add(self, value: Any) -> None:
        """Take no notice."""


class _Named(_Inert):
    """Stands for something that a pickle imports.

    Args:
        module: where it would come from.
        name: of it.
    """

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *arguments: Any, **named: Any) -> _Inert:
        if (self.module, self.name) in _GROWING and any(isinstance(item, int) for item in arguments):
            raise _TooMuch(f"asks for {self.name}({shown(arguments[0])})")
        return _Inert()


_GROWING = {("builtins", "bytearray"), ("__builtin__", "bytearray")}


class _Inspector(pickle._Unpickler):
    """The unpickler written in Python, whose memory depends on the length of the pickle alone; it imports nothing."""

    def __init__(self, file: IO[bytes], storages: dict[Any, int]) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        return _Named(module, name)

    def persistent_load(self, reference: Any) -> Any:
        """Note the storage that ``("storage", type, key, location, count, …)`` names."""
        if isinstance(reference, tuple) and len(reference) >= 5 and reference[0] == "storage":
            kind, key, count = reference[1], reference[2], reference[4]
            self.storages[key] = count * _ITEM_SIZES.get(kind.name, 1)
        return _Inert()


_ITEM_SIZES = {
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
    "DoubleStorage": 8,
    "LongStorage": 8,
    "FloatStorage": 4,
    "IntStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "ShortStorage": 2,
}
"""Bytes of one element of a typed storage; others have one."""
