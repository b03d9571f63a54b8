"""Quantization: fewer bits for a weight and for an activation."""

from nutlet.methods.quantization.quantize import Quantize

__all__ = ["Quantize"]
