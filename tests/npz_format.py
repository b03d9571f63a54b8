"""A format in one file, as a user would write it: dense layers in NumPy's archive, computed by NumPy."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import nutlet as nl
from nutlet.formats import Contents, Session, StoredTensor, TensorSpec
from nutlet.graph.finalize import finalize
from nutlet.graph.kernels import WEIGHTED, KernelProfile
from nutlet.storage import write_atomic
from nutlet.tasks.inputs import Inputs

Array = npt.NDArray[Any]


def export(
    model: nn.Module, path: Path | str, example: Inputs, *, output: str | int | None = None, packed: bool = True
) -> Path:
    """Write dense layers with ReLU between them; ``packed`` weights are compressed as the archive does it."""
    if not isinstance(example, torch.Tensor):
        raise nl.ExportError("found inputs by name; expected one: use ONNX")
    plain = finalize(model)
    layers = [module for module in plain.modules() if not list(module.children())]
    arrays: dict[str, Array] = {}
    for layer in layers:
        if not isinstance(layer, nn.Linear | nn.ReLU | nn.Flatten | nn.Identity):
            raise nl.ExportError(f"found a {type(layer).__name__}; expected nn.Linear and nn.ReLU alone: use ONNX")
    for number, layer in enumerate(layer for layer in layers if isinstance(layer, nn.Linear)):
        arrays[f"w{number}"] = layer.weight.detach().numpy()
        arrays[f"b{number}"] = layer.bias.detach().numpy()
    found = torch.from_numpy(compute(arrays, example.numpy()))
    if not torch.allclose(found, plain(example), atol=1e-4):
        raise nl.ExportError("the file answers otherwise than the model; expected dense layers with ReLU between them")
    save = np.savez_compressed if packed else np.savez

    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            save(file, **arrays)  # type: ignore[arg-type]

    write_atomic(Path(path), write)
    return Path(path)


def compute(arrays: dict[str, Array], x: Array) -> Array:
    last = len(arrays) // 2 - 1
    for number in range(last + 1):
        x = x @ arrays[f"w{number}"].T + arrays[f"b{number}"]
        x = np.maximum(x, 0) if number < last else x
    return x


class NpzSession:
    def __init__(self, content: bytes, path: Path, threads: int) -> None:
        self.content, self.threads, self._path = content, threads, path
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                self._arrays = {name: archive[name] for name in archive.files}
            layers = range(len(self._arrays) // 2)
            shapes = [self._arrays[f"w{n}"].shape for n in layers]
            if any(self._arrays[f"b{n}"].shape != shapes[n][:1] for n in layers) or not shapes:
                raise ValueError("the shapes do not fit")
            if any(before[0] != after[1] for before, after in itertools.pairwise(shapes)):
                raise ValueError("the shapes do not follow each other")
            if any(array.dtype != np.float32 for array in self._arrays.values()):
                raise ValueError("its numbers are not float32")
        except Exception as error:  # of zipfile, zlib, NumPy
            raise nl.StorageError(f"{path} is damaged: {error}; expected dense layers: export it again") from error
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "float32", ("batch", shapes[0][1])),)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "float32", ("batch", shapes[-1][0])),)

    def admit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Any shape is: nothing in a file makes it compute more than its size says."""

    def run(self, feed: Mapping[str, Array], outputs: tuple[str, ...] = ()) -> tuple[Array, ...]:
        try:
            return (compute(self._arrays, feed["x"]),)
        except ValueError as error:
            raise nl.ModelError(f"{self._path} fails: {error}; expected rows of another length") from error

    def reopened(self, threads: int) -> Session:
        return NpzSession(self.content, self._path, threads)


class NpzReader:
    def load(self, path: Path | str, *, output: str | None = None) -> nn.Module:
        arrays = NpzSession(NPZ.read(path), Path(path), 1)._arrays
        layers: list[nn.Module] = []
        for number in range(len(arrays) // 2):
            rows, columns = arrays[f"w{number}"].shape
            layer = nn.Linear(columns, rows)
            layer.load_state_dict(
                {"weight": torch.from_numpy(arrays[f"w{number}"]), "bias": torch.from_numpy(arrays[f"b{number}"])}
            )
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers[:-1]).eval()

    def inspect(self, path: Path | str) -> Contents:
        arrays = NpzSession(NPZ.read(path), Path(path), 1)._arrays
        shapes = ("x".join(map(str, array.shape)) for name, array in arrays.items() if name[0] == "w")
        return Contents(
            texts=(),
            tensors=tuple(StoredTensor(array, 32) for array in arrays.values()),
            operators=tuple(f"Gemm {shape}" for shape in shapes),
        )


NPZ = nl.Format(
    name="NPZ",
    suffixes=(".dense.npz",),
    magic=(b"PK\x03\x04",),
    largest=2**28,
    runtime=lambda: f"NumPy {np.__version__}",
    export=export,
    open=NpzSession,
    reader=NpzReader(),
    kernels=KernelProfile(integer_ops=WEIGHTED, fused_tails=frozenset(), pairs_saturate=False),
)
