"""The result of a chain: a module with its history, saved as tensors and JSON and rebuilt by replay."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.errors import StorageError
from nutlet.export.onnx import export_onnx
from nutlet.graph.activations import carry
from nutlet.graph.sites import Edited
from nutlet.graph.stored import pack, unpack
from nutlet.history import Step
from nutlet.method import Method, Plan
from nutlet.recipe import dump_recipe
from nutlet.storage import write_atomic, write_json, write_text
from nutlet.table import Table, Tabled

__all__ = ["Compressed", "replay"]

FORMAT = 2
MANIFEST = "compressed.json"
TENSORS = "model.packed"
_MANIFEST_LIMIT = 64 << 20
_EXAMPLE_LIMIT = 1 << 24


@dataclass(frozen=True, eq=False)
class Compressed(Tabled):
    """A compressed model with the history of how it came about.

    Args:
        model: a module in evaluation mode that can be trained on and exported.
        steps: what each step did; the first is the original.
        seed: seed of the run.
        example: two inputs of the shape the model takes; their values do not matter.
    """

    model: nn.Module
    steps: tuple[Step, ...]
    seed: int
    example: Tensor

    @property
    def recipe(self) -> list[Method]:
        """The methods that were applied, recovery steps included."""
        return [Method.from_dict(step.method) for step in self.steps[1:]]

    def export(self, path: Path | str) -> Path:
        """Write the ONNX file that ships; see :func:`nutlet.export.onnx.export_onnx`."""
        return export_onnx(self.model, path, self.example)

    def save(self, folder: Path | str) -> Path:
        """Write tensors, history and recipe into ``folder``.

        Raises:
            StorageError: the folder cannot be written.
        """
        folder = Path(folder)
        content = pack(self.model).content
        write_atomic(folder / TENSORS, lambda aside: aside.write_bytes(content))
        write_text(folder / "recipe.yaml", dump_recipe(self.recipe))
        # Last, because its presence says that the rest is there.
        write_json(
            folder / MANIFEST,
            {
                "format": FORMAT,
                "sha256": hashlib.sha256(content).hexdigest(),
                "seed": self.seed,
                "example": {"shape": list(self.example.shape), "dtype": str(self.example.dtype).removeprefix("torch.")},
                "steps": [step.to_dict() for step in self.steps],
            },
        )
        return folder

    @staticmethod
    def load(folder: Path | str, original: nn.Module) -> Compressed:
        """Rebuild what :meth:`save` wrote; nothing is unpickled and no code named in the files is run.

        Args:
            folder: where it was saved.
            original: a model of the original architecture; its weights do not matter and it is not changed.

        Raises:
            StorageError: a file is missing, damaged, or does not fit the architecture.
        """
        folder = Path(folder)
        try:
            manifest = _read_manifest(folder / MANIFEST)
            steps = tuple(_step(step) for step in manifest["steps"])
            example = _example(manifest["example"])
            model = copy.deepcopy(original).eval()
            for step in steps[1:]:
                model = replay(type(Method.from_dict(step.method)), model, step.plan, example)
            unpack(model, _read_tensors(folder / TENSORS, manifest["sha256"]))
            with torch.no_grad():
                model.eval()(example)  # a zero point out of its range, say, would be found out only in use
            seed = int(manifest["seed"])
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"could not read {folder}: {error.strerror or error}; expected a saved model") from error
        except Exception as error:  # a hostile plan can make every library below us raise anything
            raise StorageError(
                f"{folder} does not hold a compressed form of this {type(original).__name__}: {error}; "
                "expected files written by Compressed.save, and the architecture they came from"
            ) from error
        return Compressed(model, steps, seed, example)

    def table(self) -> Table:
        """Return the history as a table."""
        rows = tuple(
            (
                step.name,
                f"{step.accuracy:.2%}",
                f"{step.size.bytes:,}",
                f"{step.size.bytes_packed:,}",
                f"{step.size.macs:,}",
                f"{step.size.effective_macs:,}",
                f"{step.seconds:.1f}",
            )
            for step in self.steps
        )
        columns = ("step", "validation accuracy", "bytes", "packed", "MACs", "effective MACs", "seconds")
        notes = [f"{step.name}: {note}" for step in self.steps for note in step.notes]
        return Table("What each step did to the model in memory", columns, rows, tuple(notes))

    def __repr__(self) -> str:
        chain = " → ".join(step.name for step in self.steps)
        return f"<Compressed {chain}: {self.steps[-1].size.bytes:,} bytes>"


def replay(kind: type[Method], model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
    """Carry out one step's plan on ``model``, and put activation quantizers that were there back on.

    A structural step that moved sites brings new ranges in its plan; otherwise the old quantizers are carried.
    """
    if not isinstance(model, Edited):
        return kind.execute(model, plan, example)
    result = kind.execute(model.take_off(), plan, example)
    return carry(model, result, plan.get("activations"), example)


def _read_manifest(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > _MANIFEST_LIMIT:
        raise StorageError(f"{path} is {size:,} bytes; expected at most {_MANIFEST_LIMIT:,}: it is not from nutlet")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if manifest["format"] != FORMAT:
        raise StorageError(f"{path} has format {manifest['format']}; expected {FORMAT}: use the version that wrote it")
    return manifest


def _read_tensors(path: Path, sha256: str) -> bytes:
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise StorageError(
            f"{path} has the SHA-256 {found[:12]}…; expected {str(sha256)[:12]}… as {MANIFEST} says: one of the two is "
            "damaged, or saving was cut off between them. Save or copy the folder anew"
        )
    return content


def _step(value: dict[str, Any]) -> Step:
    """Read one step and check that its figures are figures, for tables and reports calculate with them."""
    step = Step.from_dict(value)
    figures = [step.accuracy, step.seconds]
    counts: list[Any] = [step.size.parameters, step.size.bytes]
    counts += [step.size.bytes_packed, step.size.macs, step.size.effective_macs]
    texts: list[Any] = [*step.notes]
    for layer in step.size.layers:
        figures.append(layer.sparsity)
        counts += [layer.bits, layer.bytes, layer.bytes_packed, layer.macs, *layer.shape]
        texts += [layer.name, layer.kind]
    if not (
        all(type(f) in (int, float) and math.isfinite(f) for f in figures)
        and all(type(c) is int for c in counts)
        and all(isinstance(t, str) for t in texts)
        and isinstance(step.method, dict)
        and isinstance(step.plan, dict)
    ):
        raise ValueError(f"the step {step.method!r} has a figure or a text of the wrong type")
    return step


def _example(spec: dict[str, Any]) -> Tensor:
    shape = [int(n) for n in spec["shape"]]
    size = 1
    for n in shape:
        size *= n
    if not shape or min(shape) < 1 or size > _EXAMPLE_LIMIT:
        raise ValueError(f"an example input of shape {shape}")
    if spec["dtype"] != "float32":
        raise ValueError(f"an example input of dtype {spec['dtype']!r}")
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
