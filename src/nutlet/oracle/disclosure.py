"""What an oracle shows of its outputs: all of them, some, rounded, or only the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from nutlet.errors import ConfigError
from nutlet.options import Count, Range, Validated
from nutlet.tasks import CLASSIFICATION, Task

__all__ = ["ACCESS", "Access", "Disclosure", "as_probabilities", "probabilities_of", "usual_disclosure"]

Access = Literal["labels", "probabilities", "logits", "file"]
"""What an attack needs, least first; whoever has one of them has those before it too."""
ACCESS: tuple[Access, ...] = ("labels", "probabilities", "logits", "file")
_SMALLEST = 1e-6
"""The least that a probability which is shown as 0 is taken for."""


@dataclass(frozen=True)
class Disclosure(Validated):
    """What is shown to who asks.

    Args:
        kind: ``logits`` or ``values`` (the outputs as they are, of a task with and without probabilities),
            ``probabilities``, ``top-k`` (the ``k`` largest probabilities, the others 0), ``rounded`` (probabilities, or
            values, to ``digits`` decimals), or ``labels`` (1 for the top class and each label that is given, else 0).
        k: probabilities shown by ``top-k``.
        digits: decimals shown by ``rounded``.

    Raises:
        ConfigError: an unknown kind, or a number out of range.

    >>> Disclosure("top-k", k=1).show(torch.tensor([[0.75, 0.25]]))
    tensor([[0.7500, 0.0000]])
    >>> Disclosure("labels").show(torch.tensor([[0.62, 0.33, 0.05]]))
    tensor([[1., 0., 0.]])
    """

    kind: Literal["logits", "values", "probabilities", "top-k", "rounded", "labels"] = "probabilities"
    k: Count = 1
    digits: Annotated[int, Range(0, 9)] = 2

    @property
    def access(self) -> Access:
        """What these answers amount to for an attack: probabilities in part count as probabilities."""
        return "logits" if self.raw else "labels" if self.kind == "labels" else "probabilities"

    @property
    def raw(self) -> bool:
        """Whether the outputs are shown as they are."""
        return self.kind in ("logits", "values")

    @staticmethod
    def parse(text: str) -> Disclosure:
        """Read ``labels``, ``probabilities``, ``logits``, ``values``, ``top-3`` or ``rounded-2``.

        Raises:
            ConfigError: it is none of these.

        >>> Disclosure.parse("top-3")
        Disclosure(kind='top-k', k=3, digits=2)
        """
        name, _, number = text.partition("-")
        if name == "top" and _short_number(number):
            return Disclosure("top-k", k=int(number))
        if name == "rounded" and _short_number(number):
            return Disclosure("rounded", digits=int(number))
        if text in ("labels", "probabilities", "logits", "values"):
            return Disclosure(text)  # type: ignore[arg-type]
        raise ConfigError(
            f"the answers are {text!r}; expected labels, probabilities, logits, values, top-3 or rounded-2"
        )

    def __str__(self) -> str:
        return {"top-k": f"top-{self.k}", "rounded": f"rounded-{self.digits}"}.get(self.kind, self.kind)

    def check(self, task: Task) -> None:
        """Raise ConfigError unless an oracle of ``task`` may show this."""
        if self.kind not in task.disclosures:
            raise ConfigError(
                f"the answers are {self}, which {task.name} does not have; expected one of "
                f"{', '.join(task.disclosures)}"
            )

    def show(self, scores: Tensor, task: Task = CLASSIFICATION) -> Tensor:
        """Return what is shown of probabilities (see :func:`probabilities_of`); where it is ``raw``, of outputs.

        The shape stays that of the outputs.
        """
        axis = task.class_dim
        if self.kind == "labels" and axis is not None:
            return torch.zeros_like(scores).scatter(axis, scores.argmax(axis, keepdim=True), 1.0)
        if self.kind == "labels":
            return task.target(scores.logit()).to(scores)
        if self.kind == "top-k":
            assert axis is not None  # checked: of a task whose classes exclude each other
            kept = scores.topk(min(self.k, scores.shape[axis]), axis)
            return torch.zeros_like(scores).scatter(axis, kept.indices, kept.values)
        if self.kind == "rounded":
            return scores.round(decimals=self.digits)
        return scores

    def restore(self, shown: Tensor, task: Task) -> Tensor:
        """Return outputs that would be shown so, as far as can be told: what a surrogate is to give.

        A probability of zero counts as half of the last digit that is shown, or as one in a million.

        >>> from nutlet.tasks import MultiLabel
        >>> Disclosure("rounded", digits=1).restore(torch.tensor([[0.0, 0.5]]), MultiLabel())
        tensor([[-2.9444,  0.0000]])
        """
        if self.raw or "probabilities" not in task.disclosures:
            return shown
        least = 0.5 * 10.0**-self.digits if self.kind == "rounded" else _SMALLEST
        return shown.logit(eps=least) if task.class_dim is None else shown.clamp_min(least).log()


def usual_disclosure(task: Task) -> Disclosure:
    """Return what an oracle of ``task`` is taken to show unless said otherwise: probabilities where there are any.

    >>> from nutlet.tasks import Regression
    >>> usual_disclosure(CLASSIFICATION).kind, usual_disclosure(Regression()).kind
    ('probabilities', 'values')
    """
    kind = "probabilities" if "probabilities" in task.disclosures else task.disclosures[0]
    return Disclosure(kind)  # type: ignore[arg-type]


def probabilities_of(outputs: Tensor, task: Task) -> Tensor:
    """Return the probabilities that logits stand for, of the same shape; of a task that has none the outputs."""
    if "probabilities" not in task.disclosures:
        return outputs
    return outputs.sigmoid() if task.class_dim is None else outputs.softmax(task.class_dim)


def _short_number(text: str) -> bool:
    """Whether a text is a whole number as the command line takes it; other scripts have digits too."""
    return text.isascii() and text.isdecimal() and len(text) < 10


def as_probabilities(scores: Tensor, outputs: Literal["auto", "logits", "probabilities"] = "auto") -> Tensor:
    """Return probabilities ``(N, classes)``; ``auto`` takes rows that are none for logits.

    A logit taken for a probability would ruin an attack silently, and the audit would call the file safe.

    >>> as_probabilities(torch.tensor([[0.0, 0.0]])), as_probabilities(torch.tensor([[0.25, 0.75]]))
    (tensor([[0.5000, 0.5000]]), tensor([[0.2500, 0.7500]]))
    """
    if outputs == "auto":
        sums = bool(((scores.sum(1) - 1).abs() < 1e-3).all())
        outputs = "probabilities" if sums and bool((scores >= -1e-6).all()) else "logits"
    return scores.softmax(1) if outputs == "logits" else scores
