"""New weights for the layers of a model, as if it had just been built."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.nn.utils import parametrize

from nutlet.constraints.stack import constrain, constraints, refit, remove_constraints

__all__ = ["reinit_modules"]


def reinit_modules(model: nn.Module, seed: int, names: Collection[str] | None = None) -> list[str]:
    """Draw the weights of modules anew, by their own reset, below the constraints they carry; in place.

    Args:
        model: changed in place.
        seed: the only source of randomness.
        names: modules to draw anew; all by default.

    Returns:
        Names of the modules among them that keep values: they have parameters and no way to reset them.

    >>> layer = nn.Linear(2, 2)
    >>> before = layer.weight.detach().clone()
    >>> reinit_modules(layer, 1), torch.equal(layer.weight, before)
    ([], False)
    """
    modules = {
        name: module
        for name, module in model.named_modules()
        if (names is None or name in names) and "parametrizations" not in name
    }
    inner = [name for name, module in modules.items() if not list(module.children()) or constraints(module)]
    # What holds others comes after them: attention sets the biases of its projection to zero.
    outer = [name for name in modules if name not in set(inner)][::-1]
    kept = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in [*inner, *outer]:
            module = modules[name]
            # Through a constraint, a reset would write to a result that is computed anew each time.
            stack = remove_constraints(module)
            # Attention and transformers of torch have no public name for it.
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset) and not parametrize.is_parametrized(module):
                reset()
            elif any(True for _ in module.parameters(recurse=False)):
                kept.append(name)
            if stack:
                constrain(module, stack)
                refit(module)
    return kept
