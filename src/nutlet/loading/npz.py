"""Arrays from ``.npz`` files: bounds are checked before memory is taken, and nothing is unpickled."""

from __future__ import annotations

import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nutlet.data.columns import Columns
from nutlet.errors import DataError, NutletError, StorageError, first_line, shown
from nutlet.findings import Finding
from nutlet.storage import digest, sweep, write_atomic

__all__ = ["MAX_BYTES", "Arrays", "cache_folder", "cached", "natural", "read_npz", "read_npz_folder"]

MAX_BYTES = 16 * 2**30
"""No more than this is read from one file."""

_MAX_RATIO = 200
# Deflate reaches 1,032 to 1 on zeros, images and sparse features about 50; what is larger than this and packs better
# still was made to fill memory.
_RATIO_FROM = 64 * 2**20
_CHUNK = 4 * 2**20
# Smaller files are read faster than they are looked up.
_CACHED_FROM = 4 * 2**20


@dataclass(frozen=True)
class Arrays:
    """Inputs and labels as they were found, with test and validation set and the encoding of a table if there are any.

    ``findings`` are what a user has to know of how they were read.
    """

    x: np.ndarray
    y: np.ndarray | None
    test_x: np.ndarray | None = None
    test_y: np.ndarray | None = None
    validation_x: np.ndarray | None = None
    validation_y: np.ndarray | None = None
    columns: Columns | None = field(default=None, kw_only=True)
    findings: tuple[Finding, ...] = field(default=(), kw_only=True)


def read_npz(path: Path) -> Arrays:
    """Read ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test``, ``y_test``, from ``path``; other arrays are left.

    Raises:
        StorageError: the file is damaged, would have to be unpickled, or declares more than :data:`MAX_BYTES` or
            than it holds.
        DataError: the arrays have other names.
    """
    if not path.is_file():
        raise StorageError(f"found no file {path}; expected an .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {info.filename.removesuffix(".npy") for info in archive.infolist()}
            if {"x_train", "y_train"} <= names:
                wanted = ["x_train", "y_train", *(["x_test", "y_test"] if {"x_test", "y_test"} <= names else [])]
            elif {"x", "y"} <= names:
                wanted = ["x", "y"]
            else:
                raise DataError(
                    f"{path} holds the arrays {', '.join(sorted(names))[:200] or '(none)'}; expected x and y, or "
                    "x_train, y_train, x_test and y_test: save it with numpy.savez(path, x=..., y=...)"
                )
            _check_sizes(archive, wanted, path)
            return Arrays(*(_member(archive, name, path) for name in wanted))
    except NutletError:
        raise
    except Exception as error:  # zip, LZMA, bzip2 and npy readers raise many kinds on damaged files
        raise StorageError(
            f"{path} cannot be read as .npz ({type(error).__name__}: {first_line(error)}); expected a whole file from "
            "numpy.savez, this one is damaged or of another kind: copy or save it anew"
        ) from error


def _check_sizes(archive: zipfile.ZipFile, names: list[str], path: Path) -> None:
    """Refuse what would take too much memory, by the sizes declared: reading holds each array to its own."""
    infos = [archive.getinfo(f"{name}.npy") for name in names]
    size = sum(info.file_size for info in infos)
    packed = min(sum(info.compress_size for info in infos), path.stat().st_size)
    if size > MAX_BYTES or (size > _RATIO_FROM and size > _MAX_RATIO * max(packed, 1)):
        raise StorageError(
            f"{path} unpacks to {size:,} bytes from {packed:,}; expected at most {MAX_BYTES:,} and, from "
            f"{_RATIO_FROM:,} on, no more than {_MAX_RATIO:,} to 1: split the data, or save them with numpy.savez"
        )


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise StorageError(f"{path}: {name} has npy version {version}; expected 1.0 or 2.0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, fortran, dtype = readers[version](file)
        if dtype.hasobject:
            raise StorageError(
                f"{path}: {name} holds pickled objects, which may hold code and were not read; expected numbers: "
                "save it with an explicit dtype"
            )
        if dtype.kind not in "uifb" or dtype.itemsize == 0:
            raise DataError(f"{path}: {name} has dtype {shown(dtype)}; expected numbers")
        size = math.prod(shape) * dtype.itemsize
        held = info.file_size - file.tell()
        if min(shape, default=0) < 0 or size != held:
            raise StorageError(
                f"{path}: {name} declares {shown(shape)} of {dtype}, {size:,} bytes, but holds {held:,}; the file is "
                "damaged"
            )
        # Grows with what really comes out, whatever was declared.
        data = bytearray()
        while chunk := file.read(min(_CHUNK, size - len(data) + 1)):
            data += chunk
            if len(data) > size:
                break
    if len(data) != size:
        raise StorageError(f"{path}: {name} ends after {len(data):,} of {size:,} bytes; the file is cut short")
    array = np.frombuffer(data, dtype=dtype)
    array = array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
    # In native byte order and C order, as torch wants it.
    return np.ascontiguousarray(array, dtype=dtype.newbyteorder("="))


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key under which ``train_2`` comes before ``train_10``."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def read_npz_folder(folder: Path) -> Arrays:
    """Read ``train*.npz``, joined in natural order, and ``test*.npz`` if there are any."""
    files = sorted(folder.glob("*.npz"), key=natural)
    train = [file for file in files if file.name.startswith("train")]
    test = [file for file in files if file.name.startswith("test")]
    if not train:
        raise DataError(
            f"{folder} holds {', '.join(file.name for file in files[:5])}; expected train*.npz, and test*.npz for the "
            "test set: rename the files, or name one of them"
        )
    x, y = _join(train)
    return Arrays(x, y, *(_join(test) if test else ()))


def _join(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    parts = [read_npz(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part.x.ndim == 0 or part.y is None or part.y.ndim == 0 or part.x.shape[1:] != parts[0].x.shape[1:]:
            raise DataError(
                f"{file} has inputs of shape {part.x.shape}, {files[0].name} of {parts[0].x.shape}; expected parts of "
                "one data set, equal but for the number of rows"
            )
        if part.x.dtype != parts[0].x.dtype:
            raise DataError(f"{file} has dtype {part.x.dtype}, {files[0].name} {parts[0].x.dtype}; expected one dtype")
    return np.concatenate([part.x for part in parts]), np.concatenate([np.asarray(part.y) for part in parts])


def cache_folder() -> Path | None:
    """Return ``$NUTLET_CACHE``, or ``~/.cache/nutlet``; it can be deleted at any time.

    None where there is neither: in a container, a user may have no home.
    """
    if given := os.environ.get("NUTLET_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "nutlet"
    except RuntimeError:
        return None


def cached(source: Path, files: list[Path], read: Callable[[], Arrays]) -> Arrays:
    """Return what ``read`` returns for ``source``, kept uncompressed in the cache.

    It stands while the names, sizes and dates of ``files`` do.
    """
    stats = [(str(file.resolve()), file.stat()) for file in files if file.is_file()]
    cache = cache_folder()
    if cache is None or sum(stat.st_size for _, stat in stats) < _CACHED_FROM:
        return read()
    key = digest(str(source.resolve()), *(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats))[:32]
    folder = cache / "arrays" / key
    try:
        found = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("x", "y")}
        if (folder / "test_x.npy").exists():
            found |= {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("test_x", "test_y")}
        return Arrays(**found)
    except Exception:  # no entry, or a damaged one, which may raise anything: it is made anew
        arrays = read()
    sweep(folder)
    # Labels of the training set last: without them the entry does not count as complete.
    for name in ("test_x", "test_y", "x", "y"):
        array = getattr(arrays, name)
        if array is not None:
            try:
                write_atomic(folder / f"{name}.npy", lambda aside, array=array: _save(aside, array))  # type: ignore[misc]
            except (StorageError, OSError):
                break  # a cache that cannot be written only costs time
    return arrays


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
