"""Small text files of unknown origin: read with limits on bytes and nesting, and nothing in them grows when read."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from nutlet.errors import ConfigError, first_line, shown

__all__ = ["LARGEST_YAML", "load_yaml", "read_bytes"]

LARGEST_YAML = 256 * 2**10
"""Bytes; a recipe of a hundred steps has about 5 KiB."""

_DEEPEST = 16
_LONGEST_NUMBER = 40
_PLAIN = frozenset({"null", "bool", "int", "float", "str"})


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file, and no more than ``most + 1`` bytes of it.

    Whoever calls it compares the length with ``most``: a size that was asked for beforehand may be stale or a lie.

    Raises:
        OSError: it cannot be read, or is no regular file (a pipe would be waited for, a device has no end).
    """
    if path.exists() and not path.is_file():
        raise OSError(0, "it is not a regular file")
    with path.open("rb") as file:
        return file.read(min(most, path.stat().st_size) + 1)


def load_yaml(path: Path, what: str, expected: str) -> Any:
    """Return what a YAML file holds: mappings, lists, text, numbers, booleans and null.

    A file of a few hundred bytes can stand for a value that fills the memory, by aliases and merges, or ask Python for
    objects, by tags. Neither is needed here, so both are refused, as are keys that stand twice. What looks like a date
    is text.

    Args:
        path: the file.
        what: what it is, for messages, as ``the recipe``.
        expected: what it should have been, for messages.

    Raises:
        ConfigError: the file is missing, larger than :data:`LARGEST_YAML`, nested too deeply, not YAML, or uses
            what is refused.
    """
    try:
        content = read_bytes(path, LARGEST_YAML)
    except OSError as error:
        raise ConfigError(f"could not read {what} {path}: {error.strerror}; expected {expected}") from error
    if len(content) > LARGEST_YAML:
        raise ConfigError(f"{path} has more than {LARGEST_YAML:,} bytes; expected {expected} of at most that size")
    try:
        return yaml.load(content.decode("utf-8"), _Loader)  # a SafeLoader that takes less
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or first_line(error)
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path} is not YAML as it is read here{place}: {problem}; expected {expected}") from error


class _Loader(yaml.SafeLoader):
    """YAML without what makes it more than a tree of plain values."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            _refuse(event, f"found the anchor or alias {shown(event.anchor)}, which is not read: write the value out")
        if getattr(event, "tag", None) is not None:
            _refuse(event, f"found the tag {shown(event.tag)}, which is not read: write plain values")
        if self.depth >= _DEEPEST:
            _refuse(event, f"it is nested more than {_DEEPEST} levels deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                _refuse(key, "found a list or a mapping where a key should be")
            if key.value in keys:
                _refuse(key, f"found the key {shown(key.value)} twice")
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        if len(node.value) > _LONGEST_NUMBER:
            _refuse(node, f"found the number {shown(node.value)} of {len(node.value):,} characters")
        is_integer = node.tag.endswith("int")
        return self.construct_yaml_int(node) if is_integer else self.construct_yaml_float(node)


def _refuse(at: Any, problem: str) -> None:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


# Neither dates nor merges are known: what looks like one is text, and a merge is an unknown key.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag.rpartition(":")[2] in _PLAIN]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
