"""Pruning: weights that become zero, and channels, heads and blocks that go."""

from nutlet.methods.pruning.drop_blocks import DropBlocks
from nutlet.methods.pruning.lottery_ticket import LotteryTicket
from nutlet.methods.pruning.prune_channels import PruneChannels
from nutlet.methods.pruning.prune_gradually import PruneGradually
from nutlet.methods.pruning.prune_heads import PruneHeads
from nutlet.methods.pruning.prune_second_order import PruneSecondOrder
from nutlet.methods.pruning.prune_weights import PruneWeights
from nutlet.methods.pruning.train_sparse import TrainSparse

__all__ = [
    "DropBlocks",
    "LotteryTicket",
    "PruneChannels",
    "PruneGradually",
    "PruneHeads",
    "PruneSecondOrder",
    "PruneWeights",
    "TrainSparse",
]
