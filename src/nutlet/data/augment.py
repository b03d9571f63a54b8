"""A look at an augmentation before it is relied on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nutlet.errors import ConfigError, first_line
from nutlet.tasks.inputs import Inputs, shapes_of

__all__ = ["check_augment"]


def check_augment(augment: Callable[[Any, torch.Generator], Tensor], x: Inputs) -> None:
    """Raise ConfigError unless ``augment`` gives ``x`` back in its shape and dtype: said now, not after hours."""
    try:
        made: object = augment(x.clone(), torch.Generator().manual_seed(0))
    except Exception as error:  # it is the user's code
        raise ConfigError(
            f"augment raised {type(error).__name__} on a batch of shape {shapes_of(x)}: {first_line(error)}; expected "
            "a function (batch, generator) -> batch"
        ) from error
    if not isinstance(x, Tensor):
        return
    if not isinstance(made, Tensor) or made.shape != x.shape or made.dtype != x.dtype:
        found = f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise ConfigError(
            f"augment gave {found} for a batch of {x.dtype} of shape {tuple(x.shape)}; expected the same dtype and "
            "shape: it gets inputs as the model takes them, images as normalised float32 (B, C, H, W)"
        )
