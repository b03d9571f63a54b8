"""Runs side by side: one table of their reports, and where they cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nutlet.errors import ConfigError, MissingExtra
from nutlet.measurement.goal import Judged, judged
from nutlet.measurement.rows import row_of
from nutlet.report.figures import NOT_MEASURED, clean, points
from nutlet.report.load import load_report
from nutlet.report.metrics import metric_in
from nutlet.rounding import times
from nutlet.tables import Table, Tabled

__all__ = ["COLUMNS", "Comparison", "cells", "compare", "results"]

COLUMNS = ("bytes", "smaller", "faster", "loss", "goal")
"""Of a table of runs, after their names."""


@dataclass(frozen=True)
class Comparison(Tabled):
    """Reports side by side.

    Args:
        names: of the runs, as they were asked for.
        reports: what schema.json describes, one for each.
        differences: where the runs are not of the same data or the same original, a sentence each.
    """

    names: tuple[str, ...]
    reports: tuple[dict[str, Any], ...]
    differences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON: one row for each run, and what differs."""
        return {"runs": self.rows(), "differences": list(self.differences)}

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row for each run."""
        return [_row(name, report) for name, report in zip(self.names, self.reports, strict=True)]

    def table(self) -> Table:
        """Return one line for each run."""
        rows = tuple(
            (name, _steps(report), *cells(report["measurement"]))
            for name, report in zip(self.names, self.reports, strict=True)
        )
        notes = [f"NOT COMPARABLE: {text}" for text in self.differences]
        return Table("Runs side by side", ("run", "recipe", *COLUMNS), rows, (*notes, _READ))


_READ = (
    "smaller, faster: than the original's file, speed at the smallest batch and the fewest threads; "
    "loss: of the score, brackets are the 95 % interval."
)


def compare(folders: Sequence[Path | str]) -> Comparison:
    """Put the reports of several runs side by side.

    Args:
        folders: what ``nutlet compress`` wrote, or ``report.json`` itself.

    Raises:
        ConfigError: there are fewer than two, or they measure different things.
        StorageError: a report is missing or damaged.
    """
    if len(folders) < 2:
        raise ConfigError(f"{len(folders)} run to compare; expected two or more folders that `nutlet compress` wrote")
    reports = tuple(clean(load_report(_file(Path(folder)))) for folder in folders)
    names = tuple(clean(str(folder)) for folder in folders)
    for name, report in zip(names, reports, strict=True):
        if not report["measurement"]:
            raise ConfigError(f"{name} has no measurement to compare; expected a run that `nutlet compress` finished")
    metrics = [metric_in(report["measurement"]) for report in reports]
    for name, metric in zip(names[1:], metrics[1:], strict=True):
        if metric != metrics[0]:
            raise ConfigError(
                f"{names[0]} is measured by {metrics[0].metric} ({metrics[0].task}), {name} by {metric.metric} "
                f"({metric.task}); expected runs of one task"
            )
    return Comparison(names, reports, tuple(_differences(names, reports)))


def results(folders: Path | str | Iterable[Path | str]) -> Any:
    """Return one row for each run as a ``pandas.DataFrame``: recipe, bytes, score, loss with interval, speed.

    Losses are in units of the score: of classes shares, 0 to 1.

    Args:
        folders: what ``nutlet compress`` wrote, one or more; of one that holds such folders, as ``nutlet suggest``
            writes it, all of these.

    Raises:
        MissingExtra: pandas is not installed.
        StorageError: there is no report, or one is damaged.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtra("pandas", "tables", "nutlet.results") from None
    asked = [folders] if isinstance(folders, (str, Path)) else list(folders)
    found = [(str(path.parent), load_report(path)) for folder in asked for path in _files(Path(folder))]
    return pandas.DataFrame([_row(name, report) for name, report in found])


def cells(measurement: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the cells of one run for :data:`COLUMNS`.

    >>> cells({"compressed": {"bytes": 1200}, "size_ratio": 4.0, "score_drop": 0.004, "score_drop_low": -0.002,
    ...     "score_drop_high": 0.0104})
    ('1,200', '4.0x', 'not measured', '0.4 [-0.2, 1.0] points', '')
    """
    measured = measurement or {}
    parts = [Judged(**part) for part in measured.get("goal") or ()]
    row = row_of(measured)
    first = min(measured.get("speedups") or (), key=lambda s: (s["batch"], s["threads"]), default=None)
    speed = first.get("ratio") if first else None
    return (
        NOT_MEASURED if row["bytes"] is None else f"{row['bytes']:,}",
        *(NOT_MEASURED if ratio is None else times(ratio) for ratio in (row["size_ratio"], speed)),
        _loss(measured, parts),
        str(judged(tuple(parts))) if parts else "",
    )


def _loss(measured: Mapping[str, Any], parts: Sequence[Judged]) -> str:
    # Where a goal is about it, as many digits as show on which side of the limit its interval ends.
    for part in parts:
        if part.name == "loss" and part.value is not None:
            return f"{part.brief} {part.unit}".rstrip()
    ends = [measured.get(name) for name in ("score_drop", "score_drop_low", "score_drop_high")]
    known = [end for end in ends if end is not None]
    if len(known) < len(ends):
        return NOT_MEASURED
    metric = metric_in(dict(measured))
    share = metric.unit == "%"
    value, low, high = (points(end) if share else f"{end:.3g}" for end in known)
    return f"{value} [{low}, {high}] {'points' if share else metric.unit}".rstrip()


def _differences(names: Sequence[str], reports: Sequence[dict[str, Any]]) -> list[str]:
    """Return what keeps the figures of the runs from being compared."""
    found = []
    for what, told, pick in (
        ("the data", "losses", _data),
        ("the original", "losses and ratios", _original),
        ("the processor", "times", lambda report: report["environment"].get("cpu")),
    ):
        values = [pick(report) for report in reports]
        for name, value in zip(names[1:], values[1:], strict=True):
            if value != values[0]:
                found.append(f"{what} of {name} ({value}) is not that of {names[0]} ({values[0]}): {told} differ by it")
    return found


def _data(report: dict[str, Any]) -> str:
    data, measured = report["data"], report["measurement"]
    examples = measured["compressed"].get("examples")
    return f"{data['name']}, {data['train']:,} to train on, {examples or 0:,} of {measured.get('split')} to measure on"


def _original(report: dict[str, Any]) -> str:
    old = report["measurement"].get("original") or {}
    size, score = old.get("bytes"), old.get("accuracy")
    name = report["model"]["name"]
    score_told = "score not measured" if score is None else f"score {score:.6g}"
    return f"{name}, {'size not measured' if size is None else f'{size:,} bytes'}, {score_told}"


def _row(name: str, report: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": name,
        "model": report["model"]["name"],
        "data": report["data"]["name"],
        "recipe": _steps(report),
        "options": json.dumps(report["recipe"]),
        "seed": report["seed"],
        "cpu": report["environment"].get("cpu"),
        **row_of(report["measurement"] or {}),
    }


def _steps(report: dict[str, Any]) -> str:
    return " → ".join(str(next(iter(step), "")) for step in report["recipe"])


def _file(folder: Path) -> Path:
    return folder / "report.json" if folder.is_dir() else folder


def _files(folder: Path) -> list[Path]:
    """Return the reports of a folder: its own, else those of the folders in it."""
    own = _file(folder)
    inside = [] if own.exists() or not folder.is_dir() else sorted(folder.glob("*/report.json"))
    return inside or [own]
