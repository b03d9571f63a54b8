"""What is chosen from: channels of which any can go, with what tells how much they matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Group", "as_shares"]

FORCED = 10.0


@dataclass(frozen=True, eq=False)
class Group:
    """Output channels of which any can go, with all that is coupled to it.

    Args:
        root: the layer whose output channels number the group.
        channels: number of channels.
        width: number of outputs of ``root`` that they are; of a head many.
        places: for each channel where it lies among the outputs of ``root``, the first place of those it has.
        producers: names of all modules that make these channels.
        importance: ``(channels,)`` sum over all coupled weights of the squares of what would go, each as a share of all
            channels together, so that layers of different scale have an equal say.
        made: for each of the producing layers, which of its own output channels go with which channels of the group.
        read: the same of the input channels of layers that read them.
        labels: of the channels.
        own: L2 norms of the weights by which the root makes its part of the channels, each with the channel.
        tie: the root of the first of those groups that have to lose the same share of their channels, itself included;
            its own where no other has to.
    """

    root: str
    channels: int
    width: int
    places: list[int]
    producers: tuple[str, ...]
    importance: Tensor
    made: Mapping[str, tuple[list[int], list[int]]]
    read: Mapping[str, tuple[list[int], list[int]]]
    labels: Tensor
    own: tuple[Tensor, Tensor]
    tie: str

    def forced(self, gone: list[int]) -> bool:
        """Whether the group loses more than ``FORCED`` times the norm that a free choice of as many outputs would.

        Every group of a convolution loses the same channels: that costs much where one group holds all the weak ones.
        """
        norms, channel = self.own
        if len(norms) == self.channels:
            return False
        chosen = norms[torch.isin(channel, torch.tensor(gone))]
        return float(chosen.sum()) > FORCED * float(norms.sort().values[: len(chosen)].sum())

    def summed(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Return ``(channels,)`` the sum over all producers of the scores of their output channels."""
        total = torch.zeros(self.channels)
        for name, (own, ours) in self.made.items():
            total.index_add_(0, torch.tensor(ours), scores[name][own])
        return total


def as_shares(values: Tensor) -> Tensor:
    """Return values, zero or more, as shares of their sum.

    >>> as_shares(torch.tensor([1.0, 3.0])).tolist()
    [0.25, 0.75]
    """
    return values / values.sum().clamp_min(1e-12)
