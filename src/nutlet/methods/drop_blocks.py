"""Removal of whole blocks (depth pruning)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.errors import ConfigError, ModelError
from nutlet.graph.fold import replace
from nutlet.graph.scope import Layer, in_scope
from nutlet.method import Context, Method, Plan, register
from nutlet.predict import evaluating

__all__ = ["DropBlocks"]


@register
@dataclass(frozen=True, kw_only=True)
class DropBlocks(Method):
    """Replace blocks whose output has the shape of their input by the identity, the least missed first.

    A block is a submodule with weighted layers inside it, smallest such modules only. After each removal what the
    next one costs is measured anew: the loss on the calibration examples without the block (greedy, as in
    Elkerdawy et al. 2020, arXiv:2007.04069, and Men et al. 2024, arXiv:2403.03853, who rank once).

    Args:
        drop: how many blocks to remove.

    Raises:
        ConfigError: ``drop`` is not positive, or larger than the number of blocks that can go.
    """

    when: ClassVar[str] = "the model must be fast at batch 1: latency follows depth more than work"
    recoverable: ClassVar[bool] = True

    drop: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop < 1:
            raise ConfigError(f"DropBlocks.drop is {self.drop}; expected the number of blocks to remove, 1 or more")

    def decide(self, model: nn.Module, context: Context) -> Plan:
        """Return the blocks to drop, in the order in which they were chosen."""
        blocks = droppable(model, context.example)
        if not blocks:
            raise ModelError(
                "DropBlocks found no block; expected a submodule with dense layers or convolutions inside it whose "
                "output has the shape of its input (residual blocks, transformer layers)"
            )
        names = [name for name, _ in model.named_modules() if "parametrizations" not in name]
        free = set(in_scope(names, self, names))
        # A block goes with all that is inside it.
        candidates = [
            b for b in in_scope(blocks, self, names) if all(n in free for n in names if n.startswith(b + "."))
        ]
        if self.drop > len(candidates):
            raise ConfigError(
                f"DropBlocks.drop is {self.drop}, but only {len(candidates)} blocks can go: {', '.join(candidates)}"
            )
        trial = copy.deepcopy(model)
        dropped: list[str] = []
        notes = []
        with context.progress.task("scoring blocks", total=_trials(len(candidates), self.drop)) as task:
            for _ in range(self.drop):
                costs = {}
                for name in candidates:
                    if name not in dropped:
                        costs[name] = _loss_without(trial, name, context)
                        task.advance()
                least = min(costs, key=lambda name: costs[name])
                replace(trial, least, nn.Identity())
                dropped.append(least)
                notes.append(f"dropped {least}: loss on calibration data without it {costs[least]:.3f}")
        return {"dropped": dropped, "notes": notes}

    @staticmethod
    def execute(model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
        """Put an identity in the place of each block; constraints inside go with it."""
        for name in plan["dropped"]:
            replace(model, name, nn.Identity())
        return model


def droppable(model: nn.Module, example: Tensor) -> list[str]:
    """Return the names of the smallest submodules that hold weighted layers and keep the shape of their one input."""
    shapes: dict[str, list[bool]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            same = len(args) == 1 and isinstance(output, Tensor) and getattr(args[0], "shape", None) == output.shape
            shapes.setdefault(name, []).append(same)

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in _containers(model)]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    keeping = [name for name, calls in shapes.items() if calls == [True]]
    order = [name for name, _ in model.named_modules()]
    return sorted((n for n in keeping if not any(o.startswith(n + ".") for o in keeping)), key=order.index)


def _containers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield submodules that hold weighted layers below them."""
    for name, module in model.named_modules():
        if name and not isinstance(module, Layer) and any(isinstance(child, Layer) for child in module.modules()):
            yield name, module


def _trials(candidates: int, drop: int) -> int:
    return sum(candidates - k for k in range(drop))


def _loss_without(model: nn.Module, name: str, context: Context) -> float:
    block = model.get_submodule(name)
    replace(model, name, nn.Identity())
    total = 0.0
    with evaluating(model), torch.no_grad():
        for x, y in context.data.calibration.batches():
            total += float(F.cross_entropy(model(x), y, reduction="sum"))
    replace(model, name, block)
    return total / len(context.data.calibration)
