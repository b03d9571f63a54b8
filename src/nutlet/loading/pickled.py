"""What stands in the way of reading a checkpoint as tensors, found out without executing anything in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["refusal"]

_DEEPEST = 4
_SHOWN = 3


class _StandIn:
    """Takes the place of every object of a class that is not read; whatever it is given, it does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignore what the object was made from."""

    def __setstate__(self, state: Any) -> None:
        """Ignore what the object held."""


def refusal(path: Path) -> str:
    """Return why ``path`` is refused: what in it is no tensor and where, and Python that converts it once.

    Args:
        path: a ``.pt`` or ``.pth`` file that torch does not read as tensors alone.
    """
    names, held = _looked_into(path)
    where = ", ".join(list(_places(held))[:_SHOWN]) if held is not None else ""
    what = f": {', '.join(names[:_SHOWN])}" + (f" at {where}" if where else "") if names else ""
    read = f"torch.load({path.name!r}, weights_only=False)" if names else f"torch.jit.load({path.name!r})"
    return (
        f"{path} holds code (pickled objects{what}, not just tensors), which was not executed; expected tensors only. "
        "If you trust the file, convert it once where the code is at home:\n"
        "    import torch\n"
        "    from safetensors.torch import save_file\n"
        f"    held = {read}\n"
        f"    state = {_state(held)}\n"
        "    save_file({k: v.contiguous().clone() for k, v in state.items() if torch.is_tensor(v)}, "
        f"{path.with_suffix('.safetensors').name!r})"
    )


def _looked_into(path: Path) -> tuple[list[str], Any]:
    """Return the classes that the file names, and what it holds with stand-ins for their objects, if that is told."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a script, or a damaged or hostile file, which may raise anything
        return [], None
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_StandIn, name) for name in names]):
            warnings.simplefilter("ignore")
            return names, torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # likewise: then only the names are told
        return names, None


def _places(held: Any, at: str = "", depth: int = 0) -> Iterator[str]:
    if isinstance(held, _StandIn):
        yield at or "the top"
    elif isinstance(held, Mapping) and depth < _DEEPEST:
        for key, value in held.items():
            yield from _places(value, f"{at}[{key!r}]"[:80], depth + 1)
    elif isinstance(held, (list, tuple)) and depth < _DEEPEST:
        for number, value in enumerate(held):
            yield from _places(value, f"{at}[{number}]", depth + 1)


def _state(held: Any) -> str:
    """Return the Python that takes the state dict out of ``held``: the entry with most tensors, or a whole model."""
    if not isinstance(held, Mapping):
        return "held.state_dict()"
    if any(isinstance(value, Tensor) for value in held.values()):
        return "held"
    tensors = {
        key: sum(isinstance(item, Tensor) for item in value.values())
        for key, value in held.items()
        if isinstance(value, Mapping)
    }
    key = max(tensors, key=lambda name: tensors[name], default=None)
    if key is not None and tensors[key]:
        return f"held[{key!r}]"
    models = [key for key, value in held.items() if isinstance(value, _StandIn)]
    return f"held[{models[0]!r}].state_dict()" if models else "held.state_dict()"
