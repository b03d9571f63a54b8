"""A victim behind a counter: every input that is sent is one query, whoever sends it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nutlet.content_hash import fingerprint
from nutlet.data.columns import Columns
from nutlet.errors import BudgetError, ModelError
from nutlet.locks import Mutex
from nutlet.measurement import Runtime
from nutlet.oracle.disclosure import Disclosure, as_probabilities, probabilities_of, usual_disclosure
from nutlet.storage import digest
from nutlet.tasks import CLASSIFICATION, Task, is_classifier
from nutlet.tasks.forward import adapted, picked
from nutlet.tasks.inputs import Inputs, as_tensors, cast
from nutlet.tasks.predict import evaluating

__all__ = ["FileSource", "Ledger", "ModuleSource", "Oracle", "Source", "checked", "source_of"]

Source = Callable[[Any], Tensor]
"""Inputs ``(B, ...)`` float32, tokens, or several by name, to outputs ``(B, ...)``, of a classifier logits or
probabilities ``(B, classes)``; anything that answers.

An attack that looks for the last digits sends float64, and gets them where the answers are float64."""


@dataclass
class Ledger:
    """Who sent how many inputs, whichever thread sent them.

    Args:
        clients: queries by client.
        evaluation: inputs that a judge sent to score an attack; no attacker pays for them.
    """

    clients: dict[str, int] = field(default_factory=dict)
    evaluation: int = 0

    def __post_init__(self) -> None:
        """Add what is no part of the account."""
        self.turn = Mutex()
        self._on_the_way: Counter[str] = Counter()

    @property
    def queries(self) -> int:
        """Queries of all clients."""
        with self.turn:
            return sum(self.clients.values())

    def of(self, client: str) -> int:
        """Return the queries of one client."""
        return self.clients.get(client, 0)

    def left(self, client: str, budget: int) -> int:
        """Return what a budget leaves to a client, with what is on the way counted as if it were answered."""
        with self.turn:
            return budget - self.of(client) - self._on_the_way[client]

    @contextlib.contextmanager
    def counting(self, client: str, count: int, budget: int | None) -> Iterator[None]:
        """Count so many queries if the block answers them; until it has, no other thread can spend them.

        Raises:
            BudgetError: they are more than the budget leaves; nothing was counted.
        """
        with self.turn:
            if budget is not None and count > self.left(client, budget):
                raise BudgetError(
                    f"{client} asked for {count:,} more answers after {budget - self.left(client, budget):,}; expected "
                    f"at most {budget:,} in all: raise the budget, or ask less"
                )
            self._on_the_way[client] += count
        answered = 0
        try:
            yield
            # Counted when answered: what an endpoint failed on is paid for only once.
            answered = count
        finally:
            with self.turn:
                self._on_the_way[client] -= count
                self.clients[client] = self.of(client) + answered

    def add(self, other: Ledger) -> None:
        """Take over the counts of a ledger that another process kept."""
        with self.turn:
            for client, count in other.clients.items():
                self.clients[client] = self.of(client) + count
            self.evaluation += other.evaluation


class Oracle:
    """Answers queries, counts every input sent, and refuses past the budget.

    Args:
        source: the victim; see :func:`source_of` for a module, a shipped file or a function.
        answers: what is shown of its scores.
        budget: most inputs this client may send; None for no limit.
        client: whose count this is.
        ledger: where the count is kept; clients of one victim share one.
        outputs: whether a classifier gives ``logits`` or ``probabilities``; ``auto`` looks at the first answers.
        task: what its outputs mean.

    Raises:
        ConfigError: no oracle of that task shows such answers.

    >>> oracle = Oracle(nn.Identity(), answers=Disclosure("labels"), budget=3)
    >>> oracle.query(torch.tensor([[2.0, 1.0], [0.0, 5.0]]))
    tensor([[1., 0.],
            [0., 1.]])
    >>> oracle.queries, oracle.left
    (2, 1)
    """

    def __init__(
        self,
        source: Source,
        *,
        answers: Disclosure | None = None,
        budget: int | None = None,
        client: str = "attacker",
        ledger: Ledger | None = None,
        outputs: Literal["auto", "logits", "probabilities"] = "auto",
        task: Task = CLASSIFICATION,
    ) -> None:
        self.source = source
        self.task = task
        self.answers = answers or usual_disclosure(task)
        self.answers.check(task)
        self.budget = budget
        self.name = client
        self.ledger = ledger if ledger is not None else Ledger()
        self.outputs = outputs

    @property
    def queries(self) -> int:
        """Inputs that this client has sent."""
        return self.ledger.of(self.name)

    @property
    def left(self) -> int | None:
        """Inputs that it may still send; None for no limit."""
        return None if self.budget is None else self.ledger.left(self.name, self.budget)

    def client(self, name: str, budget: int | None = None, answers: Disclosure | None = None) -> Oracle:
        """Return the same victim for another client, with a count and a budget of its own in the same ledger."""
        return Oracle(
            self.source,
            answers=answers or self.answers,
            budget=budget,
            client=name,
            ledger=self.ledger,
            outputs=self.outputs,
            task=self.task,
        )

    def query(self, x: Inputs) -> Tensor:
        """Return the answers, in the shape of the outputs, to ``x`` ``(B, ...)``, each of which is one query.

        Raises:
            BudgetError: that would be more than the budget; nothing was sent.
            ModelError: the answers are not finite numbers, one row for each input.
            OracleError: the endpoint does not answer, or answers something else than promised.
        """
        with self.ledger.counting(self.name, len(x), self.budget):
            scores = self._scores(x)
        return self.answers.show(scores if self.answers.raw else self._probabilities(scores), self.task)

    def evaluate_uncounted(self, x: Inputs) -> Tensor:
        """Return all outputs for who scores an attack, of a classifier probabilities ``(N, classes)``.

        They are listed apart, never an attacker's.
        """
        scores = self._scores(x)
        with self.ledger.turn:
            self.ledger.evaluation += len(x)
        return self._probabilities(scores) if is_classifier(self.task) else scores

    def _scores(self, x: Inputs) -> Tensor:
        if len(x) == 0:
            raise BudgetError(f"{self.name} asked about no inputs; expected at least one")
        return torch.cat([checked(self.source(part), len(part), self.task) for part in _parts(x, 256)])

    def _probabilities(self, scores: Tensor) -> Tensor:
        if not is_classifier(self.task):
            return probabilities_of(scores, self.task)
        with self.ledger.turn:
            probabilities = as_probabilities(scores, self.outputs)
            if self.outputs == "auto":
                # Settled by the first answers: a later batch that happens to sum to one must not be read otherwise.
                self.outputs = "probabilities" if probabilities is scores else "logits"
        return probabilities


def _parts(x: Inputs, size: int) -> Iterator[Inputs]:
    """Yield the inputs in order, ``size`` at a time."""
    for start in range(0, len(x), size):
        yield x[start : start + size]


def checked(scores: Any, rows: int, task: Task = CLASSIFICATION) -> Tensor:
    """Return what a victim gave for so many inputs, or raise ModelError unless it is finite, one row for each."""
    classes = is_classifier(task)
    if (
        not isinstance(scores, Tensor)
        or not scores.is_floating_point()
        or scores.ndim < 2
        or len(scores) != rows
        or (classes and scores.ndim != 2)
    ):
        found = (
            f"{scores.dtype} of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        )
        what = f"scores ({rows}, classes)" if classes else f"outputs of {task.name}, ({rows}, ...)"
        raise ModelError(f"the victim gave {found} for {rows} inputs; expected floating-point {what}")
    broken = (scores.isnan() | scores.isposinf()).flatten(1).any(1)
    if bool(broken.any()):
        raise ModelError(
            f"the victim gave NaN or infinity for {int(broken.sum())} of {rows} inputs; expected finite scores: look "
            "for a zero scale, a division by zero, or float16 overflow"
        )
    return scores


class ModuleSource:
    """A module in evaluation mode as a victim; one in float64 is asked and answers in float64.

    Args:
        module: takes the inputs of the data, and is not changed.
        output: name or position of the output that answers, where it gives several.
    """

    def __init__(self, module: nn.Module, output: str | int | None = None) -> None:
        self.module = module
        self.output = output
        self._turn = Mutex()

    def __call__(self, x: Inputs) -> Tensor:
        """Return the module's scores; it keeps its own mode."""
        dtypes = (p.dtype for p in self.module.parameters() if p.is_floating_point())
        # One thread at a time: another would find the module in evaluation mode, and leave it there or take it out.
        with self._turn, adapted(self.module, x, self.output), evaluating(self.module), torch.inference_mode():
            dtype = next(dtypes, None)
            scores: Tensor = picked(self.module(x if dtype is None else cast(x, dtype)), self.output)
        # Out of inference mode, so that answers can stand beside parameters in a loss.
        return (scores if scores.dtype == torch.float64 else scores.float()).clone()

    def fingerprint(self) -> str:
        """Return a hash of the module's weights, structure and code, and of which output is asked for."""
        own = fingerprint(self.module)
        return own if self.output is None else digest(own, str(self.output))


class FileSource:
    """A shipped file in its runtime as a victim; opened where it is first asked, so that it can be sent about.

    Args:
        path: the file.
        threads: threads of the runtime; more than one only where nothing else computes at that time.
        output: name of the output that holds the scores; by default the only one that can.
        columns: where inputs are rows of a table, what their numbers stand for.

    Raises:
        StorageError, ModelError: see :class:`nutlet.measurement.Runtime`.
    """

    def __init__(
        self, path: Path | str, *, threads: int = 1, output: str | None = None, columns: Columns | None = None
    ) -> None:
        self.path = Path(path)
        self.threads = threads
        self.columns = columns
        self._runtime: Runtime | None = Runtime(self.path, threads=threads, output=output, columns=columns)
        self.output = self._runtime.output
        self.content = self._runtime.content

    def __call__(self, x: Inputs) -> Tensor:
        """Return the file's outputs; a file of fixed batch size is fed that many, the last ones padded."""
        if self._runtime is None:
            self._runtime = Runtime.from_bytes(
                self.content, self.path, threads=self.threads, output=self.output, columns=self.columns
            )
        size = self._runtime.fixed_batch or len(x)
        rows = []
        for part in _parts(x, size):
            arrays = {name: tensor.numpy() for name, tensor in as_tensors(part).items()}
            answers = torch.as_tensor(self._runtime.run_raw(self._runtime.feed(arrays, size)))[: len(part)]
            rows.append(answers.float() if answers.is_floating_point() else answers)
        return torch.cat(rows)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open session, which cannot travel."""
        return {**self.__dict__, "_runtime": None}

    def fingerprint(self) -> str:
        """Return a hash of the file's content, of which output is asked for, and of what its inputs stand for."""
        own = digest(self.content, self.output)
        return own if self.columns is None else digest(own, self.columns.fingerprint())


def source_of(
    victim: nn.Module | Path | str | Source, output: str | int | None = None, columns: Columns | None = None
) -> Source:
    """Return ``victim`` as something that answers: a module, the path of a shipped file, or any function.

    Args:
        victim: what answers.
        output: which of several outputs of a module, as the task of the data says; files have names of their own.
        columns: where inputs are rows of a table, what their numbers stand for: files take them as columns.

    Raises:
        StorageError, ModelError: the file cannot be opened.
    """
    if isinstance(victim, nn.Module):
        return ModuleSource(victim, output)
    if isinstance(victim, (str, Path)):
        return FileSource(victim, columns=columns)
    return victim
