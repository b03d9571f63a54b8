"""Masks that move while a model is trained: which weights stay, when, and what is remembered of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.errors import ConfigError
from nutlet.graph.constraints import Mask, constraints
from nutlet.graph.scope import weighted_layers
from nutlet.graph.sites import Edited
from nutlet.method import Context, Method, Plan
from nutlet.methods.distillation.targets import SoftTraining
from nutlet.methods.pruning.masks import put_masks

__all__ = ["Memory", "MovingMasks", "levels", "remembering", "sparsity_of", "strongest"]


@dataclass(frozen=True, kw_only=True)
class MovingMasks(SoftTraining, Method):
    """Base of the methods that prune while they train: the plan puts masks on, the training moves them.

    Args:
        sparsity: share of the weights that are zero at the end, 0 up to but not including 1.
        distribution: ``global`` ranks all weights in scope together, ``uniform`` each layer by itself.

    Raises:
        ConfigError: ``sparsity`` is outside [0, 1), or ``patience`` is given: the best epoch might be one before the
            sparsity was reached.
    """

    effect: ClassVar[str] = "mask"

    sparsity: float
    distribution: Literal["global", "uniform"] = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        self.check(owner)
        if not 0 <= self.sparsity < 1:
            raise ConfigError(
                f"{owner}.sparsity is {self.sparsity}; expected a share from 0 up to but not including 1 "
                f"({self.sparsity} percent would be {self.sparsity / 100:g})"
            )
        if self.patience is not None:
            raise ConfigError(
                f"{owner}.patience is {self.patience}; expected none, the sparsity is reached only at the end: put "
                "FineTune or Distill with patience after it"
            )

    def decide(self, model: nn.Module, context: Context) -> Plan:
        """Return which layers get a mask that training will move."""
        return {
            "masked": list(weighted_layers(model, self)),
            "notes": ["a mask over dense zeros: the raw file is no smaller, the zstd one is"],
        }

    @staticmethod
    def execute(model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
        """Put a mask on each layer of the plan that keeps what is not zero yet."""
        put_masks(model, plan["masked"])
        return model

    def layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the layers whose masks move."""
        return weighted_layers(model.model if isinstance(model, Edited) else model, self)

    def prune(self, layers: Mapping[str, nn.Module], scores: Mapping[str, Tensor], sparsity: float) -> None:
        """Move the masks of ``layers`` so that the weights of highest score stay."""
        alive = masks_of(layers)
        for name, mask in strongest(scores, alive, sparsity, self.distribution).items():
            alive[name].copy_(mask)


def levels(schedule: Literal["cubic", "iterative"], start: float, end: float) -> list[float]:
    """Return the sparsities that are reached one after the other, in equal times, on the way from ``start`` to ``end``.

    ``cubic`` takes a hundred small steps along ``end + (start - end) (1 - t)^3`` (Zhu & Gupta 2017, arXiv:1710.01878,
    equation 1): fast while there is much to choose from, slowly where every weight counts. ``iterative`` takes five
    equal steps.

    >>> path = levels("cubic", 0.0, 0.9)
    >>> [round(path[k], 4) for k in (24, 49, 99)]
    [0.5203, 0.7875, 0.9]
    >>> [round(level, 2) for level in levels("iterative", 0.0, 0.9)]
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


def strongest(
    scores: Mapping[str, Tensor], alive: Mapping[str, Tensor], sparsity: float, distribution: str
) -> dict[str, Tensor]:
    """Return the masks of the weights of highest score; each layer keeps one, and what is gone stays gone.

    Args:
        scores: layer name to one score per weight, of any sign.
        alive: layer name to what is there now.
        sparsity: share of all weights that is to be gone.
        distribution: ``global`` ranks all weights together, ``uniform`` each layer by itself.

    >>> scores = {"a": torch.tensor([5.0, 6.0, 7.0, 1.0]), "b": torch.tensor([1.0, 9.0, 3.0, 2.0])}
    >>> alive = {"a": torch.tensor([True, True, False, True]), "b": torch.ones(4, dtype=torch.bool)}
    >>> [mask.tolist() for mask in strongest(scores, alive, 0.5, "global").values()]
    [[True, True, False, False], [False, True, True, False]]
    """
    ranked = {name: score.detach().masked_fill(~alive[name], -torch.inf).flatten() for name, score in scores.items()}
    # The best of each layer is safe: a layer without weights is dead for good.
    best = {name: int(score.argmax()) for name, score in ranked.items()}
    for name, place in best.items():
        ranked[name][place] = torch.inf
    if distribution == "uniform":
        kept = {name: _top(score, sparsity) for name, score in ranked.items()}
    else:
        parts = torch.split(_top(torch.cat(list(ranked.values())), sparsity), [len(s) for s in ranked.values()])
        kept = dict(zip(ranked, parts, strict=True))
    for name, place in best.items():
        kept[name][place] = True
    return {name: kept[name].view_as(alive[name]) & alive[name] for name in scores}


def _top(scores: Tensor, sparsity: float) -> Tensor:
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[scores.argsort(descending=True, stable=True)[: len(scores) - round(len(scores) * sparsity)]] = True
    return kept


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
