"""A shipped ONNX file as the one who holds it sees it: a module with its weights, to differentiate and to train on."""

from nutlet.stolen.load import load_onnx
from nutlet.stolen.module import StolenModule

__all__ = ["StolenModule", "load_onnx"]
