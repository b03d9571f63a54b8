"""What is removed together: single weights, all but N of M inputs, blocks of a matrix."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import constrained_weight, output_axis
from nutlet.errors import ConfigError

__all__ = ["Pattern", "as_matrix", "as_weight", "parse_pattern"]


def as_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight as ``(outputs, positions x inputs)``: input channels lie side by side, as kernels read them.

    >>> as_matrix(nn.Conv2d(8, 4, 3), torch.zeros(4, 8, 3, 3)).shape
    torch.Size([4, 72])
    """
    return weight.movedim(output_axis(layer), 0).movedim(1, -1).flatten(1)


def as_weight(layer: nn.Module, matrix: Tensor) -> Tensor:
    """Return what :func:`as_matrix` came from."""
    shape = constrained_weight(layer).movedim(output_axis(layer), 0).movedim(1, -1).shape
    return matrix.reshape(shape).movedim(-1, 1).movedim(0, output_axis(layer)).contiguous()


@dataclass(frozen=True)
class Pattern:
    """Where zeros may lie in the matrix of a layer.

    Args:
        block: rows and columns that are kept or removed together.
        kept: of every ``of`` input channels side by side this many are kept, whatever is asked; 0 for no such rule.
        of: see ``kept``.

    >>> Pattern(kept=1, of=2).mask(nn.Linear(4, 1), torch.tensor([[1.0, 2.0, 4.0, 3.0]]), keep=0)
    tensor([[False,  True,  True, False]])
    """

    block: tuple[int, int] = (1, 1)
    kept: int = 0
    of: int = 0

    def misfit(self, layer: nn.Module) -> str:
        """Return why ``layer`` cannot take the pattern, or an empty string."""
        weight = constrained_weight(layer)
        rows, inputs = weight.shape[:2]
        if output_axis(layer):
            rows, inputs = inputs, rows // getattr(layer, "groups", 1)
        if self.of and inputs % self.of:
            return f"its {inputs} input channels are not a multiple of {self.of}"
        if rows % self.block[0] or inputs % self.block[1]:
            return f"its {rows} x {inputs} channels are not a multiple of {self.block[0]} x {self.block[1]}"
        return ""

    @property
    def step(self) -> int:
        """Columns of the matrix that are decided on together."""
        return self.of or self.block[1]

    def units(self, matrix: Tensor) -> Tensor:
        """Return the sums of what is kept or removed together, ``(rows / high, columns / wide)``."""
        high, wide = self.block
        return matrix.reshape(len(matrix) // high, high, -1, wide).sum((1, 3))

    def choose(self, matrix: Tensor, keep: int) -> Tensor:
        """Return where ``keep`` units of a matrix stay: those of the largest sums, the first ones where equal."""
        if self.of:
            return most(matrix.reshape(len(matrix), -1, self.of), self.kept).flatten(1)
        units = self.units(matrix)
        chosen = most(units.flatten(), keep).view_as(units)
        return chosen.repeat_interleave(self.block[0], 0).repeat_interleave(self.block[1], 1)

    def mask(self, layer: nn.Module, saliency: Tensor, keep: int) -> Tensor:
        """Return which weights stay, of the shape of the weight: those that matter most, the first ones where equal.

        Args:
            layer: whose weight it is.
            saliency: of the shape of the weight.
            keep: how many units stay; without meaning where N of M do.
        """
        return as_weight(layer, self.choose(as_matrix(layer, saliency), keep))


def most(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the ``count`` largest along the last axis, the first ones where equal.

    Ranked and not compared with a threshold: quantized weights share their magnitudes with many others.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


def parse_pattern(owner: str, pattern: str, block: tuple[int, ...]) -> Pattern:
    """Return the pattern that the options of the method ``owner`` ask for.

    Raises:
        ConfigError: the pattern is none, or the block is missing, or given where it means nothing.

    >>> parse_pattern("PruneWeights", "2:4", ())
    Pattern(block=(1, 1), kept=2, of=4)
    """
    if (pattern == "block") != bool(block):
        raise ConfigError(
            f"{owner}.pattern is {pattern!r} and block {block!r}; expected a block with the pattern 'block' and only "
            "there: pattern='block', block=(1, 4)"
        )
    if block:
        if len(block) != 2 or min(block) < 1:
            raise ConfigError(f"{owner}.block is {block!r}; expected rows and columns, 1 or more each, as (1, 4)")
        return Pattern(block=(block[0], block[1]))
    if pattern == "weight":
        return Pattern()
    parts = re.fullmatch(r"(\d{1,3}):(\d{1,3})", pattern)
    kept, of = (int(part) for part in parts.groups()) if parts else (0, 0)
    if not 0 < kept < of:
        raise ConfigError(
            f"{owner}.pattern is {pattern!r}; expected 'weight', 'block', or how many weights stay of how many side by "
            "side, as '2:4'"
        )
    return Pattern(kept=kept, of=of)
