"""Reference pages made from what the code says of itself: commands, methods, public names, the schema of a report.

Usage::

    python docs/generate.py            write the text anew between the markers of the pages
    python docs/generate.py --check    exit with 1 where a page is out of date

A page holds ``<!-- generated: NAME -->`` and ``<!-- end -->``; NAME is one of the functions in PARTS. The text stands
in the pages themselves, for GitHub shows no includes.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from docstrings import cell, inline, markdown, signature  # it lies beside this file

import nutlet
from nutlet.attacks import known_attacks
from nutlet.cli import app
from nutlet.methods import known_methods
from nutlet.methods.base import Method
from nutlet.options import Validated, options_of
from nutlet.report.load import schema

ROOT = Path(__file__).resolve().parents[1]
MARKED = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def render(text: str) -> str:
    """Return a page with what stands between its markers made anew."""
    # As no docstring looks from outside: no empty line too many, and none at the end of a line.
    made = {name: re.sub(r"\n{3,}", "\n\n", "\n".join(PARTS[name]())).strip() for _, name, *_ in MARKED.findall(text)}
    return MARKED.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n\n{found[4]}", text)


def pages() -> list[Path]:
    """Return the pages that hold such a part."""
    everything = sorted((ROOT / "docs").rglob("*.md"))
    return [page for page in everything if MARKED.search(page.read_text(encoding="utf-8"))]


def stale() -> dict[Path, str]:
    """Return the pages that are not what the code says, as they should be."""
    wanted = {page: render(page.read_text(encoding="utf-8")) for page in pages()}
    return {page: text for page, text in wanted.items() if page.read_text(encoding="utf-8") != text}


def ours() -> dict[str, type[Method]]:
    """Return our own methods; plugins that happen to be installed do not belong into these pages."""
    return {name: kind for name, kind in known_methods().items() if kind.__module__.startswith("nutlet.")}


def methods() -> Iterator[str]:
    """Yield a table: which method when."""
    yield "| method | when to pick it | fine-tuning after it helps |"
    yield "|---|---|---|"
    for name, kind in ours().items():
        yield f"| `{name}` | {cell(kind.use_when)} | {'yes' if kind.recoverable else 'not needed'} |"


def method_options() -> Iterator[str]:
    """Yield every method with its docstring and its options."""
    for name in ours():
        yield f"## {name}\n"
        yield from markdown(ours()[name].__doc__ or "", without=("Args",))
        yield from options(ours()[name])


def options(kind: type) -> Iterator[str]:
    """Yield a table of the options of a class: what each may be, its default, what it means."""
    if not options_of(kind):
        return
    meaning = meanings(kind)
    yield "| option | expected | default | meaning |"
    yield "|---|---|---|---|"
    for name, option in options_of(kind).items():
        default = "required" if option.required else f"`{option.default!r}`"
        yield f"| `{name}` | {cell(option.expected)} | {cell(default)} | {cell(meaning[name])} |"
    yield ""


def meanings(kind: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say under Args, in the writing of Markdown."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", inspect.cleandoc(base.__dict__.get("__doc__") or ""), re.M)
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.M):
            found[name] = inline(text)
    return found


def attacks() -> Iterator[str]:
    """Yield every attack: what it wants, what it needs, when it is picked, and where it is from."""
    for name, kind in known_attacks().items():
        if not kind.__module__.startswith("nutlet."):
            continue
        yield f"## {name}\n"
        yield from markdown(kind.__doc__ or "", without=("Args",))
        needs = ", ".join(f"`{need}`" for need in kind.needs) or "nothing"
        costly = "; only when asked for" if kind.costly else ""
        tasks = ", ".join(kind.tasks).replace("_", " ") or "every one"
        yield f"Goal: {kind.goal}. Tasks: {tasks}. Access: {kind.access}. Needs: {needs}. {kind.use_when}{costly}.\n"
        yield f"Source: {kind.source}.\n"
        yield from options(kind)


def commands() -> Iterator[str]:
    """Yield every command with its arguments and options."""
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        context = typer.Context(command, info_name=f"nutlet {name}")
        yield f"## nutlet {name}\n"
        yield f"{command.help}\n"
        yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
        yield "| | default | |"
        yield "|---|---|---|"
        for parameter in command.get_params(context):
            names = " ".join(f"`{text}`" for text in [*parameter.opts, *parameter.secondary_opts])
            if parameter.param_type_name == "argument":
                names = f"`{parameter.name.upper()}`"
            help_text = getattr(parameter, "help", None) or ""
            default = parameter.default
            shown = "required" if parameter.required else f"`{default}`"
            if default is None or default is False or default == "" or callable(default):
                shown = "required" if parameter.required else ""
            yield f"| {names} | {shown} | {cell(help_text)} |"
        yield ""


def public_names() -> Iterator[str]:
    """Yield every public name with its docstring, methods left out (they have a page)."""
    left_out = set(ours())
    for name in nutlet.__all__:
        if name in left_out:
            continue
        value = getattr(nutlet, name)
        optional = inspect.isclass(value) and issubclass(value, Validated)
        yield f"## {name}\n"
        if not optional and not (inspect.isclass(value) and issubclass(value, Exception)):
            yield f"```text\n{signature(name, value)}\n```\n"
        yield from markdown(value.__doc__ or "", without=("Args",) if optional else ())
        if optional:
            yield from options(value)
        if inspect.isclass(value):
            yield from members(name, value)


def members(name: str, kind: type) -> Iterator[str]:
    """Yield the public methods and properties that a class has of its own, with their docstrings."""
    for member, value in vars(kind).items():
        function = getattr(value, "__func__", value)
        if member.startswith("_") or not getattr(value, "__doc__", None):
            continue
        if inspect.isfunction(function):
            yield f"### {name}.{member}\n"
            yield f"```text\n{signature(member, function)}\n```\n"
        elif isinstance(value, (property, functools.cached_property)):
            yield f"### {name}.{member}\n"
        else:
            continue
        yield from markdown(value.__doc__)


def report_fields() -> Iterator[str]:
    """Yield a table of every field of report.json."""
    yield "| field | type | meaning |"
    yield "|---|---|---|"
    yield from fields(schema(), "")
    for name, rule in schema()["$defs"].items():
        yield f"\n**{name}**: {rule.get('description', '')}\n"
        yield "| field | type | meaning |"
        yield "|---|---|---|"
        yield from fields(rule, "")


def fields(rule: dict[str, Any], prefix: str) -> Iterator[str]:
    """Yield one row per field of an object; what another definition describes is named, not repeated."""
    for name, inner in rule.get("properties", {}).items():
        place = f"{prefix}{name}"
        kind, meaning = kind_of(inner), inner.get("description", "")
        needed = "" if name in rule.get("required", ()) else " (may be left out)"
        yield f"| `{place}` | {kind}{needed} | {cell(meaning)} |"
        yield from fields(inner, f"{place}.")
        yield from fields(inner.get("items", {}), f"{place}[].")


def kind_of(rule: dict[str, Any]) -> str:
    """Return the type of a field in words."""
    if "$ref" in rule:
        return f"**{rule['$ref'].rpartition('/')[2]}**"
    kinds = rule.get("type", "any")
    text = kinds if isinstance(kinds, str) else " or ".join(kinds)
    if "items" in rule:
        text += f" of {kind_of(rule['items'])}"
    return text


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "methods": methods,
    "options": method_options,
    "attacks": attacks,
    "cli": commands,
    "api": public_names,
    "report": report_fields,
}
"""What a marker may name."""


if __name__ == "__main__":
    old = stale()
    if "--check" in sys.argv[1:] and old:
        sys.exit(f"out of date, run python docs/generate.py: {', '.join(str(page.relative_to(ROOT)) for page in old)}")
    for page, text in old.items():
        page.write_text(text, encoding="utf-8")
        print(f"rewrote {page.relative_to(ROOT)}")
