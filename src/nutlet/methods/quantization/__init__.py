"""Quantization: weights and activations on few values."""

from nutlet.methods.quantization.binarize import Binarize
from nutlet.methods.quantization.cluster import Cluster
from nutlet.methods.quantization.fixed_point import FixedPoint
from nutlet.methods.quantization.half_precision import HalfPrecision
from nutlet.methods.quantization.mixed_precision import MixedPrecision
from nutlet.methods.quantization.quantize import Quantize
from nutlet.methods.quantization.ternarize import Ternarize

__all__ = ["Binarize", "Cluster", "FixedPoint", "HalfPrecision", "MixedPrecision", "Quantize", "Ternarize"]
