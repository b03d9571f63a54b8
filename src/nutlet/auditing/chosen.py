"""Attacks as a user asks for them: by name, with options in parentheses, in a YAML file, or as instances."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nutlet.attacks import attack_from_dict
from nutlet.attacks.base import Attack
from nutlet.errors import ConfigError, printable, shown
from nutlet.reading import load_yaml

__all__ = ["ALL", "asked_for", "load_attacks", "read_attacks"]

ALL = "all"
"""Asks for every attack, the costly ones too."""
_LONGEST = 10_000
"""Characters of the text that names attacks."""
_EXPECTED = "expected names with commas between them and options in parentheses, as Knockoff,RMIA(models=16)"
_IN_FILE = "`attacks:` with a list of names, or of names with options, as `RMIA: {models: 16}`"


def read_attacks(text: str) -> tuple[str | Attack, ...]:
    """Return the attacks that the command line asks for: a list of names with options, or the path of a YAML file.

    Raises:
        ConfigError: it is no such list or file, or names what does not exist.

    >>> read_attacks("Knockoff,RMIA(models=16, a=0.3)")
    (Knockoff(), RMIA(models=16, mode='online', a=0.3, gamma=1.0))
    """
    if text.strip().endswith((".yaml", ".yml")):
        return load_attacks(text.strip())
    if not text.strip():
        return ()
    listed = _parsed(f"[{text}]")
    if not isinstance(listed, ast.List):
        raise ConfigError(f"found the attacks {printable(text)!r}; {_EXPECTED}")
    return tuple(_called(entry) for entry in listed.elts)


def load_attacks(path: Path | str) -> tuple[str | Attack, ...]:
    """Read a YAML file of attacks: a list, alone or under ``attacks``, of names or of ``Name: {option: value}``.

    Raises:
        ConfigError: the file is missing, is not YAML, or names an unknown attack or option.
    """
    content = load_yaml(Path(path), "the attacks", _IN_FILE)
    if isinstance(content, dict) and list(content) == ["attacks"]:
        content = content["attacks"]
    if not isinstance(content, list) or not content:
        raise ConfigError(f"{path} holds {shown(content)}; expected {_IN_FILE}")
    return tuple(entry if entry == ALL else attack_from_dict(entry) for entry in content)


def asked_for(entries: Iterable[str | Attack]) -> dict[str, Attack]:
    """Return the attacks asked for by their names; ``all`` is not among them.

    Raises:
        ConfigError: there is no such attack or option (the nearest name is suggested), a value does not fit, or an
            attack is named twice.
    """
    found: dict[str, Attack] = {}
    for entry in entries:
        attack = entry if isinstance(entry, Attack) else _called(_parsed(entry))
        if isinstance(attack, str):
            continue
        name = type(attack).__name__
        if name in found:
            raise ConfigError(f"{name} is asked for twice; expected each attack once: audit twice to compare options")
        found[name] = attack
    return found


def _called(node: ast.expr) -> str | Attack:
    """Read ``all``, ``Name`` or ``Name(option=value)``; values are plain numbers, texts, True, False, None, lists."""
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    if not isinstance(call.func, ast.Name) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ConfigError(f"found the attack {printable(ast.unparse(node))!r}; {_EXPECTED}")
    name = call.func.id
    if name == ALL and not call.keywords:
        return ALL
    return attack_from_dict({name: {str(keyword.arg): _value(name, keyword) for keyword in call.keywords}})


def _value(name: str, keyword: ast.keyword) -> Any:
    try:
        return ast.literal_eval(keyword.value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ConfigError(
            f"{name}.{keyword.arg} is {printable(ast.unparse(keyword.value))}; expected a plain value, as 16, 0.5, "
            "True, None or 'text'"
        ) from None


def _parsed(text: Any) -> ast.expr:
    """Return the syntax tree of one expression; nothing of it is evaluated."""
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise ConfigError(f"found the attack {shown(text, most=300)}; {_EXPECTED}")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ConfigError(f"found the attack {printable(text)!r}; {_EXPECTED}") from None
