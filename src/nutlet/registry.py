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
        """Make ``kind`` known by its name; one that was defined at the same place before is replaced.

        Raises:
            ConfigError: another one of that name is known.

        >>> registry: Registry[type[object]] = Registry("a shape", "nutlet.shapes")
        >>> first, again = type("Round", (), {}), type("Round", (), {})
        >>> registry.add(first)
        >>> registry.add(again)
        >>> registry.kinds["Round"] is again
        True
        """
        name: str = kind.__name__ if isinstance(kind, type) else getattr(kind, "name")  # noqa: B009
        known = self.kinds.get(name, kind)
        if known is not kind and not _redefined(known, kind):
            raise ConfigError(f"{self._what} named {name!r} is registered already; expected a new name")
        self.kinds[name] = kind

    def known(self) -> dict[str, Entry]:
        """Return all of them by name, in order, those of installed packages too."""
        if not self.plugins_loaded:
            for entry in importlib.metadata.entry_points(group=self._group):
                self.add(entry.load())
            self.plugins_loaded = True  # not before: a plugin that does not load is to say so every time
        return dict(sorted(self.kinds.items()))


def _redefined(known: object, kind: object) -> bool:
    """Whether a class stands where the known one stood: in a notebook, who changes a class runs its cell again."""
    return (
        isinstance(known, type)
        and isinstance(kind, type)
        and (known.__module__, known.__qualname__) == (kind.__module__, kind.__qualname__)
    )
