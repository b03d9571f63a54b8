"""Kinds found by name: ours, and those of installed packages."""

from __future__ import annotations

import importlib.metadata
from typing import Generic, TypeVar

from nutlet.errors import ConfigError

__all__ = ["Registry"]

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Classes by their names, or objects by what they hold as ``name``.

    Args:
        what: how one is called in a message, with its article: ``a method``.
        group: entry point under which other packages declare theirs.

    Attributes:
        kinds: those registered so far.
        plugins_loaded: whether those of installed packages are among them.

    >>> registry: Registry[type[object]] = Registry("a shape", "nutlet.shapes")
    >>> sorted(registry.known())
    []
    """

    def __init__(self, what: str, group: str) -> None:
        self._what = what
        self._group = group
        self.kinds: dict[str, Entry] = {}
        self.plugins_loaded = False

    def add(self, kind: Entry) -> None:
        """Make ``kind`` known by its name; a class that is defined anew, as in a notebook, takes the place of the old.

        Raises:
            ConfigError: another one of that name is known, defined elsewhere.
        """
        name: str = kind.__name__ if isinstance(kind, type) else getattr(kind, "name")  # noqa: B009
        known = self.kinds.get(name, kind)
        if known is not kind and _place(known) != _place(kind):
            raise ConfigError(f"{self._what} named {name!r} is registered already; expected a new name")
        self.kinds[name] = kind

    def known(self) -> dict[str, Entry]:
        """Return all of them by name, in order, those of installed packages too."""
        if not self.plugins_loaded:
            for entry in importlib.metadata.entry_points(group=self._group):
                self.add(entry.load())
            self.plugins_loaded = True  # not before: a plugin that does not load is to say so every time
        return dict(sorted(self.kinds.items()))


def _place(kind: object) -> tuple[str, str]:
    """Return module and qualified name of a class, or of that of an object."""
    made = kind if isinstance(kind, type) else type(kind)
    return made.__module__, made.__qualname__
