"""What an audit works with: the files, the inputs a thief asks with, the examples a judge scores on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from nutlet.attacks.base import AttackerKnowledge
from nutlet.attacks.extraction.surrogate import Surrogate
from nutlet.auditing.protocol import DEFAULT_BUDGETS, Protocol
from nutlet.data.examples import Data, Examples
from nutlet.errors import ConfigError, DataError, ModelError, NutletError
from nutlet.formats import format_of
from nutlet.jobs import Workers
from nutlet.measurement import Estimate
from nutlet.measurement.scores import mean_score
from nutlet.oracle import (
    CachedSource,
    Disclosure,
    Endpoint,
    FileSource,
    Ledger,
    Oracle,
    Source,
    as_probabilities,
    source_of,
    usual_disclosure,
)
from nutlet.tasks import Task, is_classifier, metric_of
from nutlet.tasks.inputs import as_tensors
from nutlet.tasks.predict import predict

__all__ = [
    "Artifact",
    "Materials",
    "Transfer",
    "budgets_for",
    "check_classes",
    "evaluation_of",
    "open_artifact",
    "read_artifact",
    "transfer_of",
]

MOST_EVALUATED = 5_000
"""Examples a judge scores on: more would narrow no interval that the seeds leave wide."""
_TRIED = 16
"""Examples on which a file read as a module is compared with its runtime."""
_CLOSE = 0.1
"""Largest difference of a probability, or lack of agreement, that counts as the same: rounding may tip over."""

Kind = Literal["same distribution", "another set"]


@dataclass(frozen=True, eq=False)
class Artifact:
    """One release of the model.

    Args:
        name: of the file, without its folder.
        role: ``before`` or ``after``.
        oracle: counts the judge's inputs.
        path: of the file; None for a module or a function.
        bytes: on disk; None likewise.
        sha256: of the file, hexadecimal; None likewise.
        outputs: on the evaluation inputs, ``(E, ...)``; of a classifier probabilities.
        metric: that of the task on them.
        white_box: the file as a module, where it was read; see :func:`read_artifact`.
        unread: why it could not be read, as the end of a sentence; empty where it was, or was not to be.
        output: name of the output of the file that holds the scores.
    """

    name: str
    role: Literal["before", "after"]
    oracle: Oracle
    path: Path | None
    bytes: int | None
    sha256: str | None
    outputs: Tensor
    metric: Estimate
    white_box: nn.Module | None = None
    unread: str = ""
    output: str | None = None


@dataclass(frozen=True, eq=False)
class Transfer:
    """What the thief asks with.

    Args:
        examples: inputs with his own labels.
        name: where they come from.
        kind: whether they are of the victim's task (then their labels are a baseline) or another set.
        removed: inputs that were in the evaluation set too, and are left out.
    """

    examples: Examples
    name: str
    kind: Kind
    removed: int


def open_artifact(
    victim: nn.Module | Path | str | Source, role: Literal["before", "after"], evaluation: Examples, ledger: Ledger
) -> Artifact:
    """Open a release and let it answer the evaluation inputs.

    Raises:
        StorageError, ModelError, OracleError: it cannot be opened, or does not answer with finite scores.
        DataError: the evaluation examples do not fit its outputs.
    """
    source = source_of(victim, evaluation.task.output, evaluation.columns)
    oracle = Oracle(source, ledger=ledger, client="judge", task=evaluation.task)
    outputs = torch.cat([oracle.evaluate_uncounted(x) for x, _ in evaluation.batches()])
    metric = _metric(outputs, evaluation)
    if not isinstance(source, FileSource):
        name = {"before": "original", "after": "victim"}[role]
        asked = source.source if isinstance(source, CachedSource) else source
        return Artifact(
            asked.where if isinstance(asked, Endpoint) else name, role, oracle, None, None, None, outputs, metric
        )
    content = source.content
    sha256 = hashlib.sha256(content).hexdigest()
    size, output = len(content), source.output
    return Artifact(source.path.name, role, oracle, source.path, size, sha256, outputs, metric, output=output)


def _metric(outputs: Tensor, evaluation: Examples) -> Estimate:
    """Return the metric of the task, as :func:`nutlet.measure` does; examples without a target do not count."""
    task = evaluation.task
    task.check(outputs, evaluation.y)
    scores = task.score(outputs, evaluation.y)
    found = mean_score(scores[~np.isnan(scores)], zero_one=task.zero_one)
    low, high = sorted(metric_of(task, end) for end in (found.low, found.high))
    return Estimate(metric_of(task, found.value), low, high, found.examples)


def read_artifact(artifact: Artifact, evaluation: Examples) -> Artifact:
    """Return ``artifact`` with its file as a module, tried on real inputs, or with the reason why there is none.

    It takes seconds, and is done once: attacks that look inside need it, and a user is to know at once which will not
    run.
    """
    if artifact.path is None:
        return artifact
    try:
        module = format_of(artifact.path).need_reader().load(artifact.path, output=artifact.output)
        _compare(module, artifact, evaluation)
    except NutletError as error:
        return replace(artifact, unread=f"which cannot be read: {error}")
    return replace(artifact, white_box=module)


def _compare(module: nn.Module, artifact: Artifact, evaluation: Examples) -> None:
    """Raise ModelError unless the module answers as the file does: what was read wrong would look like a safe file."""
    few = evaluation.subset(slice(0, _TRIED))
    scores = predict(module, few)
    wanted = artifact.outputs[: len(few)]
    if scores.shape != wanted.shape:
        raise ModelError(
            f"read as a module it gives {tuple(scores.shape)}; expected {tuple(wanted.shape)} as its runtime"
        )
    if is_classifier(few.task):
        # Logits of one file are to be read as those of its runtime were, where rows may sum to one by chance.
        found = scores if torch.allclose(scores, wanted, atol=_CLOSE) else as_probabilities(scores)
        apart = int(((found - wanted).abs().amax(1) > _CLOSE).sum())
    else:
        apart = int((few.task.agree(scores, wanted) < 1 - _CLOSE).sum())
    if apart > len(few) // 4:
        raise ModelError(
            f"read as a module it answers otherwise than its runtime to {apart} of {len(few)} inputs; expected the "
            "same answers: an operator is not understood as the runtime does"
        )


def check_classes(
    artifacts: Sequence[Artifact], data: Data | Examples, transfer: Transfer, surrogate: Surrogate
) -> None:
    """Check that labels, releases and the thief are of one task, before anything is trained.

    Raises:
        DataError: there is a label without an output, or the releases have different numbers of outputs.
        ConfigError: the thief's architecture has another number of outputs.
    """
    shape = tuple(artifacts[-1].outputs.shape[1:])
    if (others := tuple(artifacts[0].outputs.shape[1:])) != shape:
        raise DataError(
            f"{artifacts[0].name} has {_many(others)} outputs, {artifacts[-1].name} {_many(shape)}; "
            "expected as many: audit releases of one model"
        )
    sets = {"the training set": data.train, "the validation set": data.validation} if isinstance(data, Data) else {}
    if transfer.kind == "same distribution":
        sets["the transfer set"] = transfer.examples
    for name, examples in sets.items():
        if not is_classifier(examples.task):
            _check_targets(name, examples, artifacts[-1])
        elif examples.classes > shape[0]:
            raise DataError(
                f"the largest label of {name} is {examples.classes - 1}, but {artifacts[-1].name} gives {shape[0]} "
                f"classes; expected labels from 0 to {shape[0] - 1}: use the data the model was trained on"
            )
    own = tuple(predict(surrogate.model(0), transfer.examples.subset(slice(0, 2))).shape[1:])
    if own != shape:
        raise ConfigError(
            f"the thief's architecture has {_many(own)} outputs, the victim {_many(shape)}; expected as many: build it "
            f"with {_many(shape)} {'classes' if len(shape) == 1 else 'outputs'}"
        )


def _many(shape: tuple[int, ...]) -> str:
    """Say how many outputs there are.

    >>> _many((4,)), _many((8, 65))
    ('4', '8x65')
    """
    return "x".join(map(str, shape))


def _check_targets(name: str, examples: Examples, artifact: Artifact) -> None:
    """Raise DataError unless the targets fit outputs such as those on the evaluation examples."""
    place = torch.arange(len(examples)) % len(artifact.outputs)
    for part, targets in zip(torch.split(place, 500), torch.split(examples.y, 500), strict=True):
        try:
            examples.task.check(artifact.outputs[part], targets)
        except DataError as error:
            raise DataError(f"{name} does not fit {artifact.name}: {error}") from error


def evaluation_of(data: Data | Examples, *, seed: int = 0) -> Examples:
    """Return the examples a judge scores on: the test split, or validation, at most :data:`MOST_EVALUATED`.

    Raises:
        DataError: they are for a classifier, and have no labels.
    """
    examples = data if isinstance(data, Examples) else data.test if data.test is not None else data.validation
    if len(examples) > MOST_EVALUATED:
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
        examples = examples.subset(order[:MOST_EVALUATED].sort().values)
    if is_classifier(examples.task) and not examples.labelled:
        raise DataError(
            "the examples that an audit is scored on have no labels; expected some: a folder of images for each class, "
            "or name a test set (--test). Inputs alone serve as --transfer"
        )
    return examples


def transfer_of(
    data: Data | Examples, given: Examples | None, name: str, evaluation: Examples, *, same_task: bool = False
) -> Transfer:
    """Return the thief's inputs: those ``given``, or the training inputs, the best that a thief could hold.

    Args:
        data: the splits of the victim's task.
        given: another set to ask with.
        name: of the set, for the report.
        evaluation: what no transfer set may hold.
        same_task: whether the labels of ``given`` are of the victim's task.

    Raises:
        DataError: there are none, they have another shape or task, or more than one in a hundred is in the evaluation
            set.
    """
    if given is None and isinstance(data, Examples):
        raise DataError("there is no transfer set: expected inputs to ask with; name one (--transfer), or give splits")
    examples = given if given is not None else data.train  # type: ignore[union-attr]
    if examples.task != evaluation.task:
        raise DataError(
            f"the transfer set is for {examples.task.name}, the evaluation set for {evaluation.task.name}; expected "
            f"one task with the same options: give both sets task={evaluation.task!r}"
        )
    if examples.shapes != evaluation.shapes:
        raise DataError(
            f"inputs of the transfer set have shape {_said(examples)}, of the evaluation set {_said(evaluation)}; "
            "expected the same: convert one of them"
        )
    judged = set(_rows(evaluation))
    kept = torch.tensor([row not in judged for row in _rows(examples)])
    removed = int((~kept).sum())
    # Rows of a table are alike by nature: few columns of few values. They are left out, however many.
    if removed > (0.01 if examples.columns is None else 0.5) * len(examples):
        raise DataError(
            f"{removed:,} of {len(examples):,} inputs of the transfer set are in the evaluation set too; expected "
            "other inputs: a clone would be scored on what it was trained on. Give another set"
        )
    kind: Kind = "same distribution" if given is None or same_task else "another set"
    return Transfer(examples.subset(kept) if removed else examples, name, kind, removed)


def budgets_for(asked: Sequence[int], transfer: Examples) -> tuple[int, ...]:
    """Return the budgets to measure; without any asked for, those of the usual ones that the transfer set can fill.

    Raises:
        DataError: the transfer set is smaller than a budget asked for.
    """
    available = len(transfer)
    if asked and asked[-1] > available:
        raise DataError(
            f"the transfer set has {available:,} inputs, fewer than the budget of {asked[-1]:,} queries; expected as "
            "many: ask for less, or give a larger set (--transfer)"
        )
    usual = tuple(budget for budget in DEFAULT_BUDGETS if budget <= available)
    return tuple(asked) or usual or (available,)


def _rows(examples: Examples) -> list[bytes]:
    """Return the bytes of each input as a model sees it, to find the same one elsewhere."""
    rows: list[bytes] = []
    for x, _ in examples.batches():
        inputs = [tensor.float().numpy().round(4) for tensor in as_tensors(x).values()]
        rows += [b"".join(row.tobytes() for row in one) for one in zip(*inputs, strict=True)]
    return rows


def _said(examples: Examples) -> str:
    """Return the shape of one example, of each input where there are several."""
    shapes = examples.shapes
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) if len(shapes) > 1 else f"{shapes['x']}"


@dataclass(frozen=True, eq=False)
class Materials:
    """Everything the sections of an audit work with.

    Args:
        artifacts: the original (before) where there is one, then the file (after).
        data: the splits, or the evaluation examples alone.
        evaluation: what a judge scores on.
        transfer: what a thief asks with.
        budgets: of the extraction attacks.
        surrogate: who copies.
        protocol: what was asked.
        workers: where long work runs.
    """

    artifacts: tuple[Artifact, ...]
    data: Data | Examples
    evaluation: Examples
    transfer: Transfer
    budgets: tuple[int, ...]
    surrogate: Surrogate
    protocol: Protocol
    workers: Workers

    @property
    def file(self) -> Artifact:
        """The release that is audited."""
        return self.artifacts[-1]

    @property
    def original(self) -> Artifact | None:
        """What it is compared with."""
        return self.artifacts[0] if len(self.artifacts) > 1 else None

    @property
    def task(self) -> Task:
        """What outputs and targets mean."""
        return self.evaluation.task

    @property
    def classes(self) -> int:
        """How many the victim tells apart; of a task without classes, how many numbers it gives."""
        return int(self.file.outputs.shape[self.task.class_dim or 1])

    @property
    def answers(self) -> Disclosure:
        """What the victim shows."""
        return self.protocol.answers or usual_disclosure(self.task)

    def oracle(self, artifact: Artifact, client: str = "attacker") -> Oracle:
        """Return ``artifact`` as an attacker sees it, with a count of its own."""
        return Oracle(artifact.oracle.source, answers=self.answers, client=client, task=self.task)

    def knowledge(self, seed: int) -> AttackerKnowledge:
        """Return what every attacker has."""
        return AttackerKnowledge(
            classes=self.classes,
            shape=next(iter(self.evaluation.shapes.values())),
            task=self.task,
            seed=seed,
            transfer=self.transfer.examples,
            surrogate=self.surrogate,
        )
