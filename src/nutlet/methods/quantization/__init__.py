"""Quantization: weights and activations on few values."""

from nutlet.methods.quantization.adaround import AdaRound
from nutlet.methods.quantization.binarize import Binarize
from nutlet.methods.quantization.cluster import Cluster
from nutlet.methods.quantization.correct_bias import CorrectBias
from nutlet.methods.quantization.equalize import Equalize
from nutlet.methods.quantization.fixed_point import FixedPoint
from nutlet.methods.quantization.gptq import GPTQ
from nutlet.methods.quantization.half_precision import HalfPrecision
from nutlet.methods.quantization.mixed_precision import MixedPrecision
from nutlet.methods.quantization.quantize import Quantize
from nutlet.methods.quantization.reestimate_norms import ReestimateNorms
from nutlet.methods.quantization.smooth import Smooth
from nutlet.methods.quantization.ternarize import Ternarize

__all__ = [
    "GPTQ",
    "AdaRound",
    "Binarize",
    "Cluster",
    "CorrectBias",
    "Equalize",
    "FixedPoint",
    "HalfPrecision",
    "MixedPrecision",
    "Quantize",
    "ReestimateNorms",
    "Smooth",
    "Ternarize",
]
