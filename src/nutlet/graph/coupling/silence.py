"""A model as it is, with channels that nothing reads: what the model without them has to answer like."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.graph.coupling.channels import Channels
from nutlet.graph.coupling.follow import Follower, Pick
from nutlet.graph.coupling.numbers import first_along, varying
from nutlet.graph.coupling.rules import RULES, unknown
from nutlet.graph.nested import rebuild
from nutlet.tasks.inputs import Inputs

__all__ = ["Silenced"]


class Silenced(nn.Module):
    """Runs a model whose layers read zeros in the place of some channels.

    Nothing is cut: zeros are put where a layer reads, because a shift or a sigmoid on the way there would make another
    value of them, and a norm or a mean over channels is taken over those that are left.

    Args:
        model: below constraints or not: they may be taken off later.
        bare: the same without constraints; not changed.
        example: inputs, batch first, of which the first is used.
        channels: of ``bare``.
        gone: labels of the channels.
    """

    def __init__(self, model: nn.Module, bare: nn.Module, example: Inputs, channels: Channels, gone: set[int]) -> None:
        super().__init__()
        self.model = model
        self.heads = channels.heads
        marker = _Marker(bare, channels.among(gone)[channels.labels], heads=channels.heads)
        marker.walk(example[:1])
        # By order of reading: numbers would not be the same where layers no longer share a weight.
        self.marks = marker.marks

    def forward(self, x: Tensor) -> Any:
        """Return what the model answers."""
        return _Silencer(self.model, iter(self.marks), heads=self.heads).walk(x)


class _Marker(Follower):
    """Marks, for each reading of channels, those that are lost; None where there are none."""

    def __init__(self, model: nn.Module, lost: Tensor, *, heads: Collection[str]) -> None:
        super().__init__(model, RULES, unknown, heads=heads)
        self.lost = lost
        self.marks: list[Tensor | None] = []

    def mark(self, numbers: Tensor) -> None:
        lost = self.lost[numbers]
        self.marks.append(lost if bool(lost.any()) else None)

    def silent(self, tensor: Tensor, numbers: Tensor | None = None) -> Tensor:
        self.mark(self.of(tensor) if numbers is None else numbers)
        return tensor

    def across(self, x: Tensor, dim: int, run: Callable[[Pick], Any], *, keeps: bool = True) -> Any:
        numbers = self.of(x)
        self.mark(first_along(numbers, varying(numbers) - {dim}).flatten())
        return super().across(x, dim, run)


class _Silencer(Follower):
    def __init__(self, model: nn.Module, marks: Iterator[Tensor | None], *, heads: Collection[str]) -> None:
        super().__init__(model, RULES, unknown, heads=heads)
        self.marks = marks

    def silent(self, tensor: Tensor, numbers: Tensor | None = None) -> Tensor:
        lost = next(self.marks)
        return tensor if lost is None else tensor.masked_fill(lost, 0.0)

    def across(self, x: Tensor, dim: int, run: Callable[[Pick], Any], *, keeps: bool = True) -> Any:
        lost = next(self.marks)
        if lost is None:
            return super().across(x, dim, run)
        places = (~lost).nonzero()[:, 0]
        result = run(lambda tensor, dim: None if tensor is None else tensor.index_select(dim, places))
        if not keeps:
            return result
        return rebuild(
            result,
            lambda thin: torch.zeros(x.shape, dtype=thin.dtype, device=thin.device).index_copy(dim, places, thin),
        )
