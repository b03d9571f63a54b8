"""The result of a chain: a module with its history, saved as tensors and JSON and rebuilt by replay."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nutlet.compression.history import Step
from nutlet.compression.recipe import dump_recipe
from nutlet.constraints import shapes_only
from nutlet.errors import ComparisonError, StorageError, first_line, shown
from nutlet.formats import format_for
from nutlet.formats.packed.bits import same_bits
from nutlet.formats.packed.pack import most_bytes, pack, unpack
from nutlet.loading.copies import clean_copy
from nutlet.methods import method_from_dict
from nutlet.methods.base import Method, apply_plan
from nutlet.reading import read_bytes
from nutlet.storage import write_atomic, write_json, write_text
from nutlet.tables import Table, Tabled
from nutlet.tasks import CLASSIFICATION, Task, as_task, metric_text, task_options
from nutlet.tasks.forward import adapt
from nutlet.tasks.inputs import Inputs, NamedInputs, as_tensors
from nutlet.tasks.predict import gives_several

__all__ = ["Compressed"]

FORMAT = 4
MANIFEST = "compressed.json"
TENSORS = "model.packed"
INPUTS = "inputs.bin"
_MANIFEST_LIMIT = 64 << 20
_INPUTS_LIMIT = 256 << 20
"""Bytes of the two inputs that are kept."""
_INPUTS_ROWS = 2


@dataclass(frozen=True, eq=False)
class Compressed(Tabled):
    """A compressed model with the history of how it came about.

    Args:
        model: a module in evaluation mode that can be trained on and exported.
        steps: what each step did; the first is the original.
        seed: seed of the run.
        example: two real inputs, of the calibration examples: walks, exports and comparisons are made with them.
        task: what the outputs of the model mean.
    """

    model: nn.Module
    steps: tuple[Step, ...]
    seed: int
    example: Inputs
    task: Task = CLASSIFICATION

    @property
    def recipe(self) -> list[Method]:
        """The methods that were applied, recovery steps included."""
        return [method_from_dict(step.method) for step in self.steps[1:]]

    def noted(self, note: str) -> Compressed:
        """Return it with a note on the original in the history."""
        first = self.steps[0]
        notes = tuple(dict.fromkeys((*first.notes, note)))
        return replace(self, steps=(replace(first, notes=notes), *self.steps[1:]))

    def export(self, path: Path | str, *, packed: bool = True) -> Path:
        """Write the file that ships, in the format that the end of its name says: ``model.onnx``.

        Args:
            path: where it goes.
            packed: whether weights take as few bits as they need; see :func:`nutlet.export_onnx`.

        Raises:
            ConfigError: no format has such a name.
            ExportError, StorageError: see :class:`nutlet.formats.base.Exporter`.
        """
        return format_for(path).export(self.model, path, self.example, output=self.task.output, packed=packed)

    def save(self, folder: Path | str) -> Path:
        """Write tensors, history, recipe and the two inputs of :attr:`example` into ``folder``.

        The inputs are examples of yours: whoever has the folder can see them. The exported file does not hold them.

        Raises:
            StorageError: the folder cannot be written, or the inputs are too large to be kept.
            ComparisonError: what was packed does not come back the same.
        """
        folder = Path(folder)
        inputs = b"".join(_stored(tensor).tobytes() for tensor in as_tensors(self.example).values())
        if len(inputs) > _INPUTS_LIMIT:
            raise StorageError(
                f"two inputs of the model take {len(inputs):,} bytes; expected at most {_INPUTS_LIMIT:,} to keep"
            )
        content = pack(self.model).content
        _check_packed(self.model, content)
        write_atomic(folder / INPUTS, lambda aside: aside.write_bytes(inputs))
        write_atomic(folder / TENSORS, lambda aside: aside.write_bytes(content))
        write_text(folder / "recipe.yaml", dump_recipe(self.recipe))
        # Last, because its presence says that the rest is there.
        write_json(
            folder / MANIFEST,
            {
                "format": FORMAT,
                "sha256": hashlib.sha256(content).hexdigest(),
                "seed": self.seed,
                "inputs": {
                    "tensors": {
                        name: {"shape": list(tensor.shape), "dtype": _stored(tensor).dtype.str}
                        for name, tensor in as_tensors(self.example).items()
                    },
                    "alone": isinstance(self.example, Tensor),
                    "sha256": hashlib.sha256(inputs).hexdigest(),
                },
                "task": {self.task.name: task_options(self.task)},
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
            example = _inputs(folder / INPUTS, manifest["inputs"])
            task = _task(manifest["task"])
            model, _ = clean_copy(original, example)
            adapt(model, example, task.output, several=gives_several(model, example))
            with shapes_only():  # every value is read from the file
                for step in steps[1:]:
                    model = apply_plan(type(method_from_dict(step.method)), model, step.plan, example)
            unpack(model, _read_tensors(folder / TENSORS, manifest["sha256"], most_bytes(model)))
            with torch.no_grad():
                model.eval()(example)  # a zero point out of its range, say, would be found out only in use
            seed = int(manifest["seed"])
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"could not read {folder}: {error.strerror or error}; expected a saved model") from error
        except Exception as error:  # a hostile plan can make every library below us raise anything
            raise StorageError(
                f"{folder} does not hold a compressed form of this {type(original).__name__}: {first_line(error)}; "
                "expected files written by Compressed.save, and the architecture they came from"
            ) from error
        return Compressed(model, steps, seed, example, task)

    def table(self) -> Table:
        """Return the history as a table."""
        rows = tuple(
            (
                step.name,
                metric_text(self.task, step.accuracy),
                f"{step.size.bytes:,}",
                f"{step.size.bytes_packed:,}",
                f"{step.size.macs:,}",
                f"{step.size.effective_macs:,}",
                f"{step.seconds:.1f}",
            )
            for step in self.steps
        )
        columns = ("step", f"validation {self._metric}", "bytes", "packed", "MACs", "effective MACs", "seconds")
        notes = [f"{step.name}: {note}" for step in self.steps for note in step.notes]
        return Table("What each step did to the model in memory", columns, rows, tuple(notes))

    @property
    def _metric(self) -> str:
        return "accuracy" if self.task.name == "classification" else self.task.metric

    def __repr__(self) -> str:
        chain = " → ".join(step.name for step in self.steps)
        return f"<Compressed {chain}: {self.steps[-1].size.bytes:,} bytes>"


def _read_manifest(path: Path) -> dict[str, Any]:
    content = read_bytes(path, _MANIFEST_LIMIT)
    if len(content) > _MANIFEST_LIMIT:
        raise StorageError(f"{path} has more than {_MANIFEST_LIMIT:,} bytes; expected at most that: not from nutlet")
    manifest: dict[str, Any] = json.loads(content.decode("utf-8"))
    if manifest["format"] != FORMAT:
        raise StorageError(
            f"{path} has format {shown(manifest['format'])}; expected {FORMAT}: use the version that wrote it"
        )
    return manifest


def _read_tensors(path: Path, sha256: str, most: int) -> bytes:
    """Return the packed tensors, no more bytes than those of the architecture can take."""
    content = read_bytes(path, most)
    if len(content) > most:
        raise StorageError(f"{path} has more than {most:,} bytes; expected at most that for this architecture")
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise StorageError(
            f"{path} has the SHA-256 {found[:12]}…; expected {shown(sha256, 14)} as {MANIFEST} says: one of the two is "
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
        and (step.threads is None or type(step.threads) is int)
        and all(isinstance(t, str) for t in texts)
        and isinstance(step.method, dict)
        and isinstance(step.plan, dict)
    ):
        raise ValueError(f"the step {shown(step.method)} has a figure or a text of the wrong type")
    return step


_DTYPES = ("<f4", "<i8", "|b1")
"""How inputs are kept: floating point, integers, masks."""


def _stored(tensor: Tensor) -> np.ndarray:
    """Return an input as it is kept, in an order of bytes that is the same on every machine."""
    kind = "<f4" if tensor.is_floating_point() else "|b1" if tensor.dtype == torch.bool else "<i8"
    return tensor.contiguous().numpy().astype(kind)


def _inputs(path: Path, spec: dict[str, Any]) -> Inputs:
    """Read the two inputs of a saved model: as many bytes as their shapes say, looked at before any is read."""
    shapes = {str(name): [int(n) for n in part["shape"]] for name, part in spec["tensors"].items()}
    dtypes = {str(name): np.dtype(_DTYPES[_DTYPES.index(part["dtype"])]) for name, part in spec["tensors"].items()}
    for shape in shapes.values():
        if not shape or min(shape) < 1 or shape[0] > _INPUTS_ROWS:
            raise ValueError(f"inputs of shape {shown(shape)}; expected one or two of moderate size")
    sizes = {name: dtypes[name].itemsize * math.prod(shape) for name, shape in shapes.items()}
    expected = sum(sizes.values())
    if not sizes or expected > _INPUTS_LIMIT:
        raise ValueError(f"inputs of {expected:,} bytes; expected some, and at most {_INPUTS_LIMIT:,}")
    if (size := path.stat().st_size) != expected:
        raise ValueError(f"{size:,} bytes of inputs, where their shapes {list(shapes.values())} take {expected:,}")
    content, start, tensors = _read_tensors(path, spec["sha256"], expected), 0, {}
    for name, shape in shapes.items():
        values = np.frombuffer(content[start : start + sizes[name]], dtypes[name])
        tensors[name] = torch.from_numpy(values.astype(dtypes[name].newbyteorder("="))).view(shape)
        start += sizes[name]
    return next(iter(tensors.values())) if spec["alone"] and len(tensors) == 1 else NamedInputs(tensors)


def _task(value: dict[str, dict[str, Any]]) -> Task:
    """Return the task of a saved model: one that is known here, with plain options."""
    ((name, options),) = value.items()
    return type(as_task(name))(**options)


def _check_packed(model: nn.Module, content: bytes) -> None:
    """Raise ComparisonError unless ``content`` gives the tensors of ``model`` back, bit for bit."""
    again = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in again.state_dict().values():
            tensor.zero_()
    try:
        unpack(again, content)
        state = again.state_dict()
        wrong = next((name for name, value in model.state_dict().items() if not same_bits(state[name], value)), "")
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise ComparisonError(
            f"the packed tensors do not come back as they were ({wrong}); expected the same bits: nothing was saved. "
            "Please report it with the model and the recipe"
        )
