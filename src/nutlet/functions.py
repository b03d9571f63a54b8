"""Functions as options: kept in recipes and saved models by name, and found again among those that were given here.

A name that a file holds is never imported: that would run code which whoever wrote the file has chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nutlet.errors import ConfigError

__all__ = ["Unknown", "as_function", "name_of"]

_GIVEN: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Unknown:
    """A function of which only the name is known, from a file; calling it says how to give it."""

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise ConfigError."""
        module, _, function = self.name.partition(":")
        raise ConfigError(
            f"found the function {self.name!r} by name alone, and a name from a file is not imported; expected the "
            f"function itself: `from {module} import {function}` and give it as an option in Python"
        )


def name_of(function: Callable[..., Any]) -> str:
    """Return ``module:qualname``.

    Raises:
        ConfigError: it has no name under which it could be found again.

    >>> name_of(name_of)
    'nutlet.functions:name_of'
    """
    if isinstance(function, Unknown):
        return function.name
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not name or "<" in name:
        found = f"{module}.{name}" if name else f"a {type(function).__name__}"
        raise ConfigError(
            f"found the function {found}, which has no name of its own to be saved under; expected one that `def` made "
            "at the top of a module or of a notebook's cell (no lambda, no function inside of another, no partial)"
        )
    return f"{module}:{name}"


def as_function(value: Any) -> Any:
    """Return a function for a function or its name, and anything else as it is; a function given is remembered.

    Raises:
        ConfigError: see :func:`name_of`.

    >>> as_function(len) is as_function("builtins:len")
    True
    >>> as_function("magnitude"), as_function("os:system")
    ('magnitude', Unknown(name='os:system'))
    """
    if callable(value):
        _GIVEN[name_of(value)] = value
    elif isinstance(value, str) and value.count(":") == 1 and all(value.split(":")):
        return _GIVEN.get(value, Unknown(value))
    return value
