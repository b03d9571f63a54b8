"""The section of a report that says which step and which layer lost accuracy, worked out before it is laid out."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from nutlet.measurement.results import Metric
from nutlet.report import charts
from nutlet.report.audit_charts import Chart
from nutlet.report.charts import Bar
from nutlet.report.metrics import metric_in, score_change, score_text, titled

__all__ = ["diagnosed"]

BARS = 12
ROWS = 40
DOTS = 120
"""Results along the depth that are drawn; of more, every second or third."""
LABELS = 6
"""Of these, how many have their number written."""
FARTHEST = 10.0
"""Relative error above which the curve is cut: a scale to a million shows nothing of the way there."""


def diagnosed(diagnosis: dict[str, Any], file: str = "report.json") -> dict[str, Any]:
    """Return what the section shows.

    Args:
        diagnosis: what ``diagnosis`` in schema.json describes.
        file: name of the file that it stands in as data.
    """
    metric = metric_in(diagnosis, "metric")
    return {
        "file": file,
        "metric": titled(metric),
        "unit": "percentage points" if metric.unit == "%" else metric.unit,
        "step": f"{diagnosis['step']}, {diagnosis['method']}",
        "steps": _recovery(diagnosis["accuracies"], metric),
        "words": [_marked(sentence) for sentence in diagnosis["words"]],
        "notes": diagnosis["notes"],
        "examples": f"{diagnosis['examples']:,}",
        "charts": [chart for chart in (_sensitivity(diagnosis), _depth(diagnosis["sites"])) if chart],
        "rows": [
            {
                "name": layer["name"],
                "accuracy": score_text(metric, layer["accuracy"]),
                "change": score_change(metric, layer["accuracy"] - diagnosis["before"]).split()[0],
                "loss": f"{layer['loss']:.3f}",
                "more": f"{layer['loss'] - diagnosis['loss']:+.3f}",
            }
            for layer in diagnosis["layers"][:ROWS]
        ],
        "hidden": max(len(diagnosis["layers"]) - ROWS, 0),
    }


def _recovery(steps: list[dict[str, Any]], metric: Metric) -> list[dict[str, Any]]:
    """Return what each step lost and won back; nothing where no training won anything back, or nobody counted."""
    if not any(step.get("won_back") for step in steps):
        return []
    rows = []
    for index, step in enumerate(steps):
        lost, back = step.get("lost", 0.0), step.get("won_back", 0.0)
        if lost:
            # The unit stands above: on a phone there is no room for it in each cell.
            told = (metric.amount(amount).split()[0] for amount in (lost, back, lost - back))
            figures = dict(zip(("lost", "won_back", "left"), told, strict=True))
            rows.append(
                {"index": index, "name": step["name"], "accuracy": score_text(metric, step["accuracy"]), **figures}
            )
    return rows


def _marked(sentence: str) -> Markup:
    """Set what stands between backticks as code; everything is escaped."""
    parts = sentence.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else Markup("{}").format(part)
        for index, part in enumerate(parts)
    )


def _sensitivity(diagnosis: dict[str, Any]) -> Chart | None:
    worst = diagnosis["layers"][:BARS]
    if not worst:
        return None
    metric, groups = metric_in(diagnosis, "metric"), []
    scale = 100 if metric.unit == "%" else 1
    for layer in worst:
        lost = diagnosis["before"] - layer["accuracy"]
        groups.append((_short(layer["name"]), [Bar("after", max(scale * lost, 0.0), metric.amount(lost))]))
    title = f"{titled(metric)} lost by each layer's change alone"
    more = f" The worst {BARS} of {len(diagnosis['layers'])}." if len(diagnosis["layers"]) > BARS else ""
    note = f"Each layer's change put alone onto the model before the step, on {diagnosis['examples']:,} examples.{more}"
    return Chart(
        title,
        (("after", "percentage points lost" if scale == 100 else metric.unit or metric.name),),
        note,
        charts.bars("diagnosis-layers", title, groups),
    )


def _depth(sites: list[dict[str, Any]]) -> Chart | None:
    if len(sites) < 2:
        return None
    kept = sites[:: -(-len(sites) // DOTS)]
    values = [100 * min(site["error"], FARTHEST) for site in kept]
    title = "How far results inside the model moved, along its depth"
    said = range(0, len(kept), -(-len(kept) // LABELS))  # more of them would overlap
    numbers = [str(k) if k in said else "" for k in range(len(kept))]
    labels = [f"{value:.0f}" if k in said else "" for k, value in enumerate(values)]
    picture = charts.line("diagnosis-depth", title, values, numbers, labels, " %")
    jump = max(range(1, len(kept)), key=lambda k: values[k] - values[k - 1])
    note = f"Error relative to what the result was, from the input on the left. It grows most at {kept[jump]['site']}."
    return Chart(title, (("after", "relative L2 error"),), note, picture)


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"…{name[-39:]}"
