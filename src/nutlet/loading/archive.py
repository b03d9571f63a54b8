"""The zip archive of ``torch.export.save``, read without unpickling, importing or evaluating anything in it.

``torch.export.load`` is not safe on a file from elsewhere (read in PyTorch 2.13): it falls back to full unpickling
for sample inputs and for weights marked ``use_pickle``, unpickles custom objects, evaluates shape expressions with
``sympy.sympify``, and looks operators up anywhere below ``torch``. A program needs none of that: its graph is JSON and
its weights are raw bytes. So this module reads these two, and refuses the rest.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.errors import StorageError, first_line, shown
from nutlet.loading.checkpoint import check_stored

__all__ = ["DTYPES", "NAME", "Program", "read_program"]

SCHEMA = 8
"""The major version of the schema that is understood; PyTorch raises it when files become unreadable to older code."""

DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""``ScalarType`` of the schema by its number."""

NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
"""What a parameter may be called; names end up in generated code, so nothing else is let through."""

_STRIDED = 7
_LARGEST_JSON = 32 * 2**20
"""Bytes; parsed, it takes about ten times as many."""


@dataclass(frozen=True)
class Program:
    """An exported program as data: ``graph`` and ``signature`` are parsed JSON, ``tensors`` the weights by name."""

    graph: dict[str, Any]
    signature: dict[str, Any]
    tensors: dict[str, Tensor]
    source: str


def read_program(path: Path) -> Program:
    """Read ``path``.

    Raises:
        StorageError: not such an archive, a damaged one, one of another schema, or one whose content would have to
            be unpickled or executed.
    """
    if not path.is_file():
        raise StorageError(f"found no file {path}; expected a program written by torch.export.save")
    try:
        return _read(path)
    except StorageError:
        raise
    except Exception as error:  # a damaged or hostile archive may raise anything
        raise StorageError(
            f"{path} cannot be read as an exported program ({type(error).__name__}: {first_line(error)}); expected a "
            "file written by torch.export.save of PyTorch 2.9 or later: write it anew"
        ) from error


def _read(path: Path) -> Program:
    with zipfile.ZipFile(path) as archive:
        check_stored(archive, path)
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "models/model.json" not in members:
            raise StorageError(
                f"{path} holds no program (models/model.json); expected a file written by torch.export.save of "
                "PyTorch 2.9 or later"
            )
        compiled = [name for name in members if name.startswith("data/aotinductor/")]
        if compiled:
            raise StorageError(f"{path} holds machine code, which was not loaded; expected a plain torch.export.save")
        model = _json(archive, members["models/model.json"], path)
        major = model["schema_version"]["major"]
        if major != SCHEMA:
            raise StorageError(f"{path} has schema {shown(major)}; expected {SCHEMA}: export again with this PyTorch")
        tensors: dict[str, Tensor] = {}
        for folder, config in (("weights", "model_weights_config.json"), ("constants", "model_constants_config.json")):
            member = members.get(f"data/{folder}/{config}")
            if member is None:
                raise StorageError(
                    f"{path} holds its {folder} as a pickle, which may hold code and was not executed; expected the "
                    "format of PyTorch 2.9 or later: export again"
                )
            tensors |= _tensors(archive, members, folder, _json(archive, member, path)["config"], path)
    module = model["graph_module"]
    return Program(module["graph"], module["signature"], tensors, str(path))


def _json(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Any:
    if member.file_size > _LARGEST_JSON:
        raise StorageError(
            f"{path} holds {shown(member.filename)} of {member.file_size:,} bytes; expected at most {_LARGEST_JSON:,}: "
            "name the model's Python factory instead"
        )
    return json.loads(archive.read(member))


def _tensors(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: str, config: dict[str, Any], path: Path
) -> dict[str, Tensor]:
    """Return the tensors of one folder; names with the same bytes share one tensor, as tied weights do."""
    made: dict[str, Tensor] = {}
    tensors = {}
    allowance = path.stat().st_size  # differing views of the same bytes are copies, and could be many
    for name, entry in config.items():
        if entry["use_pickle"] or not entry["path_name"].startswith(("weight_", "tensor_")):
            raise StorageError(
                f"{path} holds {shown(name)} as a pickled object, which may hold code and was not executed; expected "
                "plain tensors: export the model without custom objects and tensor subclasses"
            )
        if not NAME.fullmatch(name):
            raise StorageError(f"{path} holds a tensor named {shown(name)}; expected letters, digits, _ and dots")
        key = json.dumps(entry, sort_keys=True)
        if key not in made:
            data = archive.read(members[f"data/{folder}/{entry['path_name']}"])
            tensor = _tensor(bytearray(data), entry["tensor_meta"], name)
            allowance -= tensor.nbytes
            if allowance < 0:
                raise StorageError(f"{path} declares tensors of more bytes than it has; the file is damaged")
            made[key] = nn.Parameter(tensor) if entry["is_param"] and tensor.is_floating_point() else tensor
        tensors[name] = made[key]
    return tensors


def _tensor(data: bytearray, meta: dict[str, Any], name: str) -> Tensor:
    sizes = [int(size["as_int"]) for size in meta["sizes"]]
    strides = [int(stride["as_int"]) for stride in meta["strides"]]
    offset = int(meta["storage_offset"]["as_int"])
    dtype = DTYPES[meta["dtype"]]
    if meta["layout"] != _STRIDED or min([*sizes, *strides, offset], default=0) < 0 or len(sizes) != len(strides):
        raise StorageError(f"{shown(name)} has an unknown layout; expected a dense tensor")
    count = math.prod(sizes)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) if count else -1
    # Overlapping strides could declare far more elements than there are bytes.
    if count > len(data) // dtype.itemsize or last >= len(data) // dtype.itemsize:
        raise StorageError(
            f"{shown(name)} declares {count} values, more than its {len(data)} bytes hold; the file is damaged"
        )
    if not data:
        return torch.zeros(sizes, dtype=dtype)
    usable = len(data) // dtype.itemsize
    return torch.frombuffer(data, dtype=dtype, count=usable).as_strided(sizes, strides, offset).clone()
