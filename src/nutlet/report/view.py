"""What stands in each table and chart of the page, worked out before the template lays it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml
from markupsafe import Markup

from nutlet.measurement.results import Metric
from nutlet.report import charts
from nutlet.report.charts import Bar
from nutlet.report.figures import (
    NOT_MEASURED,
    change,
    count,
    exact,
    milliseconds,
    percent,
    seconds,
    size,
)
from nutlet.report.metrics import metric_in, score_change, score_interval, score_text, titled
from nutlet.report.verdict import PARITY_EXPECTED, SAME_SPEED, accuracy_change, paired_latency, verdict

__all__ = ["Cell", "flat", "view"]

LAYERS_SHOWN = 400
"""Rows of the layer table: a page stays below one megabyte; the rest are in report.json."""
GONE_SHOWN = 20
BUSY = 0.1
"""Where the ratio of medians and the median of ratios differ by more, other work disturbed the timing."""


@dataclass(frozen=True)
class Cell:
    """A figure with a smaller line below it."""

    text: str
    detail: str = ""

    @property
    def absent(self) -> bool:
        """Whether nothing was measured."""
        return self.text == NOT_MEASURED


@dataclass(frozen=True)
class Row:
    """One figure before and after."""

    name: str
    detail: str
    before: Cell
    after: Cell
    change: str


def view(report: dict[str, Any]) -> dict[str, Any]:
    """Return everything the template shows, as plain texts, cells and finished pictures."""
    measurement = report["measurement"] or {}
    return {
        "verdict": verdict(report),
        "doubts": [f"{finding['words']} {finding['remedy']}" for finding in report.get("findings") or []],
        "original_in_memory": bool(measurement.get("original")) and measurement["original"].get("bytes") is None,
        "tiles": _tiles(measurement),
        "comparison": _comparison(report, measurement),
        "metric": titled(metric_in(report)),
        "unit": metric_in(report).unit,
        "steps": _steps(report["history"], metric_in(report)),
        "sentences": {
            next(iter(step["method"])): step["sentence"]
            for step in report["history"]
            if step["method"] and step.get("sentence")
        },
        "accuracy_chart": _accuracy_chart(report["history"], metric_in(report)),
        "size_chart": _size_chart(report["history"]),
        **_layers(report["history"]),
        "latency_charts": _latency_charts(measurement),
        "parity": _parity(report["parity"]),
        "environment": flat(report["environment"]),
        "recipe": yaml.safe_dump(report["recipe"], sort_keys=False, allow_unicode=True, width=80),
    }


def _tiles(measurement: dict[str, Any]) -> list[Row]:
    """Return the few figures that a hurried reader looks at."""
    before, after = measurement.get("original") or {}, measurement.get("compressed") or {}
    tiles = [
        Row("File size", "", Cell(size(before.get("bytes"))), Cell(size(after.get("bytes"))),
            change(before.get("bytes"), after.get("bytes"), "smaller", "bigger")),
    ]  # fmt: skip
    for old, new in paired_latency(measurement)[:1]:
        row = old or new or {}
        old_ms, new_ms = (old or {}).get("median_ms"), (new or {}).get("median_ms")
        words = change(old_ms, new_ms, "faster", "slower", same=SAME_SPEED)
        tiles.append(
            Row(f"Speed at batch {row['batch']}", "", Cell(milliseconds(old_ms)), Cell(milliseconds(new_ms)), words)
        )
    accuracy, metric = accuracy_change(measurement), metric_in(measurement)
    words = NOT_MEASURED
    if accuracy:
        words = score_change(metric, accuracy.value) if accuracy.clear else "no measurable change"
    was, now = (Cell(score_text(metric, side.get("accuracy"))) for side in (before, after))
    tiles.append(Row(titled(metric), "", was, now, words))
    return tiles


def _comparison(report: dict[str, Any], measurement: dict[str, Any]) -> list[Row]:
    before, after = measurement.get("original") or {}, measurement.get("compressed") or {}
    first, last = report["history"][0]["size"], report["history"][-1]["size"]

    metric = metric_in(measurement)

    def accuracy(side: dict[str, Any]) -> Cell:
        ends = score_interval(metric, side.get("accuracy_low"), side.get("accuracy_high"))
        return Cell(score_text(metric, side.get("accuracy")), ends)

    def stored(side: dict[str, Any], key: str) -> Cell:
        value = side.get(key)
        return Cell(size(value), f"{exact(value)} bytes" if value is not None and value >= 1000 else "")

    difference = accuracy_change(measurement)
    examples = after.get("examples")
    split = measurement.get("split") or "an unnamed split"
    rows = [
        Row(titled(metric), ", ".join(filter(None, [
                "top-1" if metric.task == "classification" else "",
                f"{exact(examples)} examples of {split}" if examples is not None else split,
            ])),
            accuracy(before), accuracy(after), difference.words if difference else NOT_MEASURED),
        Row("File", "bytes on disk", stored(before, "bytes"), stored(after, "bytes"),
            change(before.get("bytes"), after.get("bytes"), "smaller", "bigger")),
        Row("File after zstd", "as packed to send", stored(before, "bytes_zstd"), stored(after, "bytes_zstd"),
            change(before.get("bytes_zstd"), after.get("bytes_zstd"), "smaller", "bigger")),
        Row("Saved model", "tensors packed to the bit", stored(first, "bytes_packed"), stored(last, "bytes_packed"),
            change(first["bytes_packed"], last["bytes_packed"], "smaller", "bigger")),
    ]  # fmt: skip
    rows += _latency_rows(measurement) or [
        Row("Latency", "median of one call", Cell(NOT_MEASURED), Cell(NOT_MEASURED), NOT_MEASURED)
    ]
    rows.append(_memory_row(before, after))
    for name, detail, key in (
        ("Parameters", "stored values, counted", "parameters"),
        ("MACs", "multiply-accumulates per example, counted", "macs"),
        ("Effective MACs", "those whose weight is not zero, counted", "effective_macs"),
    ):
        old, new = first[key], last[key]
        words = change(old, new, "fewer", "more")
        rows.append(Row(name, detail, Cell(count(old), exact(old)), Cell(count(new), exact(new)), words))
    return rows


def _memory_row(before: dict[str, Any], after: dict[str, Any]) -> Row:
    def cell(side: dict[str, Any]) -> Cell:
        value, whole = side.get("peak_memory_mib"), side.get("peak_process_mib")
        detail = "" if whole is None else f"process {whole:,.1f} MiB"
        return Cell(NOT_MEASURED if value is None else f"{value:,.1f} MiB", detail)

    words = change(before.get("peak_memory_mib"), after.get("peak_memory_mib"), "less", "more")
    return Row("Peak memory", "added by loading and running the file", cell(before), cell(after), words)


def _latency_rows(measurement: dict[str, Any]) -> list[Row]:
    def cell(row: dict[str, Any] | None) -> Cell:
        if row is None:
            return Cell(NOT_MEASURED)
        runs = "" if row.get("runs") is None else f", {exact(row['runs'])} runs"
        return Cell(milliseconds(row.get("median_ms")), f"p95 {milliseconds(row.get('p95_ms'))}{runs}")

    speedups = {(item["batch"], item["threads"]): item for item in measurement.get("speedups") or []}
    rows = []
    for old, new in paired_latency(measurement):
        row = old or new or {}
        words = change((old or {}).get("median_ms"), (new or {}).get("median_ms"), "faster", "slower", same=SAME_SPEED)
        told = speedups.get((row["batch"], row["threads"]), {})
        ratio, paired = told.get("ratio"), told.get("paired")
        if ratio and paired and abs(ratio / paired - 1) > BUSY:
            words += f" ({paired:.1f}x the speed when compared round by round: the machine was busy)"
        detail = f"median of one call, {_threads(row)}"
        rows.append(Row(f"Latency, batch {row['batch']}", detail, cell(old), cell(new), words))
    return rows


def _threads(row: dict[str, Any]) -> str:
    if row["threads"] == 0:
        return "threads chosen by the runtime"
    return f"{row['threads']} thread{'s' * (row['threads'] != 1)}"


def _steps(history: list[dict[str, Any]], metric: Metric) -> list[dict[str, Any]]:
    rows = []
    for index, step in enumerate(history):
        name, options = next(iter(step["method"].items()), ("original", {}))
        options = options if isinstance(options, dict) else {"options": options}
        previous = history[index - 1] if index else None
        figures = step["size"]
        rows.append({
            "index": index,
            "name": name,
            "options": ", ".join(f"{key}: {value}" for key, value in options.items()),
            "accuracy": score_text(metric, step["accuracy"]),
            "change": score_change(metric, step["accuracy"] - previous["accuracy"]).split()[0] if previous else "",
            "bytes": size(figures["bytes"]),
            "packed": size(figures["bytes_packed"]),
            "macs": count(figures["macs"]),
            "effective": count(figures["effective_macs"]),
            "seconds": seconds(step["seconds"]),
            "notes": step["notes"],
        })  # fmt: skip
    return rows


def _accuracy_chart(history: list[dict[str, Any]], metric: Metric) -> Markup:
    shares = metric.unit == "%"
    scale = 100 if shares else 1 if metric.higher_is_better else -1
    return charts.line(
        "accuracy-chart",
        f"{titled(metric)} on the validation examples after each step",
        [scale * step["accuracy"] for step in history],
        [str(index) if index else "original" for index in range(len(history))],
        [f"{scale * step['accuracy']:{'.1f' if shares else '.4g'}}" for step in history],
        f" {metric.unit}".rstrip(),
    )


def _size_chart(history: list[dict[str, Any]]) -> Markup:
    groups = []
    for index, step in enumerate(history):
        raw, packed = step["size"]["bytes"], step["size"]["bytes_packed"]
        name = next(iter(step["method"]), "original")
        label = f"{index}  {name[:40]}" if index else "original"
        series = "after" if index else "before"
        groups.append((label, [Bar(series, raw, size(raw)), Bar("packed", packed, f"{size(packed)} packed")]))
    return charts.bars(
        "size-chart", "Bytes of the stored tensors after each step, raw and packed as a saved model", groups
    )


def _layers(history: list[dict[str, Any]]) -> dict[str, Any]:
    old = {layer["name"]: layer for layer in history[0]["size"]["layers"]}
    layers = history[-1]["size"]["layers"]
    shown = {id(layer) for layer in sorted(layers, key=lambda layer: -layer["bytes"])[:LAYERS_SHOWN]}
    top = max((layer["bytes"] for layer in [*layers, *old.values()]), default=1)
    rows = []
    for layer in layers:
        if id(layer) not in shown:
            continue
        before = old.get(layer["name"])
        was = before["bytes"] if before else None
        title = f"{size(layer['bytes'])}, original {size(was)}" if before else f"{size(layer['bytes'])}, new layer"
        rows.append({
            **layer,
            "name": _short(layer["name"]),
            "shape": " × ".join(str(axis) for axis in layer["shape"]),
            "was": size(was) if before else "new layer",
            "now": size(layer["bytes"]),
            "packed": size(layer["bytes_packed"]),
            "meter": charts.meter(title, was, layer["bytes"], top),
            "sparsity": "0 %" if not layer["sparsity"] else f"{100 * layer['sparsity']:.1f} %",
            "macs": count(layer["macs"]),
        })  # fmt: skip
    gone = [name for name in old if name not in {layer["name"] for layer in layers}]
    return {
        "layers": rows,
        "layers_hidden": len(layers) - len(rows),
        "layers_gone": [_short(name) for name in gone[:GONE_SHOWN]],
        "layers_gone_more": max(len(gone) - GONE_SHOWN, 0),
    }


def _short(name: str) -> str:
    return name if len(name) <= 160 else f"{name[:159]}…"


def _latency_charts(measurement: dict[str, Any]) -> list[Markup]:
    """Return one chart per batch size, for one scale over all of them would hide the small ones."""
    batches: dict[int, list[tuple[str, list[Bar]]]] = {}
    for old, new in paired_latency(measurement):
        row = old or new or {}
        found = [
            Bar(series, side["median_ms"], milliseconds(side["median_ms"]), side.get("p95_ms"))
            for series, side in (("before", old), ("after", new))
            if side and side.get("median_ms") is not None
        ]
        if found:
            batches.setdefault(row["batch"], []).append((f"batch {row['batch']}, {_threads(row)}", found))
    return [
        charts.bars(f"latency-{batch}", f"Milliseconds per call at batch {batch}, median and 95th percentile", groups)
        for batch, groups in batches.items()
    ]


def _parity(parity: dict[str, Any] | None) -> dict[str, str] | None:
    if parity is None:
        return None
    expected = percent(PARITY_EXPECTED)
    doubt = (
        f"They should agree on {expected} or more. Cause: the runtime rounds sums and 8-bit values otherwise than the "
        "simulation, which shows where answers are nearly tied or a layer amplifies small errors. Harm: the accuracy "
        "that the steps show is not that of the file; the first table was measured on the file: trust that one. "
        "Remedy: measure on the processor that you ship to, and leave the layers that diagnose names out of Quantize "
        "(exclude)."
    )
    difference = parity.get("max_difference")
    return {
        "examples": exact(parity["examples"]),
        "agreement": percent(parity["agreement"]),
        "difference": NOT_MEASURED if difference is None else f"{difference:.3g}",
        "words": "They agree, as they should." if parity["agreement"] >= PARITY_EXPECTED else doubt,
    }


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested properties as one list of names and texts."""
    rows: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(item, dict):
            rows.update(flat(item, f"{name}, "))
        elif isinstance(item, list):
            rows[name] = ", ".join(str(entry) for entry in item) or "none"
        else:
            # By identity: 1 == True, and one core is not "yes".
            rows[name] = "unknown" if item is None else "yes" if item is True else "no" if item is False else str(item)
    return rows
