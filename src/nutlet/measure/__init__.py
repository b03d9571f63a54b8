"""Figures of a shipped file, each taken in the runtime that will run it."""

from nutlet.measure.accuracy import Estimate, agreement, difference, predict_module, top1, wilson
from nutlet.measure.environment import cores, environment
from nutlet.measure.latency import Latency, Speedup, latencies
from nutlet.measure.memory import Memory, peak_memory
from nutlet.measure.results import Figures, FileFigures, Measurement
from nutlet.measure.runtime import Runtime
from nutlet.measure.shipped import measure

__all__ = [
    "Estimate",
    "Figures",
    "FileFigures",
    "Latency",
    "Measurement",
    "Memory",
    "Runtime",
    "Speedup",
    "agreement",
    "cores",
    "difference",
    "environment",
    "latencies",
    "measure",
    "peak_memory",
    "predict_module",
    "top1",
    "wilson",
]
