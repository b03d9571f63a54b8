"""Which modules a method may touch."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import nn

from nutlet.errors import ConfigError, ModelError, nearest

if TYPE_CHECKING:
    from nutlet.method import Method

__all__ = ["in_scope", "weighted_layers"]

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
"""The layers whose weights methods work on."""


def in_scope(names: Iterable[str], method: Method, all_names: Iterable[str]) -> list[str]:
    """Return the names that ``method`` may touch by its include and exclude patterns.

    Args:
        names: candidates of the method.
        method: its ``include`` and ``exclude`` are applied.
        all_names: every module name, for telling a pattern that matches nothing from one that matches no candidate.

    Raises:
        ConfigError: a pattern matches no module at all, or ``include`` only modules the method does not support.
    """
    names, everything = list(names), list(all_names)
    for pattern in (*method.include, *method.exclude):
        if not any(fnmatchcase(name, pattern) for name in everything):
            raise ConfigError(
                f"{type(method).__name__}: the pattern {pattern!r} matches no module; {nearest(pattern, everything)}"
            )
    chosen = [n for n in names if any(fnmatchcase(n, p) for p in method.include)]
    if not chosen and method.include != ("*",):
        raise ConfigError(
            f"{type(method).__name__}: {', '.join(method.include)} matches no module this method can work on; "
            f"it can work on: {', '.join(names) or 'none of this model'}"
        )
    return [n for n in chosen if not any(fnmatchcase(n, p) for p in method.exclude)]


def weighted_layers(
    model: nn.Module, method: Method, kinds: type[nn.Module] | tuple[type[nn.Module], ...] = ()
) -> dict[str, nn.Module]:
    """Return the layers in scope by name; ``kinds`` defaults to dense layers and convolutions.

    Raises:
        ModelError: the model has no such layer; the message names what it has.
        ConfigError: see :func:`in_scope`.
    """
    accepted: tuple[type[nn.Module], ...] = kinds if isinstance(kinds, tuple) else (kinds,)
    accepted = accepted or Layer.__args__
    modules = {name: module for name, module in model.named_modules() if name}
    found = {name: module for name, module in modules.items() if isinstance(module, accepted)}
    if not found:
        others = {
            f"{name or 'the model itself'} ({type(module).__name__})"
            for name, module in model.named_modules()
            if next(module.parameters(recurse=False), None) is not None
        }
        raise ModelError(
            f"{type(method).__name__} found no layer it supports; expected one of "
            f"{', '.join(kind.__name__ for kind in accepted)}; layers with parameters here: "
            f"{', '.join(sorted(others)) or 'none'}"
        )
    return {name: found[name] for name in in_scope(found, method, modules)}
