"""Constraints that put a weight on few values, one kind to a file."""

from nutlet.constraints.binary_ternary import Binarizer, TrainedTernarizer
from nutlet.constraints.codebook import Codebook
from nutlet.constraints.half_float import HalfFloat
from nutlet.constraints.integer import QuantScheme, WeightQuantizer
from nutlet.constraints.quantizer import Quantizer, formats, shapes_only

__all__ = [
    "Binarizer",
    "Codebook",
    "HalfFloat",
    "QuantScheme",
    "Quantizer",
    "TrainedTernarizer",
    "WeightQuantizer",
    "formats",
    "shapes_only",
]
