"""Kinds found by their class name: ours, and those of installed packages."""

from __future__ import annotations

import importlib.metadata
from typing import Generic, TypeVar

from nutlet.errors import ConfigError

__all__ = ["Registry"]

Base = TypeVar("Base")


class Registry(Generic[Base]):
    """Classes by name.

    Args:
        what: how one is called in a message, with its article: ``a method``.
        group: entry point under which other packages declare theirs.

    Attributes:
        kinds: those registered so far.
        plugins_loaded: whether those of installed packages are among them.

    >>> registry: Registry[object] = Registry("a shape", "nutlet.shapes")
    >>> sorted(registry.known())
    []
    """

    def __init__(self, what: str, group: str) -> None:
        self._what = what
        self._group = group
        self.kinds: dict[str, type[Base]] = {}
        self.plugins_loaded = False

    def add(self, kind: type[Base]) -> None:
        """Make ``kind`` known by its class name.

        Raises:
            ConfigError: another class of that name is known.
        """
        if self.kinds.get(kind.__name__, kind) is not kind:
            raise ConfigError(f"{self._what} named {kind.__name__!r} is registered already; expected a new name")
        self.kinds[kind.__name__] = kind

    def known(self) -> dict[str, type[Base]]:
        """Return all of them by name, in order, those of installed packages too."""
        if not self.plugins_loaded:
            for entry in importlib.metadata.entry_points(group=self._group):
                self.add(entry.load())
            self.plugins_loaded = True  # not before: a plugin that does not load is to say so every time
        return dict(sorted(self.kinds.items()))
