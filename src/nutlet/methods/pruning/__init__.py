"""Pruning: weights that become zero, and channels, heads and blocks that go."""

from nutlet.methods.pruning.drop_blocks import DropBlocks
from nutlet.methods.pruning.prune_channels import PruneChannels
from nutlet.methods.pruning.prune_second_order import PruneSecondOrder
from nutlet.methods.pruning.prune_weights import PruneWeights

__all__ = ["DropBlocks", "PruneChannels", "PruneSecondOrder", "PruneWeights"]
