"""Figures of a shipped file, each taken in the runtime that will run it."""

from nutlet.formats.runtime import Runtime
from nutlet.machine import cores, environment
from nutlet.measurement.goal import Goal
from nutlet.measurement.intervals import Estimate, agreement, difference, predict_module, top1, wilson
from nutlet.measurement.latency import Latency, Speedup, latencies
from nutlet.measurement.memory import Memory, peak_memory
from nutlet.measurement.results import Figures, FileFigures, Measurement
from nutlet.measurement.shipped import measure

__all__ = [
    "Estimate",
    "Figures",
    "FileFigures",
    "Goal",
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
