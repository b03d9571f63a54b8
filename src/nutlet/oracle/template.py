"""The body of a request as an endpoint with named fields wants it: a template in JSON, filled with rows of a table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nutlet.data.columns import Columns
from nutlet.errors import ConfigError, nearest, shown

__all__ = ["Template", "rows_of"]

_PLACE = re.compile(r"\$\{([^{}]*)\}")
_ALL = "*"
_LARGEST = 64 * 2**10
_EXPECTED = "write ${age} where the value of the column `age` goes, or ${*} for all columns by name"


class Template:
    """A body with places: ``${age}`` stands for the value of that column, ``${*}`` for a mapping of all by name.

    A list of one entry with places in it is repeated, once for each input; where there is none, each request has one.

    Args:
        body: plain values, as from YAML.

    Raises:
        ConfigError: it has no place, holds what JSON does not know, or is longer than 64 KiB.

    >>> many = Template({"rows": [{"age": "${age}"}]})
    >>> many.filled([{"age": 39}, {"age": 50}])
    {'rows': [{'age': 39}, {'age': 50}]}
    """

    def __init__(self, body: object) -> None:
        try:
            text = json.dumps(body, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"the template holds what JSON does not know ({error}); expected plain values") from error
        if len(text) > _LARGEST:
            raise ConfigError(f"the template has {len(text):,} characters; expected at most {_LARGEST:,}")
        self.body: Any = json.loads(text)  # a copy: nobody changes it any more
        names = list(_places(self.body))
        if not names:
            raise ConfigError(f"the template has no place for a value; {_EXPECTED}")
        self.names = frozenset(names) - {_ALL}
        repeated = list(_repeated(self.body))
        self.many = bool(repeated)
        if repeated and sum(len(list(_places(part))) for part in repeated) < len(names):
            raise ConfigError(
                "the template has places inside and outside of the list that is repeated for each input; expected all "
                "inside, or all outside and one input in each request"
            )

    def check(self, columns: Columns) -> None:
        """Raise ConfigError where a place names no column."""
        for name in sorted(self.names - set(columns.names)):
            raise ConfigError(f"the template names the column {shown(name)}; {nearest(name, columns.names)}")

    def filled(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Return the body for these rows: one alone where nothing is repeated."""
        return _filled(self.body, rows, self.many)


def rows_of(columns: Columns, x: np.ndarray) -> list[dict[str, Any]]:
    """Return rows of the matrix ``(N, width)`` as plain values by the names of their columns."""
    table = columns.decode(x)
    values = [[_value(value) for value in table[name]] for name in columns.names]
    return [dict(zip(columns.names, row, strict=True)) for row in zip(*values, strict=True)]


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return value
    # The shortest text that is this float32: 0.1, not 0.10000000149.
    number = float(str(np.float32(value)))
    return int(number) if math.isfinite(number) and number == int(number) else number


def _places(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        if found := _PLACE.fullmatch(node):
            yield found[1]
        elif _PLACE.search(node):
            raise ConfigError(f"found {shown(node)} in the template; expected a place to be all of a text: {_EXPECTED}")
    elif isinstance(node, (list, dict)):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _places(inner)


def _is_repeated(node: Any) -> bool:
    return isinstance(node, list) and len(node) == 1 and any(True for _ in _places(node))


def _repeated(node: Any) -> Iterator[Any]:
    """Yield the outermost lists that stand for all inputs."""
    if _is_repeated(node):
        yield node
    elif isinstance(node, (list, dict)):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _repeated(inner)


def _filled(node: Any, rows: Sequence[Mapping[str, Any]], many: bool) -> Any:
    if many and _is_repeated(node):
        return [_filled(node[0], [row], many=False) for row in rows]
    if isinstance(node, dict):
        return {name: _filled(inner, rows, many) for name, inner in node.items()}
    if isinstance(node, list):
        return [_filled(inner, rows, many) for inner in node]
    found = _PLACE.fullmatch(node) if isinstance(node, str) else None
    if found is None:
        return node
    return dict(rows[0]) if found[1] == _ALL else rows[0][found[1]]
