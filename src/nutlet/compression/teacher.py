"""The teacher that a chain was given: a module, a file, or something that only answers."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nutlet.compression.gate import output_kind
from nutlet.content_hash import fingerprint
from nutlet.data.examples import Data
from nutlet.errors import ConfigError, ModelError, NutletError
from nutlet.formats import format_of, is_model_file
from nutlet.loading import load_model
from nutlet.loading.copies import clean_copy
from nutlet.loading.models import check_model
from nutlet.loading.weights import check_finite_weights
from nutlet.oracle import CachedSource, Endpoint, FileSource, Oracle, load_endpoint
from nutlet.tasks.inputs import Inputs
from nutlet.tasks.outputs import OutputKind, to_logits
from nutlet.tasks.predict import predict
from nutlet.training.context import BlackBoxTeacher

__all__ = ["Teacher", "as_teacher", "labelled_by", "load_teacher", "teacher_of"]

Teacher = nn.Module | Path | str | Oracle | Endpoint
"""What can teach: a module, the path of a shipped file, an oracle, or an endpoint."""


def teacher_of(teacher: Teacher, folder: Path, data: Data, classes: int) -> nn.Module:
    """Return ``teacher`` as a module in evaluation mode that gives logits ``(B, classes)``.

    A shipped file is read into a module where its operators are understood, and else asked in its runtime. Of an oracle
    or endpoint only the answers are known (:class:`nutlet.training.context.BlackBoxTeacher`): they are kept, and each
    input is asked about once. A module that ends in a softmax gives the logarithms.

    Args:
        teacher: what was given; not changed.
        folder: where answers are kept.
        data: whose calibration examples it is tried on, and whose task it is for.
        classes: number of outputs of the model that learns from it.

    Raises:
        ConfigError: it is nothing that can teach.
        ModelError: it does not take the data, gives another number of classes, or has NaN weights.
        StorageError: the file cannot be read.
    """
    example, targets = data.calibration.batch(slice(0, 2))
    try:
        module = _module(teacher, folder, example)
        found = check_model(module, example, 0, data.task, targets)
    except NutletError as error:
        raise type(error)(f"the teacher: {error}") from error
    if found != classes:
        raise ModelError(
            f"the teacher gives {found} classes, the model {classes}; expected as many, in the same order: take a "
            "teacher of the same task, or give the model as many outputs"
        )
    if isinstance(module, BlackBoxTeacher) or data.task.name != "classification":
        return module
    return as_teacher(module, output_kind(module, example))


def as_teacher(model: nn.Module, outputs: OutputKind) -> nn.Module:
    """Return a module that is not trained and gives logits, whatever the ``outputs`` of ``model`` hold.

    Args:
        model: nobody may change its parameters, which the teacher shares; buffers are its own.
        outputs: what it gives.
    """
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    teacher = copy.deepcopy(model, shared).requires_grad_(False)
    if outputs != "logits":
        teacher.register_forward_hook(_GivesLogits(outputs))
    return teacher


def load_teacher(spec: str | None, *, config: Path | None = None, i_own_this_endpoint: bool = False) -> Teacher | None:
    """Return the teacher that a command line names, if any: a shipped file, an address, or what names a model.

    Args:
        spec: none, the path of a shipped file (``.onnx``), an address, or see :func:`nutlet.load_model`.
        config: YAML that says how an endpoint is asked.
        i_own_this_endpoint: your word that it is yours.

    Raises:
        ConfigError: see :func:`nutlet.oracle.load_endpoint`.
        ModelError, StorageError: see :func:`nutlet.load_model`.
    """
    if spec is None:
        return None
    if spec.startswith(("http://", "https://")):
        return load_endpoint(config, url=spec, i_own_this_endpoint=i_own_this_endpoint)
    return Path(spec) if is_model_file(spec) else load_model(spec)


def labelled_by(data: Data, teacher: nn.Module) -> tuple[Data, list[str]]:
    """Return ``data`` with labels of the teacher where validation or calibration have none, and notes that say so.

    Training examples stay as they are: what learns from labels there has to be told that there are none.
    """
    parts = {name: getattr(data, name) for name in ("validation", "calibration")}
    bare = {name: part for name, part in parts.items() if not part.labelled}
    if not bare:
        return data, []
    named = {name: part.with_targets(data.task.target(predict(teacher, part))) for name, part in bare.items()}
    says = f"the {' and '.join(bare)} examples have no labels: those of the teacher stand in for them"
    note = says + (", and accuracy is agreement with it" if "validation" in bare else "")
    return replace(data, **named), [note]


class _Asked:
    """An oracle as a source whose answers can be kept."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    def __call__(self, x: Tensor) -> Tensor:
        return self.oracle.query(x)

    def fingerprint(self) -> str:
        return fingerprint([self.oracle.source, self.oracle.answers, self.oracle.outputs])


def _module(teacher: Teacher, folder: Path, example: Inputs) -> nn.Module:
    if isinstance(teacher, nn.Module):
        ready, _ = clean_copy(teacher, example)
        check_finite_weights(ready)
        return ready
    if isinstance(teacher, (str, Path)):
        form = format_of(teacher)
        try:
            return form.need_reader().load(teacher).requires_grad_(False)
        except ModelError:  # a runtime knows more operators
            teacher = Oracle(FileSource(teacher), client="teacher")
    if isinstance(teacher, Endpoint):
        teacher = Oracle(teacher, answers=teacher.answers, client="teacher", outputs=_outputs(teacher))
    if not isinstance(teacher, Oracle):
        raise ConfigError(
            f"found a {type(teacher).__name__}; expected a module, the path of a shipped file, an Oracle or an Endpoint"
        )
    try:
        kept = CachedSource(_Asked(teacher), folder)
    except TypeError as error:
        raise ConfigError(f"{error}; give the source of the oracle a method `fingerprint`") from error
    return BlackBoxTeacher(kept, logits=teacher.answers.kind == "logits")


def _outputs(endpoint: Endpoint) -> Any:
    return "logits" if endpoint.outputs == "logits" else "probabilities"


@dataclass(frozen=True, eq=False)
class _GivesLogits:
    """Forward hook; an object, so that the teacher can be copied and pickled."""

    outputs: OutputKind

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return to_logits(output, self.outputs)
