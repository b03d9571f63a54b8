"""Modules within a model: what they share, and putting one in the place of another."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, nn

__all__ = ["Passthrough", "replace", "shared_parameters"]


class Passthrough(nn.Module):
    """The identity in the place of a module that took more than its input: the rest is ignored.

    >>> Passthrough()(1, 2, mask=3)
    1
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``x``."""
        return x


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the submodule ``name``, wherever else that one is used as well."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child, current in parent.named_children():
            if current is old:
                setattr(parent, child, module)


def shared_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that more than one module holds (tied weights)."""
    uses = Counter(parameter for module in model.modules() for parameter in module.parameters(recurse=False))
    return {parameter for parameter, count in uses.items() if count > 1}
