"""A file in ONNX Runtime: the one place that says how a session is made.

It imports nothing of nutlet. Two programs that run in processes of their own load it by its path: the trial of a file
of unknown origin (:mod:`nutlet.formats.onnx.attempt`), which has to start quickly, and the measurement of memory
(:mod:`nutlet.measurement.probe`), where the memory of nutlet would hide that of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxruntime as ort

__all__ = ["NUMBERS", "VERSION", "open_bare", "open_session"]

VERSION: str = ort.__version__
NUMBERS = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
}
"""Types of inputs by their names in NumPy."""


def open_session(file: bytes | str, threads: int = 1, *, optimized: bool = True) -> Any:
    """Return an ``onnxruntime.InferenceSession`` on the CPU.

    Args:
        file: its content or its path.
        threads: threads for one operator.
        optimized: whether the graph is optimised: constants are folded and operators fused.
    """
    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    # What was checked as ONNX must not be read as the runtime's own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Idle threads of one session would otherwise go on spinning while another session is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def open_bare(path: str) -> Callable[[Any], object]:
    """Return a function that runs the file at ``path`` on one batch; see :attr:`nutlet.formats.base.Format.bare`."""
    session = open_session(path)
    return lambda feed: session.run(None, feed)
