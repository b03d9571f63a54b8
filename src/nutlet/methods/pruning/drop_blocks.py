"""Removal of whole blocks (depth pruning)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from nutlet.errors import ConfigError, ModelError, NutletError, first_line
from nutlet.graph.comparison import run
from nutlet.graph.modules import Passthrough, replace
from nutlet.graph.scope import Layer, in_scope
from nutlet.graph.skip_reasons import layers_with_values
from nutlet.methods.base import Method, Plan, register
from nutlet.methods.sensitivity import sensitivities
from nutlet.options import Range
from nutlet.tasks.inputs import Inputs
from nutlet.tasks.predict import evaluating
from nutlet.training.context import Context

__all__ = ["DropBlocks", "blocks_in_scope"]


@register
@dataclass(frozen=True, kw_only=True)
class DropBlocks(Method):
    """Replace blocks whose output has the shape of their input by the identity, the least missed first.

    A block is a submodule with weighted layers inside it. Residual units, with an identity shortcut around all their
    layers, are preferred to other blocks, and these to what is inside of a unit, as long as there are as many in scope
    as ``drop`` asks for; patterns of ``include`` choose what they name. Of blocks within blocks the smallest counts, or
    the one that is named. After each removal what the next one costs is measured anew: the loss on the calibration
    examples without the block (greedy, as in Elkerdawy et al. 2020, arXiv:2007.04069, and Men et al. 2024,
    arXiv:2403.03853, who rank once).

    Args:
        drop: how many blocks to remove.

    Raises:
        ConfigError: ``drop`` is not positive, or larger than the number of blocks that can go.
    """

    separable: ClassVar[tuple[str, ...]] = ("dropped",)
    effect: ClassVar[str] = "depth"
    use_when: ClassVar[str] = "the model must be fast at batch 1: latency follows depth more than work"
    recoverable: ClassVar[bool] = True
    sample: ClassVar[Mapping[str, Any]] = {"drop": 1}

    drop: Annotated[int, Range(1, noun="a number of blocks")]

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the blocks to drop, in the order in which they were chosen."""
        candidates = blocks_in_scope(model, context.example, self, self.drop)
        notes: list[str] = []
        self._check_enough(candidates, notes)
        trial = copy.deepcopy(model)
        dropped: list[str] = []

        def failed(name: str, error: Exception) -> None:
            if isinstance(error, NutletError):
                raise error
            reason = f"{type(error).__name__}: {first_line(error)}"
            notes.append(f"{name}: the model does not run without it ({reason}); left alone")
            candidates.remove(name)
            self._check_enough(candidates, notes)

        with context.progress.task("dropping blocks", total=self.drop) as task:
            for _ in range(self.drop):
                changes = {name: _without(trial, name) for name in candidates if name not in dropped}
                losses = sensitivities(
                    changes, partial(_loss, context=context), context.progress, "one block dropped", failed
                )
                least = min(losses, key=lambda name: losses[name])
                replace(trial, least, Passthrough())
                dropped.append(least)
                notes.append(f"dropped {least}: loss on calibration data without it {losses[least]:.3f}")
                task.advance()
        return {"dropped": dropped, "notes": notes}

    def skip_reasons(self, model: nn.Module, example: Inputs) -> dict[str, str]:
        """Return the layers that are inside no block which can go."""
        candidates = blocks_in_scope(model, example, self, self.drop)
        self._check_enough(candidates, [])
        blocks = tuple(f"{block}." for block in candidates)
        inside = {name: f"{name}.".startswith(blocks) for name in layers_with_values(model)}
        return {name: "" if within else "in no block that can go" for name, within in inside.items()}

    def calibration_passes(self, model: nn.Module, example: Inputs) -> tuple[int, int]:
        """Return the passes of the greedy search; one that cannot go is tried once in vain."""
        trials = _trials(len(blocks_in_scope(model, example, self, self.drop)), self.drop)
        return trials, trials

    def milder(self) -> DropBlocks | None:
        """Return it with one block fewer to drop."""
        return dataclasses.replace(self, drop=self.drop - 1) if self.drop > 1 else None

    def _check_enough(self, candidates: list[str], notes: list[str]) -> None:
        if self.drop > len(candidates):
            which = "; ".join([", ".join(candidates), *notes])
            raise ConfigError(f"DropBlocks.drop is {self.drop}, but only {len(candidates)} blocks can go: {which}")

    def reference(self, model: nn.Module, plan: Plan, example: Inputs) -> nn.Module | None:
        """Return the model with each block in its place, and giving back what it was given."""
        silenced = copy.deepcopy(model)
        for name in plan["dropped"]:
            setattr(silenced.get_submodule(name), "forward", _first)  # noqa: B010  a method, says mypy
        return silenced

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Put an identity in the place of each block; constraints inside go with it."""
        for name in plan["dropped"]:
            replace(model, name, Passthrough())
        return model


def blocks_in_scope(model: nn.Module, example: Inputs, method: Method, wanted: int = 1) -> list[str]:
    """Return the names of the blocks that ``method`` may remove, residual units alone where enough are there.

    Raises:
        ModelError: the model has no block.
        ConfigError: see :func:`nutlet.graph.scope.in_scope`.
    """
    blocks, residual = droppable(model, example)
    if not blocks:
        raise ModelError(
            f"{type(method).__name__} found no block; expected a submodule with dense layers or convolutions inside it "
            "whose output has the shape of its input (residual blocks, transformer layers)"
        )
    names = [name for name, _ in model.named_modules() if "parametrizations" not in name]
    free = set(in_scope(names, method, names))
    # A block goes with all that is inside it.
    whole = [b for b in in_scope(blocks, method, names) if all(n in free for n in names if n.startswith(b + "."))]
    units = _smallest([block for block in whole if block in residual], method.include)
    if len(units) < wanted:
        apart = [block for block in whole if not any(_nested(block, unit) for unit in units)]
        units = [block for block in whole if block in {*units, *_smallest(apart, method.include)}]
    return units if len(units) >= wanted else _smallest(whole, method.include)


def droppable(model: nn.Module, example: Inputs) -> tuple[list[str], set[str]]:
    """Return the submodules that hold weighted layers and keep the shape of their first, one tensor; residual ones too.

    Returns:
        Their names in order, and those of which something is an identity shortcut around all layers: with the outputs
        of these at zero, what goes in comes out.
    """
    shapes: dict[str, list[bool]] = {}
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            taken = [a.shape if isinstance(a, Tensor) else None for a in args]
            same = isinstance(output, Tensor) and taken[:1] == [output.shape] and not any(taken[1:])
            shapes.setdefault(name, []).append(same)
            calls[name] = args, kwargs

        return hook

    handles = [module.register_forward_hook(note(name), with_kwargs=True) for name, module in _containers(model)]
    try:
        run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    blocks = [name for name, _ in model.named_modules() if shapes.get(name) == [True]]
    return blocks, {name for name in blocks if _has_shortcut(model.get_submodule(name), *calls[name])}


def _has_shortcut(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a block gives back what it is given where its layers and batch norms give zero.

    It is given what is not negative, for many blocks end in an activation that cuts off the rest.
    """

    def silent(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return tree_map_only(Tensor, torch.zeros_like, output)

    silenced = [m for m in block.modules() if isinstance(m, (Layer, _BatchNorm, nn.MultiheadAttention))]
    handles = [module.register_forward_hook(silent) for module in silenced]
    x = args[0].abs()
    try:
        with evaluating(block), torch.no_grad():
            output = block(x, *args[1:], **kwargs)
        return isinstance(output, Tensor) and output.shape == x.shape and torch.allclose(output, x, rtol=1e-4)
    except Exception:  # the forward is the user's code, and is given inputs here that it may refuse
        return False
    finally:
        for handle in handles:
            handle.remove()


def _smallest(blocks: list[str], include: Iterable[str]) -> list[str]:
    """Return the blocks with no other inside; what is inside a block that a pattern names counts only if named too.

    >>> _smallest(["a", "a.0", "a.1", "b", "b.0"], ["a", "b*"])
    ['a', 'b.0']
    """
    named = [b for b in blocks if any(fnmatchcase(b, pattern) for pattern in include)]
    counted = [b for b in blocks if b in named or not any(b.startswith(holder + ".") for holder in named)]
    return [b for b in counted if not any(inner.startswith(b + ".") for inner in counted)]


def _nested(one: str, other: str) -> bool:
    """Whether one of two modules is the other, or inside of it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _containers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield submodules that hold weighted layers below them."""
    for name, module in model.named_modules():
        if name and not isinstance(module, Layer) and any(isinstance(child, Layer) for child in module.modules()):
            yield name, module


def _first(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x


def _trials(candidates: int, drop: int) -> int:
    return sum(candidates - k for k in range(drop))


@contextmanager
def _without(model: nn.Module, name: str) -> Iterator[nn.Module]:
    block = model.get_submodule(name)
    replace(model, name, Passthrough())
    try:
        yield model
    finally:
        replace(model, name, block)


def _loss(model: nn.Module, context: Context) -> float:
    """Return the mean loss on the calibration examples."""
    total = 0.0
    with evaluating(model), torch.no_grad():
        for x, y in context.data.calibration.batches():
            total += float(context.loss(x, model(x), y)) * len(y)
    return total / len(context.data.calibration)
