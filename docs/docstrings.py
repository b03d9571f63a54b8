"""Docstrings in the writing of Markdown, as GitHub shows it: no directive, no role of Sphinx is left."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")
MATH = re.compile(r":math:`([^`]*)`")
CODE = re.compile(r"(`[^`]*`|\$[^$]*\$)")
RULER = re.compile(r"^=+(?: +=+)+$")
SECTION = re.compile(r"^(Args|Returns|Yields|Raises):$")
NAMED = re.compile(r"^ {4}([\w, ]+): (.*)")
PLAIN = (bool, int, float, str, tuple, type(None))
LONGEST = 60
"""Characters of a default in a signature; a longer one is left out."""


def markdown(doc: str, *, without: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the lines of a docstring: prose, its sections as lists, tables, formulas and examples.

    Args:
        doc: as it stands in the code.
        without: sections that are left out, as ``Args``.
    """
    for block in blocks(inspect.cleandoc(doc).splitlines()):
        first = block[0]
        if section := SECTION.match(first):
            if section[1] not in without:
                yield f"**{section[1]}**\n"
                yield from entries(block[1:])
                yield ""
        elif first.startswith(">>>"):
            # Comments to doctest are for the tests.
            yield from ("```pycon", *(re.sub(r"  # doctest:.*", "", line) for line in block), "```\n")
        elif first.startswith(".. math::"):
            lines = [first.removeprefix(".. math::").strip(), *(line.strip() for line in block[1:])]
            yield from ("```math", *filter(None, lines), "```\n")
        elif first.startswith("    "):
            yield from ("```text", *inspect.cleandoc("\n".join(block)).splitlines(), "```\n")
        elif RULER.match(first):
            yield from table(block)
            yield ""
        else:
            yield from (inline(re.sub("::$", ":", line)) for line in block)
            yield ""


def blocks(lines: list[str]) -> Iterator[list[str]]:
    """Yield what stands between empty lines; a section or a formula holds what is indented below it."""
    block: list[str] = []
    for line in lines:
        inside = bool(block) and line.startswith("    ") and (SECTION.match(block[0]) or block[0].startswith(".. "))
        if block and (SECTION.match(line) or (block[-1] == "" and line and not inside)):
            yield trimmed(block)
            block = []
        if line or block:
            block.append(line)
    if block:
        yield trimmed(block)


def trimmed(block: list[str]) -> list[str]:
    """Leave out empty lines at the end."""
    while block[-1] == "":
        block = block[:-1]
    return block


def entries(lines: list[str]) -> Iterator[str]:
    """Yield a section as a list, one item per name; one without names as prose."""
    for line in filter(None, lines):
        if named := NAMED.match(line):
            names = ", ".join(f"`{name.strip()}`" for name in named[1].split(","))
            yield f"- {names}: {inline(named[2])}"
        else:
            yield f"  {inline(line.strip())}" if line.startswith("     ") else inline(line.strip())


def table(lines: list[str]) -> Iterator[str]:
    """Yield a simple table; a row whose first cell is empty goes on with the one before."""
    starts = [found.start() for found in re.finditer(r"=+", lines[0])]
    rows: list[list[str]] = []
    rulers = 0
    for line in lines:
        if RULER.match(line):
            rulers += 1
            continue
        ends = [*starts[1:], len(line) + 1]
        cells = [line[start:end].strip() for start, end in zip(starts, ends, strict=True)]
        if cells[0] or not rows:
            rows.append(cells)
        else:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
    head = rows.pop(0) if rulers > 2 else [""] * len(starts)
    for row in [head, ["---"] * len(starts), *rows]:
        yield f"| {' | '.join(cell(inline(text)) for text in row)} |"


def cell(text: str) -> str:
    """Make text fit for a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def inline(text: str) -> str:
    """Turn roles and literals into code, and keep a browser from reading tags."""
    text = ROLE.sub(r"`\1`", MATH.sub(r"$\1$", text)).replace("``", "`")
    parts = CODE.split(text)
    return "".join(part if k % 2 else part.replace("<", "&lt;") for k, part in enumerate(parts))


def signature(name: str, function: Any) -> str:
    """Return how something is called: its parameters with types and defaults, and what it returns."""
    found, parts, starred = inspect.signature(function), [], False
    for parameter in found.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
        starred |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        sign = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        text = f"{sign}{parameter.name}{typed(': ', parameter.annotation)}"
        if parameter.default is not parameter.empty:
            default = repr(parameter.default) if isinstance(parameter.default, PLAIN) else ""
            text += f" = {default if 0 < len(default) <= LONGEST else '...'}"
        parts.append(text)
    back = "" if inspect.isclass(function) else typed(" -> ", found.return_annotation)
    line = f"{name}({', '.join(parts)}){back}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(parts) + f",\n){back}"


def typed(before: str, annotation: Any) -> str:
    """Return an annotation as it is written; nothing where there is none."""
    if annotation is inspect.Signature.empty:
        return ""
    return f"{before}{annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)}"
