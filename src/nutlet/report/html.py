"""The report as one page: a file with no script, no fonts and no requests, for a browser, a mail or a printer."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nutlet.report.figures import clean, percent
from nutlet.report.load import check
from nutlet.report.view import view
from nutlet.storage import write_json, write_text

__all__ = ["render", "write_report"]


def render(report: dict[str, Any]) -> str:
    """Return the report as one self-contained HTML page.

    Names in a report come from other people's models and files: everything is escaped, and characters that
    cannot be seen are replaced.

    Args:
        report: what schema.json describes, as plain data.

    Raises:
        StorageError: the report lacks a field or a field has the wrong type; the message names it.
    """
    check(report)
    safe = clean(report)
    return _environment().get_template("template.html").render(report=safe, percent=percent, **view(safe)) + "\n"


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` into ``folder``, each aside and renamed.

    Raises:
        StorageError: the report is not what schema.json describes, or the folder cannot be written.
    """
    page = render(report)
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", page)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
