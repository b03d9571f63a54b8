"""Quantization: fewer bits for a weight and for an activation."""

from nutlet.methods.quantization.correct_bias import CorrectBias
from nutlet.methods.quantization.equalize import Equalize
from nutlet.methods.quantization.quantize import Quantize
from nutlet.methods.quantization.reestimate_norms import ReestimateNorms
from nutlet.methods.quantization.smooth import Smooth

__all__ = ["CorrectBias", "Equalize", "Quantize", "ReestimateNorms", "Smooth"]
