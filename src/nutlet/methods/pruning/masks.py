"""Masks that a method decides from data: put on by the plan, filled with values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from nutlet.constraints.stack import Mask, constrain, constrained_weight, constraints

__all__ = ["DENSE", "mask_values", "put_masks"]

DENSE = "zeros are stored like other weights: only after zstd, and as a saved model, the file is smaller"
"""What the history says of every mask."""


def put_masks(model: nn.Module, names: Iterable[str]) -> None:
    """Put a mask on each layer, in the place of an earlier one, which keeps every weight that is not zero."""
    for name in names:
        layer = model.get_submodule(name)
        constrain(layer, [Mask(constrained_weight(layer) != 0)])


def mask_values(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``masks`` as the values of a plan: by the names that :func:`put_masks` will give their tensors.

    Args:
        model: the model that the plan is made for; not changed.
        masks: layer name to a boolean tensor of the shape of its weight.
    """
    places = {}
    for name, mask in masks.items():
        before = sum(c.order < Mask.order for c in constraints(model.get_submodule(name)))
        places[f"{name}.parametrizations.weight.{before}.mask"] = mask
    return places
