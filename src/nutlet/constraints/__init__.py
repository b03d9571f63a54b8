"""Constraints that put a weight on few values, one kind to a file."""

from nutlet.constraints.binary_ternary import Binarizer, TrainedTernarizer
from nutlet.constraints.codebook import Codebook
from nutlet.constraints.half_float import HalfFloat
from nutlet.constraints.integer import Grid, WeightQuantizer
from nutlet.constraints.quantizer import FewValues, formats, shapes_only

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
