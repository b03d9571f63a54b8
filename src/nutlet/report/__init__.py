"""One self-contained page from one ``report.json``."""

from nutlet.report.html import render, write_report
from nutlet.report.load import load_report
from nutlet.report.verdict import verdict

__all__ = ["load_report", "render", "verdict", "write_report"]
