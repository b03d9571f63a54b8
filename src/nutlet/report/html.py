"""A report or an audit as one page: no script, no fonts and no requests, for a browser, a mail or a printer."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nutlet.report.audit_view import audit_view, summary
from nutlet.report.diagnosed import diagnosed
from nutlet.report.figures import clean, percent
from nutlet.report.load import check, check_audit, check_diagnosis, load_audit, load_diagnosis, load_report
from nutlet.report.verdict import verdict
from nutlet.report.view import view
from nutlet.storage import write_json, write_text

__all__ = ["rebuilt", "render", "render_audit", "render_diagnosis", "write_audit", "write_diagnosis", "write_report"]


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
    audit, diagnosis = safe.get("audit"), safe.get("diagnosis")
    page = _environment().get_template("template.html")
    parts = {"audit": audit and summary(audit), "diagnosis": diagnosis and diagnosed(diagnosis)}
    return page.render(report=safe, percent=percent, **parts, **view(safe)) + "\n"


def render_audit(audit: dict[str, Any]) -> str:
    """Return an audit as one self-contained HTML page in plain language, with the ids of standards.

    Args:
        audit: what ``audit`` in schema.json describes, as plain data.

    Raises:
        StorageError: the audit lacks a field or a field has the wrong type; the message names it.
    """
    check_audit(audit)
    safe = clean(audit)
    return _environment().get_template("audit.html").render(audit=safe, **audit_view(safe)) + "\n"


def render_diagnosis(diagnosis: dict[str, Any]) -> str:
    """Return a diagnosis as one self-contained HTML page, for where no report lies beside it.

    Args:
        diagnosis: what ``diagnosis`` in schema.json describes, as plain data.

    Raises:
        StorageError: the diagnosis lacks a field or a field has the wrong type; the message names it.
    """
    check_diagnosis(diagnosis)
    shown = diagnosed(clean(diagnosis), "diagnosis.json")
    return _environment().get_template("diagnosis.html").render(diagnosis=shown) + "\n"


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` into ``folder``, each aside and renamed.

    Raises:
        StorageError: the report is not what schema.json describes, or the folder cannot be written.
    """
    page = render(report)
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", page)


def write_audit(audit: dict[str, Any], folder: Path) -> None:
    """Write ``audit.json`` and ``audit.html`` into ``folder``, and put the audit into a report that lies there.

    Raises:
        StorageError: the audit is not what schema.json describes, the folder cannot be written, or ``report.json``
            is no report; the audit itself is written then.
    """
    page = render_audit(audit)
    write_json(folder / "audit.json", audit)
    write_text(folder / "audit.html", page)
    if (folder / "report.json").exists():
        write_report({**load_report(folder / "report.json"), "audit": audit}, folder)


def write_diagnosis(diagnosis: dict[str, Any], folder: Path) -> None:
    """Write ``diagnosis.json`` into ``folder``, and put the diagnosis into a report that lies there, or on a page.

    Raises:
        StorageError: the diagnosis is not what schema.json describes, the folder cannot be written, or ``report.json``
            is no report; the diagnosis itself is written then.
    """
    check_diagnosis(diagnosis)
    write_json(folder / "diagnosis.json", diagnosis)
    if (folder / "report.json").exists():
        write_report({**load_report(folder / "report.json"), "diagnosis": diagnosis}, folder)
    else:
        write_text(folder / "diagnosis.html", render_diagnosis(diagnosis))


def rebuilt(source: Path) -> tuple[dict[str, Any], str, tuple[Path, ...]]:
    """Write the pages of a folder anew from the data that lie in it.

    Args:
        source: a folder with ``report.json``, ``audit.json`` or ``diagnosis.json``, or one of these files. A diagnosis
            is a part of the report, and has a page of its own only where there is none.

    Returns:
        The data of the first of these that is there; its verdict in a sentence; the pages.

    Raises:
        StorageError: there is none, one is not what schema.json describes, or the page cannot be written.
    """
    paths = [source]
    if source.is_dir():
        there = [source / name for name in ("report.json", "audit.json", "diagnosis.json") if (source / name).exists()]
        alone = [path for path in there if path.name != "diagnosis.json" or there[0].name != "report.json"]
        # Where there is none, the error of reading names the file that was looked for.
        paths = alone or [source / "report.json"]
    made = [_page(path) for path in paths]
    for path, (_, page, _) in zip(paths, made, strict=True):
        write_text(path.with_suffix(".html"), page)
    content, _, sentence = made[0]
    return content, sentence, tuple(path.with_suffix(".html") for path in paths)


def _page(path: Path) -> tuple[dict[str, Any], str, str]:
    """Return the data in a file, their page, and what it comes to in a sentence."""
    if path.name == "audit.json":
        content = load_audit(path)
        return content, render_audit(content), clean(content)["sentence"]
    if path.name == "diagnosis.json":
        content = load_diagnosis(path)
        return content, render_diagnosis(content), " ".join(clean(content)["words"])
    content = load_report(path)
    return content, render(content), verdict(content)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
