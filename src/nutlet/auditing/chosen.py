"""Attacks as a user asks for them, by name, with options in parentheses or as instances."""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nutlet.attacks import known_attacks
from nutlet.attacks.base import Attack
from nutlet.errors import ConfigError, nearest, printable
from nutlet.methods.base import check_type

__all__ = ["ALL", "Chosen", "chosen_attacks", "split_attacks"]

ALL = "all"
"""Asks for every attack, the costly ones too."""
_LONGEST = 10_000
"""Characters of the text that names attacks."""
_EXPECTED = "expected names with commas between them and options in parentheses, as Knockoff,RMIA(models=16)"


@dataclass(frozen=True)
class Chosen:
    """An attack that was asked for.

    Args:
        attack: with its options.
        given: names of the options that were given; the audit settles others where it can.
    """

    attack: Attack
    given: frozenset[str] = frozenset()


def split_attacks(text: str) -> tuple[str, ...]:
    """Split a list as the command line takes it at the commas between attacks.

    Raises:
        ConfigError: it is no such list.

    >>> split_attacks("Knockoff,RMIA(models=16, a=0.3)")
    ('Knockoff', 'RMIA(models=16, a=0.3)')
    """
    if not text.strip():
        return ()
    listed = _parsed(f"[{text}]")
    if not isinstance(listed, ast.List):
        raise ConfigError(f"found the attacks {printable(text)!r}; {_EXPECTED}")
    return tuple(ast.unparse(entry) for entry in listed.elts)


def chosen_attacks(asked: Iterable[str | Attack]) -> dict[str, Chosen]:
    """Return the attacks asked for by their names; ``all`` is not among them.

    Raises:
        ConfigError: there is no such attack or option (the nearest name is suggested), a value does not fit, or an
            attack is named twice.
    """
    found: dict[str, Chosen] = {}
    for entry in asked:
        if entry == ALL:
            continue
        one = _instance(entry) if isinstance(entry, Attack) else _named(entry)
        name = type(one.attack).__name__
        if name in found:
            raise ConfigError(f"{name} is asked for twice; expected each attack once: audit twice to compare options")
        found[name] = one
    return found


def _instance(attack: Attack) -> Chosen:
    """An instance says all of its options."""
    hints = typing.get_type_hints(type(attack))
    names = [option.name for option in dataclasses.fields(attack)]
    for name in names:
        check_type(type(attack).__name__, name, getattr(attack, name), hints[name])
    return Chosen(attack, frozenset(names))


def _named(text: Any) -> Chosen:
    """Read ``Name`` or ``Name(option=value)``; values are plain numbers, texts, True, False, None and lists of them."""
    node = _parsed(text)
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    if not isinstance(call.func, ast.Name) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ConfigError(f"found the attack {printable(text)!r}; {_EXPECTED}")
    name = call.func.id
    known = known_attacks()
    if name not in known:
        raise ConfigError(f"found the attack {printable(name)!r}, which does not exist; {nearest(name, known)}")
    kind = known[name]
    hints, accepted = typing.get_type_hints(kind), [option.name for option in dataclasses.fields(kind)]
    options: dict[str, Any] = {}
    for keyword in call.keywords:
        option = str(keyword.arg)
        if option not in accepted:
            hint = nearest(option, accepted) if accepted else "it has none"
            raise ConfigError(f"{name} has no option {printable(option)!r}; {hint}")
        try:
            value = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise ConfigError(
                f"{name}.{option} is {printable(ast.unparse(keyword.value))}; expected a plain value, as 16, 0.5, "
                "True, None or 'text'"
            ) from None
        options[option] = tuple(value) if isinstance(value, list) else value
        check_type(name, option, options[option], hints[option])
    try:
        return Chosen(kind(**options), frozenset(options))
    except TypeError as error:  # a required option, of an attack of another package
        raise ConfigError(f"{name} cannot be made: {error}; expected its options in parentheses") from error


def _parsed(text: Any) -> ast.expr:
    """Return the syntax tree of one expression; nothing of it is evaluated."""
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise ConfigError(f"found the attack {printable(repr(text))}; {_EXPECTED}")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ConfigError(f"found the attack {printable(text)!r}; {_EXPECTED}") from None
