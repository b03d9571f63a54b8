"""Compress a shadow model as the victim was compressed: what an attacker does who knows the recipe."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nutlet.compression.pipeline import compress
from nutlet.data.examples import Augment, Examples, split
from nutlet.methods.base import Method

__all__ = ["Recompress"]


@dataclass(frozen=True, kw_only=True)
class Recompress:
    """Apply a recipe to a model, on the examples that the model was trained on.

    What :class:`nutlet.attacks.membership.shadow_models.Shadows` does to its models, as was done to the victim.

    Args:
        recipe: methods in order, with those that train.
        validation: share of the examples held out, as :func:`nutlet.split` does.
        calibration: examples for ranges and scores.
        augment: applied to each batch of a method that trains.
    """

    recipe: tuple[Method, ...]
    validation: float = 0.1
    calibration: int = 512
    augment: Augment | None = None

    def __call__(self, model: nn.Module, members: Examples, seed: int) -> nn.Module:
        """Return the compressed model; ``model`` is not changed."""
        data = split(members, validation=self.validation, calibration=self.calibration, augment=self.augment, seed=seed)
        return compress(model, self.recipe, data, seed=seed).model
