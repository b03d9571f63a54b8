"""Reference pages made from what the code says of itself: commands, methods, public names, the schema of a report."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import nutlet
from nutlet.attacks import known_attacks
from nutlet.cli import app
from nutlet.methods import known_methods
from nutlet.methods.base import Method
from nutlet.report.load import schema


def write(folder: Path) -> None:
    """Write every generated page into ``folder``; pages that did not change keep their time."""
    folder.mkdir(exist_ok=True)
    for name, lines in {
        "methods.md": methods(),
        "options.md": method_options(),
        "attacks.md": attacks(),
        "cli.md": commands(),
        "api.md": public_names(),
        "report.md": report_fields(),
    }.items():
        text = "\n".join(lines) + "\n"
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


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
        yield f"```{{eval-rst}}\n.. autoclass:: nutlet.{name}\n```\n"
        yield "| option | type | default | meaning |"
        yield "|---|---|---|---|"
        meaning = meanings(ours()[name])
        for option in dataclasses.fields(ours()[name]):
            default = "required" if option.default is dataclasses.MISSING else f"`{option.default!r}`"
            yield f"| `{option.name}` | `{cell(str(option.type))}` | {cell(default)} | {cell(meaning[option.name])} |"
        yield ""


def meanings(kind: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say under Args, in the writing of Markdown."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", inspect.cleandoc(base.__dict__.get("__doc__") or ""), re.M)
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.M):
            found[name] = text.replace("``", "`")
    return found


def attacks() -> Iterator[str]:
    """Yield every attack: what it wants, what it needs, when it is picked, and where it is from."""
    for name, kind in known_attacks().items():
        if not kind.__module__.startswith("nutlet."):
            continue
        yield f"## {name}\n"
        yield f"```{{eval-rst}}\n.. autoclass:: {kind.__module__}.{name}\n   :no-members:\n```\n"
        needs = ", ".join(f"`{need}`" for need in kind.needs) or "nothing"
        costly = "; only when asked for" if kind.costly else ""
        yield f"Goal: {kind.goal}. Access: {kind.access}. Needs: {needs}. {kind.use_when}{costly}."
        yield f"Source: {kind.source}.\n"


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
        kind = "autofunction" if inspect.isfunction(value) else "autoclass"
        if inspect.isclass(value) and issubclass(value, Exception):
            kind = "autoexception"
        yield f"## {name}\n"
        yield "```{eval-rst}"
        yield f".. {kind}:: nutlet.{name}"
        if kind == "autoclass":
            yield "   :members:"
        yield "```\n"


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


def cell(text: str) -> str:
    """Make text fit for a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    write(Path(__file__).parent / "generated")
