"""Why a method leaves a layer alone, as far as its scope and the kind of the layer tell."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from nutlet.constraints.stack import has_own_weight
from nutlet.graph.scope import Scoped, accepted_layer_types, in_scope
from nutlet.graph.trace import body_of

__all__ = ["EXCLUDED", "MADE_ELSEWHERE", "layers_with_values", "scope_reasons"]

EXCLUDED = "out of scope"
MADE_ELSEWHERE = "something else makes its weight"

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

_BY_LAYER = frozenset({"rank", "mask", "grid", "shared values", "values"})
"""Effects of methods that work on the weight of one layer after the other. The others reach through the model: what
they leave alone depends on how layers hang together, and only they know."""


def layers_with_values(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that hold parameters of their own, in order; norms are left out, they follow their layers.

    >>> list(layers_with_values(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU())))
    ['0']
    """
    return {name: module for name, module in _owners(model).items() if not isinstance(module, _NORMS)}


def _owners(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in body_of(model).named_modules()
        if name and "parametrizations" not in name and _parameters(module)
    }


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module itself, those below its constraints included."""
    return [p for name, p in module.named_parameters() if "." not in name or name.startswith("parametrizations.")]


def scope_reasons(model: nn.Module, method: Scoped, *, trains: bool) -> dict[str, str]:
    """Return why ``method`` leaves layers alone, by name; an empty text where nothing speaks against it.

    Args:
        model: is not changed.
        method: its scope, ``layer_types`` and ``effect`` decide.
        trains: whether it trains as well, and so changes layers of every kind in its scope.

    Raises:
        ConfigError: a pattern matches no module, see :func:`nutlet.graph.scope.in_scope`.
    """
    owners, layers = _owners(model), layers_with_values(model)
    everything = dict(body_of(model).named_modules())
    kinds = accepted_layer_types(method)
    by_layer = method.effect in _BY_LAYER
    fitting = (
        {name for name, layer in layers.items() if isinstance(layer, kinds)} if by_layer and not trains else owners
    )
    allowed = set(in_scope([name for name in owners if name in fitting], method, everything))
    if not trains and not by_layer:
        return dict.fromkeys(layers, "")
    # A layer in scope may have the same weight as one out of it, and change it for both.
    touched = {id(parameter) for name in allowed for parameter in _parameters(owners[name])}
    reasons = {}
    for name, layer in layers.items():
        if name not in fitting:
            reasons[name] = f"a {parametrize.type_before_parametrizations(layer).__name__}"
        elif trains and not any(parameter.requires_grad for parameter in _parameters(layer)):
            reasons[name] = "its parameters are frozen" if not by_layer else ""
        elif name not in allowed:
            reasons[name] = "" if touched & {id(parameter) for parameter in _parameters(layer)} else EXCLUDED
        else:
            # One that trains as well changes layers of other kinds, whose weights have names of their own.
            needed = by_layer and isinstance(layer, kinds) if trains else True
            reasons[name] = MADE_ELSEWHERE if needed and not has_own_weight(layer) else ""
    return reasons
