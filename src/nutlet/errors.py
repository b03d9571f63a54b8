"""Every error nutlet raises on purpose.

::

    NutletError
    ├── ConfigError      a recipe, a method or an option is wrong
    ├── DataError        the data are of the wrong shape, dtype, range or number
    ├── ModelError       the model cannot be loaded, or no method can work on it
    ├── ExportError      the file could not be written as a runtime would read it
    ├── StorageError     a file could not be written or is not what it claims to be
    ├── MissingExtra     an optional package is not installed
    ├── ComparisonError  a step did something else to the model than it says
    ├── OracleError      a victim does not answer, or not as it promised
    ├── BudgetError      an attack asked for more answers than it may have
    └── AttackFault      the code of an attack failed; the rest of the audit is done and written

Each message says what was found, what was expected and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AttackFault",
    "BudgetError",
    "ComparisonError",
    "ConfigError",
    "DataError",
    "ExportError",
    "MissingExtra",
    "ModelError",
    "NutletError",
    "OracleError",
    "StorageError",
    "first_line",
    "nearest",
    "printable",
    "shown",
]

_LONGEST = 8_000
"""Characters of a whole message; what is quoted from a file may be of any length."""


class NutletError(Exception):
    """Base of all errors raised by nutlet; ``exit_code`` is what the command line returns.

    Messages quote names out of other people's files: control characters in them are made visible, see
    :func:`printable`.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, _LONGEST))


class ConfigError(NutletError):
    """A recipe, a method or an option is wrong."""

    exit_code = 2


class DataError(NutletError):
    """The data are of the wrong shape, dtype, range or number."""

    exit_code = 3


class ModelError(NutletError):
    """The model cannot be loaded, or no method can work on it."""

    exit_code = 4


class ExportError(NutletError):
    """The file could not be written as a runtime would read it."""

    exit_code = 5


class StorageError(NutletError):
    """A file could not be written, or is not what it claims to be."""

    exit_code = 6


class MissingExtra(NutletError):
    """An optional package is not installed; the message names the extra that brings it."""

    exit_code = 7

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'nutlet[{extra}]'"
        )


class OracleError(NutletError):
    """A victim does not answer, or answers something else than it promised."""

    exit_code = 8


class BudgetError(NutletError):
    """An attack asked for more answers than it may have."""

    exit_code = 9


class AttackFault(NutletError):
    """The code of an attack failed in an audit, which went on without it and is written."""

    exit_code = 10


class ComparisonError(NutletError):
    """What a step made does not answer as it has to, and no part of it could be left out to mend that."""

    exit_code = 11


def first_line(error: BaseException) -> str:
    r"""Return the first line of a message, at most 300 characters, or the name of the error where it has none.

    >>> first_line(ValueError("wrong\nand more")), first_line(ValueError())
    ('wrong', 'ValueError')
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0], 300)


def printable(text: str, limit: int = 300) -> str:
    r"""Return at most ``limit`` characters of a text from elsewhere, safe to show in a terminal and on a page.

    What a terminal would obey and what turns the direction of writing is written as an escape; line breaks and tabs
    stay.

    >>> printable("a\x1b[2Jb\u202e"), printable("abcdef", 4)
    ('a\\x1b[2Jb\\u202e', 'abc…')
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelt name: the nearest known one, or all of them.

    >>> nearest("PruneWeigths", ["PruneWeights", "Quantize"])
    "did you mean 'PruneWeights'?"
    >>> nearest("foo", ["b", "a"])
    'known: a, b'
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def shown(value: object, most: int = 80) -> str:
    """Return how ``value`` is written in Python, cut: what came from a file may be long.

    >>> shown("ab"), shown(list(range(100)), most=12)
    ("'ab'", '[0, 1, 2, 3…')
    """
    # Of long text no more is quoted than can be shown.
    text = repr(value[: most + 1] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= most else text[: most - 1] + "…"
