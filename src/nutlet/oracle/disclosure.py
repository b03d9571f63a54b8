"""What an oracle shows of its scores: all of them, some, rounded, or only the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from nutlet.errors import ConfigError
from nutlet.options import Count, Range, Validated

__all__ = ["ACCESS", "Access", "Disclosure", "as_probabilities"]

Access = Literal["labels", "probabilities", "logits", "file"]
"""What an attack needs, least first; whoever has one of them has those before it too."""
ACCESS: tuple[Access, ...] = ("labels", "probabilities", "logits", "file")


@dataclass(frozen=True)
class Disclosure(Validated):
    """What is shown to who asks.

    Args:
        kind: ``logits`` (the scores as they are), ``probabilities``, ``top-k`` (the ``k`` largest probabilities, the
            others 0), ``rounded`` (probabilities to ``digits`` decimals), or ``labels`` (1 for the top class, else 0).
        k: probabilities shown by ``top-k``.
        digits: decimals shown by ``rounded``.

    Raises:
        ConfigError: an unknown kind, or a number out of range.

    >>> Disclosure("top-k", k=1).show(torch.tensor([[0.75, 0.25]]))
    tensor([[0.7500, 0.0000]])
    >>> Disclosure("labels").show(torch.tensor([[0.62, 0.33, 0.05]]))
    tensor([[1., 0., 0.]])
    """

    kind: Literal["logits", "probabilities", "top-k", "rounded", "labels"] = "probabilities"
    k: Count = 1
    digits: Annotated[int, Range(0, 9)] = 2

    @property
    def access(self) -> Access:
        """What these answers amount to for an attack: probabilities in part count as probabilities."""
        return self.kind if self.kind in ("logits", "labels") else "probabilities"

    @staticmethod
    def parse(text: str) -> Disclosure:
        """Read ``labels``, ``probabilities``, ``logits``, ``top-3`` or ``rounded-2``.

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
        if text in ("labels", "probabilities", "logits"):
            return Disclosure(text)  # type: ignore[arg-type]
        raise ConfigError(f"the answers are {text!r}; expected labels, probabilities, logits, top-3 or rounded-2")

    def __str__(self) -> str:
        return {"top-k": f"top-{self.k}", "rounded": f"rounded-{self.digits}"}.get(self.kind, self.kind)

    def show(self, scores: Tensor) -> Tensor:
        """Return what is shown of probabilities ``(N, classes)``; of ``logits`` the scores themselves."""
        if self.kind == "labels":
            return torch.nn.functional.one_hot(scores.argmax(1), scores.shape[1]).float()
        if self.kind == "top-k":
            kept = scores.topk(min(self.k, scores.shape[1]), 1)
            return torch.zeros_like(scores).scatter(1, kept.indices, kept.values)
        if self.kind == "rounded":
            return scores.round(decimals=self.digits)
        return scores


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
