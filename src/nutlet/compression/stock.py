"""Stock recipes: what is tried where nobody wrote a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from nutlet.compression.compressed import Compressed
from nutlet.compression.recipe import Recipe
from nutlet.methods import Distill, DropBlocks, Factorize, PruneChannels, Quantize

__all__ = ["Proposal", "Propose", "in_turn", "stock_recipes"]

Proposal = tuple[str, Recipe]
"""A name, which is one for a folder as well, and the steps."""
Propose = Callable[[Mapping[str, Compressed | None]], Proposal | None]
"""Gives the recipe to try next, from those that were tried, by name (None for one that was left out or failed); None
when there is no other. A search is one more function of this kind."""


def stock_recipes(model: nn.Module, epochs: int = 5) -> dict[str, Recipe]:
    """Return recipes from mild to strong by name; those that begin alike share these steps.

    Args:
        model: what is to be compressed; one with attention is trained with AdamW.
        epochs: of each training in them.

    >>> [type(step).__name__ for step in stock_recipes(nn.Linear(4, 2))["channels"]]
    ['PruneChannels', 'Distill', 'Quantize']
    """
    attends = any(isinstance(module, (nn.LayerNorm, nn.MultiheadAttention)) for module in model.modules())
    recover = Distill(epochs=epochs, optimizer="adamw", lr=1e-3) if attends else Distill(epochs=epochs)
    channels = [PruneChannels(ratio=0.25, multiple_of=8), recover]
    blocks = [DropBlocks(drop=1), recover]
    return {
        "int8": [Quantize()],
        "channels": [*channels, Quantize()],
        "channels-low-rank": [*channels, Factorize(energy=0.9), recover, Quantize()],
        # A third of three quarters: half of the channels are left.
        "channels-twice": [*channels, PruneChannels(ratio=1 / 3, multiple_of=8), recover, Quantize()],
        "blocks": [*blocks, Quantize()],
        "blocks-channels": [*blocks, *channels, Quantize()],
    }


def in_turn(recipes: Mapping[str, Recipe]) -> Propose:
    """Return what proposes ``recipes`` one after the other."""

    def propose(tried: Mapping[str, Compressed | None]) -> Proposal | None:
        return next(((name, steps) for name, steps in recipes.items() if name not in tried), None)

    return propose
