"""What attacks share that ask nothing and train the file on labels of the thief's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from nutlet.attacks.base import AttackerKnowledge
from nutlet.attacks.extraction.surrogate import Surrogate
from nutlet.data.examples import Examples
from nutlet.tasks import Task

__all__ = ["EFFORT", "finetune", "labelled"]

EFFORT = 0.125
"""Part of the steps of a thief who begins with nothing that one needs who begins with the file."""


def labelled(transfer: Examples, seed: int, budgets: Sequence[int]) -> Iterator[Examples]:
    """Yield the examples of each budget, smallest first; a larger one holds the smaller ones.

    >>> some = Examples(torch.zeros(9, 2), torch.arange(9))
    >>> [len(examples) for examples in labelled(some, 0, (20, 4))]
    [4, 9]
    """
    order = torch.randperm(len(transfer), generator=torch.Generator().manual_seed(seed))
    for budget in sorted(budgets):
        yield transfer.subset(order[:budget])


def finetune(
    start: nn.Module,
    examples: Examples,
    classes: int,
    knowledge: AttackerKnowledge,
    *,
    lr: float,
    effort: float = EFFORT,
    task: Task | None = None,
) -> nn.Module:
    """Return ``start`` trained on targets: AdamW, one-cycle, the loss of the task.

    Args:
        start: gives outputs of the task of the examples; it is copied.
        examples: with targets.
        classes: outputs of a classifier.
        knowledge: its thief, where there is one, says how long and with which batches; its seed is the only randomness.
        lr: peak learning rate.
        effort: part of the steps that a thief takes who begins with nothing.
        task: what the targets mean, where it is not what the examples are for.
    """
    model = copy.deepcopy(start).requires_grad_(True)
    surrogate = replace(knowledge.surrogate or Surrogate(architecture=model), architecture=model, start="given", lr=lr)
    steps = max(1, round(effort * surrogate.steps(len(examples))))
    return surrogate.train_on_targets(
        examples, classes, task=task, seed=knowledge.seed, steps=steps, progress=knowledge.progress
    )
