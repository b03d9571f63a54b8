"""A model that takes inputs by name, as the exporters want it: one tensor after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nutlet.tasks.inputs import Inputs, NamedInputs

__all__ = ["flat"]


class _Flat(nn.Module):
    """Gathers its arguments into one batch of named inputs.

    Args:
        model: takes that batch.
        names: of the inputs, in order.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: Tensor) -> Any:
        return self.model(NamedInputs(dict(zip(self.names, tensors, strict=True))))


def flat(model: nn.Module, example: Inputs) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    """Return a module whose forward takes tensors, an example of these, and which of their axes are dynamic: the batch.

    Args:
        model: takes batches like ``example``; one of a single tensor is returned as it is.
        example: two inputs.
    """
    batch = {0: torch.export.Dim("batch")}
    if isinstance(example, Tensor):
        return model, (example,), (batch,)
    tensors = tuple(example.tensors.values())
    return _Flat(model, tuple(example)).eval(), tensors, (tuple(batch for _ in tensors),)
