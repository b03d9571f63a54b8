"""Compression methods, one to a file: its options, what it decides, and how that is carried out."""

from nutlet.methods.distill import Distill
from nutlet.methods.drop_blocks import DropBlocks
from nutlet.methods.factorize import Factorize
from nutlet.methods.fine_tune import FineTune
from nutlet.methods.prune_channels import PruneChannels
from nutlet.methods.prune_weights import PruneWeights
from nutlet.methods.quantize import Quantize

__all__ = ["Distill", "DropBlocks", "Factorize", "FineTune", "PruneChannels", "PruneWeights", "Quantize"]
