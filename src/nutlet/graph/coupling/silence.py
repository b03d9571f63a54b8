"""A model as it is, with channels that nothing reads: what the model without them has to answer like."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.graph.coupling.channels import Channels
from nutlet.graph.coupling.follow import Follower, Pick
from nutlet.graph.coupling.numbers import first_along, varying
from nutlet.graph.coupling.rules import RULES, unknown
from nutlet.graph.nested import rebuild

__all__ = ["Silenced"]


class Silenced(nn.Module):
    """Runs a model whose layers read zeros in the place of some channels.

    Nothing is cut: zeros are put where a layer reads, because a shift or a sigmoid on the way there would make another
    value of them, and a norm or a mean over channels is taken over those that are left.

    Args:
        model: without constraints, or below constraints that :func:`nutlet.graph.comparison.plain` takes off.
        channels: of ``model``.
        gone: labels of the channels.
    """

    def __init__(self, model: nn.Module, channels: Channels, gone: set[int]) -> None:
        super().__init__()
        self.model = model
        self.heads = channels.heads
        lost = torch.zeros(len(channels.labels), dtype=torch.bool)
        lost[list(gone)] = True
        self.lost = lost[channels.labels]

    def forward(self, x: Tensor) -> Any:
        """Return what the model answers; numbers are issued anew, in the same order."""
        return _Silencer(self.model, self.lost, heads=self.heads).walk(x)


class _Silencer(Follower):
    def __init__(self, model: nn.Module, lost: Tensor, *, heads: Collection[str]) -> None:
        super().__init__(model, RULES, unknown, heads=heads)
        self.lost = lost

    def silent(self, tensor: Tensor, numbers: Tensor | None = None) -> Tensor:
        lost = self.lost[self.of(tensor) if numbers is None else numbers]
        return tensor.masked_fill(lost, 0.0) if bool(lost.any()) else tensor

    def across(self, x: Tensor, dim: int, run: Callable[[Pick], Any], *, keeps: bool = True) -> Any:
        numbers = self.of(x)
        stays = ~self.lost[first_along(numbers, varying(numbers) - {dim})].flatten()
        if bool(stays.all()):
            return run(lambda tensor, dim: tensor)
        places = stays.nonzero()[:, 0]
        result = run(lambda tensor, dim: None if tensor is None else tensor.index_select(dim, places))
        if not keeps:
            return result
        return rebuild(
            result,
            lambda thin: torch.zeros(x.shape, dtype=thin.dtype, device=thin.device).index_copy(dim, places, thin),
        )
