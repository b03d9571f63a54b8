"""Why a method leaves a layer alone, as far as its scope and the kind of the layer tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.utils import parametrize

from nutlet.graph.constraints import has_own_weight
from nutlet.graph.scope import accepted_kinds, in_scope
from nutlet.graph.sites import Edited

if TYPE_CHECKING:
    from nutlet.method import Method

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
    body = model.model if isinstance(model, Edited) else model
    return {
        name: module
        for name, module in body.named_modules()
        if name
        and "parametrizations" not in name
        and not isinstance(module, _NORMS)
        and (parametrize.is_parametrized(module) or next(module.parameters(recurse=False), None) is not None)
    }


def scope_reasons(model: nn.Module, method: Method) -> dict[str, str]:
    """Return why ``method`` leaves layers alone, by name; an empty text where nothing speaks against it.

    Raises:
        ConfigError: a pattern matches no module, see :func:`nutlet.graph.scope.in_scope`.
    """
    layers = layers_with_values(model)
    everything = dict((model.model if isinstance(model, Edited) else model).named_modules())
    if method.effect == "training":
        allowed = set(in_scope(layers, method, everything))
        return {name: _why_not_trained(layer, name in allowed) for name, layer in layers.items()}
    if method.effect not in _BY_LAYER:
        in_scope(layers, method, everything)
        return dict.fromkeys(layers, "")
    kinds = accepted_kinds(method)
    fitting = {name: layer for name, layer in layers.items() if isinstance(layer, kinds)}
    allowed = set(in_scope(fitting, method, everything))
    touched = {id(p) for name in allowed for p in fitting[name].parameters()}
    reasons = {}
    for name, layer in layers.items():
        if name not in fitting:
            reasons[name] = f"a {parametrize.type_before_parametrizations(layer).__name__}"
        elif name not in allowed:
            # A layer in scope may have the same weight, and change it for both.
            reasons[name] = "" if touched & {id(p) for p in layer.parameters()} else EXCLUDED
        else:
            reasons[name] = "" if has_own_weight(layer) else MADE_ELSEWHERE
    return reasons


def _why_not_trained(layer: nn.Module, allowed: bool) -> str:
    if not any(parameter.requires_grad for parameter in layer.parameters()):
        return "its parameters are frozen"
    return "" if allowed else EXCLUDED
