"""Which modules a method may touch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Protocol

from torch import nn

from nutlet.constraints.stack import PLAIN_WEIGHT, has_own_weight
from nutlet.errors import ConfigError, ModelError, nearest
from nutlet.graph.trace import body_of

__all__ = ["Layer", "Scoped", "accepted_layer_types", "in_scope", "training_only", "weighted_layers"]

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
"""The layers whose weights methods work on."""


class Scoped(Protocol):
    """What a method says of where it works; each is a field of :class:`nutlet.Method`."""

    @property
    def include(self) -> tuple[str, ...]:
        """Patterns of module names it may touch."""

    @property
    def exclude(self) -> tuple[str, ...]:
        """Patterns of module names it must leave alone."""

    @property
    def layer_types(self) -> tuple[type[nn.Module], ...]:
        """Classes of layers it works on; empty: all dense layers and convolutions."""

    @property
    def effect(self) -> str:
        """What it does to a model, one of ``nutlet.methods.base.EFFECTS``."""


def in_scope(names: Iterable[str], method: Scoped, all_names: Iterable[str]) -> list[str]:
    """Return the names that ``method`` may touch by its include and exclude patterns.

    A pattern that matches a module covers everything inside it.

    Args:
        names: candidates of the method.
        method: its ``include`` and ``exclude`` are applied.
        all_names: every module name, for telling a pattern that matches nothing from one that matches no candidate.

    Raises:
        ConfigError: a pattern matches no module at all, or ``include`` only modules the method does not support.
    """
    names, everything = list(names), [name for name in all_names if name and "parametrizations" not in name]
    for pattern in (*method.include, *method.exclude):
        if not any(fnmatchcase(name, pattern) for name in everything):
            raise ConfigError(
                f"{type(method).__name__}: the pattern {pattern!r} matches no module; {nearest(pattern, everything)}"
            )
    chosen = [n for n in names if _covered(n, method.include)]
    if not chosen and method.include != ("*",):
        raise ConfigError(
            f"{type(method).__name__}: {', '.join(method.include)} matches no module this method can work on; "
            f"it can work on: {', '.join(names) or 'none of this model'}"
        )
    return [n for n in chosen if not _covered(n, method.exclude)]


def _covered(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches the module or one that holds it."""
    parts = name.split(".")
    holders = [".".join(parts[:k]) for k in range(1, len(parts) + 1)]
    return any(fnmatchcase(holder, pattern) for pattern in patterns for holder in holders)


@contextmanager
def training_only(model: nn.Module, method: Scoped) -> Iterator[None]:
    """Freeze, for the block, the parameters and running statistics that ``method`` may not touch.

    Raises:
        ModelError: nothing is left to train.
        ConfigError: see :func:`in_scope`.
    """
    body = body_of(model)
    owners: dict[str, list[nn.Parameter]] = {}
    for name, parameter in body.named_parameters():
        owner = name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
        owners.setdefault(owner, []).append(parameter)
    modules = dict(body.named_modules())
    statistics = {name: m for name, m in modules.items() if isinstance(m, nn.modules.batchnorm._NormBase)}
    allowed = set(in_scope(dict.fromkeys([*owners, *statistics]), method, modules))
    frozen = [p for owner in owners if owner not in allowed for p in owners[owner] if p.requires_grad]
    norms = [(module, module.momentum) for name, module in statistics.items() if name not in allowed]
    if len(frozen) == sum(p.requires_grad for p in body.parameters()):
        raise ModelError(
            f"{type(method).__name__} found no parameter to train; expected at least one that requires gradients, in a "
            f"module in scope; modules with parameters: {', '.join(owners) or 'none'}"
        )
    for parameter in frozen:
        parameter.requires_grad_(False)
    for norm, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for norm, momentum in norms:
            norm.momentum = momentum


def accepted_layer_types(method: Scoped) -> tuple[type[nn.Module], ...]:
    """Return the classes of layers that ``method`` works on, by default dense layers and convolutions."""
    return method.layer_types or Layer.__args__


def weighted_layers(
    model: nn.Module, method: Scoped, layer_types: type[nn.Module] | tuple[type[nn.Module], ...] = ()
) -> dict[str, nn.Module]:
    """Return the layers in scope by name; ``layer_types`` defaults to those of the method.

    Raises:
        ModelError: the model has no such layer, or the parametrization of somebody else makes the weight of one.
        ConfigError: see :func:`in_scope`.
    """
    accepted: tuple[type[nn.Module], ...] = layer_types if isinstance(layer_types, tuple) else (layer_types,)
    accepted = accepted or accepted_layer_types(method)
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
    chosen = {name: found[name] for name in in_scope(found, method, modules)}
    for name, layer in chosen.items():
        if not has_own_weight(layer):
            raise ModelError(
                f"{type(method).__name__}: something else makes the weight of {name} (weight_norm, say); "
                f"{PLAIN_WEIGHT}, or leave it out with exclude={name!r}"
            )
    return chosen
