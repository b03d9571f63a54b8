"""Masks that move while a model is trained: which weights stay, when, and what is remembered of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from nutlet.constraints.stack import Mask, constraints
from nutlet.errors import ConfigError
from nutlet.graph.scope import weighted_layers
from nutlet.graph.trace import body_of
from nutlet.methods.base import Plan
from nutlet.methods.pruning.masks import DENSE
from nutlet.methods.pruning.sparsifying import Sparsifying
from nutlet.training.context import Context
from nutlet.training.losses import DistillationTraining

__all__ = ["Memory", "MovingMasks", "masks_of", "remembering", "sparsities", "sparsity_of"]


@dataclass(frozen=True, kw_only=True)
class MovingMasks(DistillationTraining, Sparsifying):
    """Base of the methods that prune while they train: the plan puts masks on, the training moves them.

    Args:
        distribution: how the share is spread: ``global``, ``uniform`` or ``erk``.

    Raises:
        ConfigError: a sparsity, pattern or option of the training out of range, or ``patience``: the best epoch might
            be one before the sparsity was reached.
    """

    distribution: Literal["global", "uniform", "erk"] = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        if self.patience is not None:
            raise ConfigError(
                f"{owner}.patience is {self.patience}; expected none, the sparsity is reached only at the end: put "
                "FineTune or Distill with patience after it"
            )

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return which layers get a mask that training will move."""
        layers, notes = self.fitting(weighted_layers(model, self))
        return {"masked": list(layers), "notes": [DENSE, *notes]}

    @property
    def goal(self) -> float:
        """Share of the weights that are zero at the end."""
        pattern = self.positions
        return 1 - pattern.kept / pattern.of if pattern.of else float(self.sparsity or 0)

    def layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the layers whose masks move."""
        return self.fitting(weighted_layers(body_of(model), self))[0]

    def reached(self, layers: Mapping[str, nn.Module]) -> bool:
        """Whether the masks of ``layers`` remove all that is asked for before any training."""
        return sparsity_of(layers) >= self.goal and not self.positions.of

    def prune(self, model: nn.Module, scores: Mapping[str, Tensor], sparsity: float, context: Context) -> None:
        """Move masks so that the weights of highest score stay; what is gone stays gone, and no layer loses all.

        Args:
            model: whose masks are moved.
            scores: layer name to one score per weight, of any sign.
            sparsity: share of the weights to reach, up to :attr:`goal`.
            context: what allocations go by.
        """
        body = body_of(model)
        layers = {name: body.get_submodule(name) for name in scores}
        if sparsity <= sparsity_of(layers) and not self.positions.of:
            return
        alive = masks_of(layers)
        lowest = min(0.0, *(float(score.min()) for score in scores.values()))
        ranked = {name: (score - lowest).masked_fill(~alive[name], 0.0) for name, score in scores.items()}
        pattern = self.positions
        step = dataclasses.replace(self, sparsity=sparsity, pattern="weight" if pattern.of else self.pattern)
        if pattern.of:
            # On the way to N of M, only what the pattern will not keep goes, the weakest of it first.
            highest = max(float(score.max()) for score in ranked.values())
            ranked = {n: score + (highest + 1) * pattern.mask(layers[n], score, 0) for n, score in ranked.items()}
        kept, _ = step.kept(body, ranked, context)
        for name, score in ranked.items():
            alive[name].logical_and_(step.positions.mask(layers[name], score, kept[name]))


def sparsities(schedule: Literal["cubic", "iterative"], start: float, end: float) -> list[float]:
    """Return the sparsities that are reached one after the other, in equal times, on the way from ``start`` to ``end``.

    ``cubic`` takes a hundred small steps along ``end + (start - end) (1 - t)^3`` (Zhu & Gupta 2017, arXiv:1710.01878,
    equation 1): fast while there is much to choose from, slowly where every weight counts. ``iterative`` takes five
    equal steps.

    >>> path = sparsities("cubic", 0.0, 0.9)
    >>> [round(path[k], 4) for k in (24, 49, 99)]
    [0.5203, 0.7875, 0.9]
    >>> [round(level, 2) for level in sparsities("iterative", 0.0, 0.9)]
    [0.18, 0.36, 0.54, 0.72, 0.9]
    """
    if schedule == "iterative":
        return [start + (end - start) * k / 5 for k in range(1, 6)]
    return [end + (start - end) * (1 - k / 100) ** 3 for k in range(1, 101)]


def masks_of(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the masks themselves, not copies: writing to one moves it."""
    return {name: next(c.mask for c in constraints(layer) if isinstance(c, Mask)) for name, layer in layers.items()}


def sparsity_of(layers: Mapping[str, nn.Module]) -> float:
    """Return the share of the weights of ``layers`` that their masks remove."""
    masks = masks_of(layers).values()
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


class Memory(nn.Module):
    """Tensors by the names of layers, held as buffers: a module's names take no dots."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", ":"), tensor)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors themselves, where training has moved them."""
        return {name.replace(":", "."): tensor for name, tensor in self.named_buffers()}


@contextmanager
def remembering(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[Memory]:
    """Hold tensors beside the model's own for the block, so that they lie in the checkpoints of its training.

    Read them from what is returned each time: training may move them to another device, and puts other ones there.
    """
    memory = Memory(tensors)
    model.add_module("remembered", memory)
    try:
        yield memory
    finally:
        del model.remembered
