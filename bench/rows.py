"""What all benches share: where the data are, and rows of results on disk."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nutlet.measurement import environment
from nutlet.storage import write_json

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("NUTLET_DATA", ROOT.parent / "shared" / "data"))
WORK = Path(os.environ.get("NUTLET_BENCH_WORK", ROOT / ".cache" / "bench"))


@dataclass
class Rows:
    """Collects the rows of one case and writes them into ``bench/results/BENCH.json`` in the place of its old ones."""

    bench: str
    case: str
    seeds: list[int]
    start: float = field(default_factory=time.perf_counter)
    rows: list[dict[str, object]] = field(default_factory=list)

    def add(self, metric: str, value: float, unit: str, bar: float | None = None) -> None:
        self.rows.append({"metric": metric, "value": round(float(value), 4), "unit": unit, "bar": bar})

    def write(self) -> None:
        path = ROOT / "bench" / "results" / f"{self.bench}.json"
        old = json.loads(path.read_text()) if path.exists() else []
        command = "python " + shlex.join([f"bench/{Path(sys.argv[0]).name}", self.case])
        seconds = round(time.perf_counter() - self.start, 1)
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
        rows = [row for row in old if row["case"] != self.case] + [{**common, **row} for row in self.rows]
        write_json(path, sorted(rows, key=lambda row: row["case"]))


def spread(values: list[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5


__all__ = ["DATA", "ROOT", "WORK", "Rows", "asdict", "spread"]
