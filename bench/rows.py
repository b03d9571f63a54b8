"""What all benches share: where the data are, and rows of results on disk."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from nutlet.measurement import environment
from nutlet.storage import write_json

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("NUTLET_DATA", ROOT.parent / "shared" / "data"))
WORK = Path(os.environ.get("NUTLET_BENCH_WORK", ROOT / ".cache" / "bench"))


@dataclass
class Rows:
    """Collects the figures of one case over its seeds and writes them into ``bench/results/BENCH.json``.

    A row holds the mean over the seeds and the sample standard deviation (0 for one seed); the rows that the case had
    before are replaced.

    Args:
        bench: names the file.
        case: names the rows.
        seeds: the seeds whose figures are added.
        seconds: time taken earlier, by intermediates that are only read back now.
    """

    bench: str
    case: str
    seeds: list[int]
    seconds: float = 0.0
    start: float = field(default_factory=time.perf_counter)
    values: dict[str, list[float]] = field(default_factory=dict)
    units: dict[str, tuple[str, float | None]] = field(default_factory=dict)

    def add(self, metric: str, value: float, unit: str, bar: float | None = None) -> None:
        self.values.setdefault(metric, []).append(float(value))
        self.units[metric] = unit, bar

    def write(self) -> None:
        path = ROOT / "bench" / "results" / f"{self.bench}.json"
        old = json.loads(path.read_text()) if path.exists() else []
        command = "python " + shlex.join([f"bench/{Path(sys.argv[0]).name}", self.case])
        seconds = round(self.seconds + time.perf_counter() - self.start, 1)
        here = environment()
        common = {
            "bench": self.bench,
            "case": self.case,
            "seeds": self.seeds,
            "command": command,
            "seconds": seconds,
            "cpu": here["cpu"],
            "int8_dot_product": here["int8_dot_product"],
        }
        rows = [row for row in old if row["case"] != self.case]
        for metric, values in self.values.items():
            unit, bar = self.units[metric]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            figures = {"value": _rounded(statistics.fmean(values)), "spread": _rounded(spread)}
            rows.append({**common, "metric": metric, **figures, "unit": unit, "bar": bar})
        write_json(path, sorted(rows, key=lambda row: row["case"]))


def _rounded(value: float) -> float:
    """Round to four decimals, or four figures where that would leave nothing."""
    return round(value, 4) if abs(value) >= 0.01 or value == 0 else float(f"{value:.4g}")
