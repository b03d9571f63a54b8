"""One flat row of a measurement, for a data frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nutlet.measurement.goal import Judged, judged

__all__ = ["row_of"]


def row_of(measurement: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a measurement as one flat row: bytes, score, loss, and time and speed in each setting.

    Args:
        measurement: plain JSON, as :meth:`nutlet.Measurement.to_dict` gives it and a report keeps it.

    >>> row = row_of({"compressed": {"bytes": 10, "latency": [{"batch": 1, "threads": 2, "median_ms": 0.5}]}})
    >>> row["bytes"], row["loss"], row["ms_b1_t2"]
    (10, None, 0.5)
    """
    new, old = measurement.get("compressed") or {}, measurement.get("original") or {}
    parts = tuple(Judged(**part) for part in measurement.get("goal") or ())
    row: dict[str, Any] = {
        "file": new.get("path"),
        "split": measurement.get("split"),
        "examples": new.get("examples"),
        "metric": (measurement.get("task") or {}).get("metric"),
        "score": new.get("accuracy"),
        "score_low": new.get("accuracy_low"),
        "score_high": new.get("accuracy_high"),
        "original_score": old.get("accuracy"),
        "loss": measurement.get("score_drop"),
        "loss_low": measurement.get("score_drop_low"),
        "loss_high": measurement.get("score_drop_high"),
        "agreement": measurement.get("agreement"),
        "bytes": new.get("bytes"),
        "bytes_zstd": new.get("bytes_zstd"),
        "original_bytes": old.get("bytes"),
        "size_ratio": measurement.get("size_ratio"),
        "peak_memory_mib": new.get("peak_memory_mib"),
        "goal": str(judged(parts)) if parts else None,
    }
    for timed in new.get("latency") or ():
        row[f"ms_b{timed['batch']}_t{timed['threads']}"] = timed.get("median_ms")
    for faster in measurement.get("speedups") or ():
        row[f"speedup_b{faster['batch']}_t{faster['threads']}"] = faster.get("ratio")
    return row
