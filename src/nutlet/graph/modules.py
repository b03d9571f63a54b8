"""Modules within a model: what they share, and putting one in the place of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.errors import ModelError

__all__ = ["Passthrough", "put_values", "replace", "shared_parameters"]


class Passthrough(nn.Module):
    """The identity in the place of a module that took more than its input: the rest is ignored.

    >>> Passthrough()(1, 2, mask=3)
    1
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``x``."""
        return x


def put_values(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write tensors into the parameters and buffers of ``model`` that their names in the state dict say.

    Raises:
        ModelError: the model has no tensor of such a name and shape.
    """
    state = model.state_dict()
    with torch.no_grad():
        for name, value in values.items():
            if name not in state or state[name].shape != value.shape:
                raise ModelError(
                    f"found values {tuple(value.shape)} for {name}; expected a tensor of that name and shape"
                )
            state[name].copy_(value)


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
