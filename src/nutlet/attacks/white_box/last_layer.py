"""LastLayerWidth: logits lie in a subspace as wide as the last hidden layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.options import Range
from nutlet.oracle import Access, Oracle, as_probabilities

__all__ = ["LastLayerWidth", "read_last_layer"]

_FEW = 32
"""Last hidden layers are rarely narrower than this, and only what is narrower than the outputs can be seen."""


@register_attack
@dataclass(frozen=True, kw_only=True)
class LastLayerWidth(Attack):
    """Read the width of the last hidden layer off the rank of many logits (Carlini et al. 2024).

    Logits are ``W h + b`` with ``W`` of shape ``(outputs, width)``: where there are more outputs than hidden units,
    those of many inputs differ in ``width`` directions alone, and these span the columns of ``W``: the last layer, up
    to a rotation. See :func:`read_last_layer`. Inputs are those of the transfer set, or normal noise where there is
    none; four for each output.

    Args:
        drop: least ratio of two neighbouring singular values that counts as the end of the spectrum.

    Raises:
        ConfigError: a ratio of one or less.
    """

    drop: Annotated[float, Range(1, left_open=True, noun="a ratio")] = 10.0

    use_when: ClassVar[str] = (
        "logits of a model with more outputs than hidden units: how wide it is, and its last layer"
    )
    goal: ClassVar[Goal] = "width"
    access: ClassVar[Access] = "logits"
    measure: ClassVar[str] = "hidden width found"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi_label", "regression", "embedding")
    source: ClassVar[str] = "Carlini et al. 2024, arXiv:2403.06634"

    def obstacle(self, oracle: Oracle, knowledge: AttackerKnowledge) -> str | None:
        """Return why it cannot run: too few outputs show nothing, whatever the layer before them is."""
        missing = super().obstacle(oracle, knowledge)
        if missing is None and knowledge.classes <= _FEW:
            return f"vacuous: {knowledge.classes} outputs cannot show a wider hidden layer"
        return missing

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield once: the width, or None where no end of the spectrum shows."""
        generator = torch.Generator().manual_seed(knowledge.seed)
        count = min(4 * knowledge.classes, max(budgets))
        if knowledge.transfer is None:
            x = torch.randn(count, *knowledge.shape, generator=generator)
        else:
            x, _ = knowledge.transfer.batch(torch.randperm(len(knowledge.transfer), generator=generator)[:count])
        logits = oracle.query(x)
        values, span = read_last_layer(logits, self.drop)
        yield AttackResult(
            queries=oracle.queries,
            share=0.0 if span is None else 1.0,
            facts={
                "width": None if span is None else span.shape[1],
                "singular_values": values[:64].tolist(),
                "outputs": logits.shape[1],
            },
        )


def read_last_layer(logits: Tensor, drop: float = 10.0) -> tuple[Tensor, Tensor | None]:
    """Return the singular values of logits and, where they end, a basis of the columns of the last layer.

    The mean of all rows is taken off first: it holds the bias, which would pass for one more dimension. Probabilities
    are read as logits up to a shift of each row, so that the mean of each row is taken off too.

    Args:
        logits: ``(N, C)``; computed in float32, so that what is below its precision is noise.
        drop: see :class:`LastLayerWidth`.

    Returns:
        Singular values, largest first, as many as could be above zero, and an orthonormal basis ``(C, width)``; None
        where no value is ``drop`` times its next.

    >>> generator = torch.Generator().manual_seed(0)
    >>> hidden, last = torch.randn(99, 3, generator=generator), torch.randn(40, 3, generator=generator)
    >>> values, span = read_last_layer(hidden @ last.T + 5)
    >>> len(values), span.shape
    (40, torch.Size([40, 3]))
    """
    rows, outputs = logits.shape
    rank = min(rows - 1, outputs)
    logs = logits.double()
    if as_probabilities(logits) is logits:
        logs = logs.clamp_min(torch.finfo(torch.float32).tiny).log()
        logs = logs - logs.mean(1, keepdim=True)
        rank = min(rank, outputs - 1)
    _, values, directions = torch.linalg.svd(logs - logs.mean(0), full_matrices=False)
    values = values[:rank]
    if rank < 2:
        return values, None
    floor = torch.finfo(torch.float32).eps * values[0]
    seen = torch.maximum(values, floor).clamp_min(torch.finfo(torch.float64).tiny)
    ratios = seen[:-1] / seen[1:]
    width = int(ratios.argmax()) + 1
    return values, directions[:width].T if float(ratios[width - 1]) >= drop else None
