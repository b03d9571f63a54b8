"""Which figures of an audit go into its two kinds of picture, and what is said above them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from nutlet.report import curves
from nutlet.report.audited import in_order, names
from nutlet.report.figures import percent

__all__ = ["Chart", "extraction_chart", "roc_chart"]


@dataclass(frozen=True)
class Chart:
    """A picture and what stands above it.

    Args:
        title: one line.
        legend: CSS class of a colour or a kind of line, and what it stands for.
        note: how to read it.
        picture: the SVG.
    """

    title: str
    legend: tuple[tuple[str, str], ...]
    note: str
    picture: Markup


def extraction_chart(audit: dict[str, Any], attack: dict[str, Any], index: int) -> Chart:
    """Return agreement by queries for an attack that made copies.

    Args:
        audit: the audit that it belongs to.
        attack: one with a curve for one file at least.
        index: tells the pictures of a page apart.
    """
    copies, keys, chance = [], [], None
    for role, victim in in_order(audit, attack):
        points = sorted(victim.get("curve") or [], key=lambda point: point["queries"])
        if not points:
            continue
        copies.append(
            curves.Copy(
                role,
                [point["queries"] for point in points],
                [
                    (point["agreement"]["value"], point["agreement"]["low"], point["agreement"]["high"])
                    for point in points
                ],
                [(point.get("baseline_agreement") or {}).get("value") for point in points],
            )
        )
        keys.append((role, f"{names(audit)[role]} {percent(points[-1]['agreement']['value'])}"))
        # A guess does about as well on both; the file that ships comes last and counts.
        chance = points[-1].get("chance_agreement")
    if any(level is not None for copy in copies for level in copy.baseline):
        keys.append(("dashed", "the thief without a query"))
    if chance is not None:
        keys.append(("dotted", f"guessing {percent(chance)}"))
    banded = any(low is not None for copy in copies for _, low, _ in copy.agreement)
    note = f"Queries on a logarithmic scale{'; the band is the 95 % interval' * banded}."
    spoken = f"Agreement of the copy with the file by number of queries, {attack['name']}"
    picture = curves.extraction(f"extraction-{index}", spoken, copies, chance)
    return Chart(f"{attack['name']}: agreement of the copy by queries", tuple(keys), note, picture)


def roc_chart(audit: dict[str, Any], attack: dict[str, Any], index: int) -> Chart | None:
    """Return the ROC curves of a membership attack, or None where it has none."""
    lines, keys = [], []
    for role, victim in in_order(audit, attack):
        if victim.get("roc"):
            lines.append(curves.Roc(role, list(zip(victim["roc"]["fpr"], victim["roc"]["tpr"], strict=False))))
            auc = f", AUC {victim['auc']['value']:.3f}" if victim.get("auc") else ""
            keys.append((role, f"{names(audit)[role]}{auc}"))
    if not lines:
        return None
    smallest = (audit["protocol"]["members"] or {}).get("smallest_fpr")
    picture = curves.roc(f"roc-{index}", f"ROC curve on logarithmic axes, {attack['name']}", lines, smallest)
    note = "Both scales are logarithmic; the further above the dots on the left, the worse."
    if smallest is not None and smallest > curves.LEAST:
        note += " Of the covered part nothing can be said: there are too few candidates."
    return Chart(f"{attack['name']}: members found (upwards)", (*keys, ("dotted", "guessing")), note, picture)
