"""Functions of a user as options: how a file names one, and how it is found again without importing anything."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

__all__ = ["NAME", "Named", "find", "name_of"]

NAME = r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"
"""How files name a function: ``module:function``."""


@dataclass(frozen=True)
class Named:
    """Marks, within ``Annotated``, an option that is a function which a file can name.

    Args:
        takes: its arguments, for messages.

    >>> find in Named(), (lambda: 0) in Named(), "json:dumps" in Named()
    (True, False, True)
    """

    takes: str = ""

    def __contains__(self, value: object) -> bool:
        return re.fullmatch(NAME, value) is not None if isinstance(value, str) else name_of(value) is not None

    @property
    def described(self) -> str:
        """What is expected, in words."""
        return (
            f"a function({self.takes}) that has a name at the top of a module or notebook, no lambda and no partial: "
            "histories and saved models say it as `module:function`"
        )


def name_of(function: object) -> str | None:
    """Return ``module:function``, or None where that would not name it: a lambda, or one inside another function.

    >>> name_of(find), name_of(lambda: 0)
    ('nutlet.functions:find', None)
    """
    if not isinstance(function, FunctionType):
        return None
    name = f"{function.__module__}:{function.__qualname__}"
    return name if re.fullmatch(NAME, name) else None


def find(name: str) -> Callable[..., Any] | None:
    """Return the function of that name, where its module is imported already: a file must not cause an import.

    >>> find("nutlet.functions:find") is find, find("not_imported:function")
    (True, None)
    """
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, FunctionType) else None
