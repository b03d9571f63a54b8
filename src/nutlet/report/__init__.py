"""One self-contained page from one ``report.json`` or ``audit.json``."""

from nutlet.report.exposure import exposure, summed_up
from nutlet.report.html import rebuilt, render, render_audit, write_audit, write_diagnosis, write_report
from nutlet.report.load import load_audit, load_report
from nutlet.report.standards import findings
from nutlet.report.verdict import verdict

__all__ = [
    "exposure",
    "findings",
    "load_audit",
    "load_report",
    "rebuilt",
    "render",
    "render_audit",
    "summed_up",
    "verdict",
    "write_audit",
    "write_diagnosis",
    "write_report",
]
