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
    └── BudgetError      an attack asked for more answers than it may have

Each message says what was found, what was expected and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
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
]


class NutletError(Exception):
    """Base of all errors raised by nutlet; ``exit_code`` is what the command line returns."""

    exit_code = 1


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


class ComparisonError(NutletError):
    """What a step made does not answer as it has to, and no part of it could be left out to mend that."""

    exit_code = 10


def first_line(error: BaseException) -> str:
    r"""Return the first line of a message, at most 300 characters, or the name of the error where it has none.

    >>> first_line(ValueError("wrong\nand more")), first_line(ValueError())
    ('wrong', 'ValueError')
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


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
