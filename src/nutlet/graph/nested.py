"""Tensors in nested arguments and results of calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

__all__ = ["plain_arguments", "rebuild", "tensors"]


def tensors(value: Any) -> Iterable[Tensor]:
    """All tensors in nested arguments or results, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def rebuild(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Copy a nested result with every tensor changed; tuples, lists, named tuples and dicts keep their type."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(rebuild(item, change) for item in value))
    if isinstance(value, tuple) and type(value) is not tuple:
        # Results such as torch.return_types.max are built from one sequence; torch.Size holds no tensors.
        return type(value)([rebuild(item, change) for item in value]) if any(True for _ in tensors(value)) else value
    if isinstance(value, (tuple, list)):
        return type(value)(rebuild(item, change) for item in value)
    if isinstance(value, dict):
        return {key: rebuild(item, change) for key, item in value.items()}
    return value


def plain_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, Any]:
    """Return the arguments of a call by position and by name, with ``None`` in the place of every tensor."""
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    return {key: _plain(value) for key, value in given}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, (tuple, list)):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
