"""What attacks that train a clone share: how answers become targets, and the asked part of a transfer set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nutlet.attacks.base import AttackerKnowledge
from nutlet.attacks.extraction.surrogate import Surrogate
from nutlet.data.examples import Examples
from nutlet.oracle import Oracle, as_probabilities
from nutlet.tasks import is_classifier
from nutlet.tasks.inputs import Inputs

__all__ = ["QueriedSet", "ask", "required"]


def required(knowledge: AttackerKnowledge) -> tuple[Examples, Surrogate]:
    """Return the transfer set and the thief, which every attack that trains a clone on answers needs."""
    assert knowledge.transfer is not None
    assert knowledge.surrogate is not None
    return knowledge.transfer, knowledge.surrogate


def ask(oracle: Oracle, x: Inputs) -> Tensor:
    """Send ``x`` and return what a surrogate is to learn of the answers, in the shape of the outputs.

    Of a classifier that is a probability for each class, rows that sum to one whatever the oracle shows: what ``top-k``
    or rounding leaves out of a row is spread over the classes shown as 0. Of any other task it is outputs that would be
    shown so (:meth:`nutlet.oracle.Disclosure.restore`).

    >>> from nutlet.oracle import Disclosure
    >>> ask(Oracle(torch.nn.Identity(), answers=Disclosure("top-k")), torch.tensor([[0.75, 0.25, 0.0]]))
    tensor([[0.7500, 0.1250, 0.1250]])
    """
    shown = oracle.query(x)
    if not is_classifier(oracle.task):
        return oracle.answers.restore(shown, oracle.task)
    if oracle.answers.raw:
        return as_probabilities(shown, oracle.outputs)
    hidden = (shown == 0).float()
    rest = (1 - shown.sum(1, keepdim=True)).clamp_min(0)
    return shown + rest * hidden / hidden.sum(1, keepdim=True).clamp_min(1)


@dataclass(frozen=True, eq=False)
class QueriedSet:
    """The part of a transfer set that was asked about, in the order of asking.

    Args:
        transfer: all inputs.
        indices: of those asked about, ``(N,)``.
        answers: to them, as :func:`ask` returns them, ``(N, ...)``.
    """

    transfer: Examples
    indices: Tensor
    answers: Tensor

    @staticmethod
    def nothing(transfer: Examples) -> QueriedSet:
        """Return the state before the first question, of which the first answer tells the shape."""
        return QueriedSet(transfer, torch.empty(0, dtype=torch.long), torch.empty(0))

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def examples(self) -> Examples:
        """The inputs asked about."""
        return self.transfer.subset(self.indices)

    @property
    def left(self) -> Tensor:
        """Indices of the inputs not asked about yet, ascending."""
        mask = torch.ones(len(self.transfer), dtype=torch.bool)
        mask[self.indices] = False
        return mask.nonzero().flatten()

    def more(self, oracle: Oracle, indices: Tensor) -> QueriedSet:
        """Ask about ``indices`` too; about none where there are none, as at the end of a transfer set."""
        if len(indices) == 0:
            return self
        answers = ask(oracle, self.transfer.batch(indices)[0])
        if len(self):
            answers = torch.cat([self.answers, answers])
        return QueriedSet(self.transfer, torch.cat([self.indices, indices]), answers)
