"""Constraints that put a weight on few values, one kind to a file."""

from nutlet.graph.quantizers.codebook import Codebook
from nutlet.graph.quantizers.few_values import FewValues, formats, shapes_only
from nutlet.graph.quantizers.half import HalfFloat
from nutlet.graph.quantizers.integers import Grid, WeightQuantizer
from nutlet.graph.quantizers.signs import Binarizer, TrainedTernarizer

__all__ = [
    "Binarizer",
    "Codebook",
    "FewValues",
    "Grid",
    "HalfFloat",
    "TrainedTernarizer",
    "WeightQuantizer",
    "formats",
    "shapes_only",
]
