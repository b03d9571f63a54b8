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

from nutlet.errors import ConfigError, ModelError, NutletError, first_line, nearest
from nutlet.graph.comparison import run
from nutlet.graph.modules import Passthrough, replace
from nutlet.graph.residual import residual_units
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
    """Take out blocks that can be skipped, for their output has the shape of their input, the least missed first.

    A block is a submodule with weighted layers inside it. Residual units, with an identity shortcut from input to
    output, go before all others, and no part of one goes alone; of blocks within blocks the smallest in scope, or the
    one that ``include`` names. After each removal what the next one costs is measured anew: the loss on the calibration
    examples without the block (greedy, as in Elkerdawy et al. 2020, arXiv:2007.04069, and Men et al. 2024,
    arXiv:2403.03853, who rank once).

    Args:
        drop: how many blocks to remove.
        pattern: name of the blocks, part by part: ``features.*`` is what lies in ``features`` and nothing deeper. What
            it says is what can go, residual unit or not; without it the rule above chooses.

    Raises:
        ConfigError: ``drop`` is not positive, or larger than the number of blocks that can go; no block has a name of
            ``pattern``.

    >>> DropBlocks(drop=2, pattern="layer*.*").to_dict()
    {'DropBlocks': {'drop': 2, 'pattern': 'layer*.*'}}
    """

    separable: ClassVar[tuple[str, ...]] = ("dropped",)
    effect: ClassVar[str] = "depth"
    use_when: ClassVar[str] = "the model must be fast at batch 1: latency follows depth more than work"
    recoverable: ClassVar[bool] = True
    sample: ClassVar[Mapping[str, Any]] = {"drop": 1}

    drop: Annotated[int, Range(1, noun="a number of blocks")]
    pattern: str | None = None

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the blocks to drop, in the order in which they were chosen."""
        candidates = blocks_in_scope(model, context.example, self, self.pattern)
        units = self._first(model, context.example, candidates)
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
                losses: dict[str, float] = {}
                while not losses:  # of units that cannot go, none is left after the first time
                    left = [name for name in candidates if name not in dropped]
                    changes = {name: _without(trial, name) for name in [u for u in left if u in units] or left}
                    losses = sensitivities(
                        changes, partial(_loss, context=context), context.progress, "one block dropped", failed
                    )
                least = min(losses, key=lambda name: losses[name])
                replace(trial, least, Passthrough())
                dropped.append(least)
                what = least if least in units or not units else f"{least}, which is no residual unit (all are gone)"
                notes.append(f"dropped {what}: loss on calibration data without it {losses[least]:.3f}")
                task.advance()
        return {"dropped": dropped, "notes": notes}

    def skip_reasons(self, model: nn.Module, example: Inputs) -> dict[str, str]:
        """Return the layers that are inside no block which can go."""
        candidates = blocks_in_scope(model, example, self, self.pattern)
        self._check_enough(candidates, [])
        blocks = tuple(f"{block}." for block in candidates)
        inside = {name: f"{name}.".startswith(blocks) for name in layers_with_values(model)}
        return {name: "" if within else "in no block that can go" for name, within in inside.items()}

    def calibration_passes(self, model: nn.Module, example: Inputs) -> tuple[int, int]:
        """Return the passes of the greedy search; one that cannot go is tried once in vain."""
        candidates = blocks_in_scope(model, example, self, self.pattern)
        units = len(self._first(model, example, candidates))
        trials = _trials(units, min(self.drop, units))
        trials += _trials(len(candidates) - units, max(0, self.drop - units))
        return trials, trials

    def milder(self) -> DropBlocks | None:
        """Return it with one block fewer to drop."""
        return dataclasses.replace(self, drop=self.drop - 1) if self.drop > 1 else None

    def _first(self, model: nn.Module, example: Inputs, candidates: list[str]) -> list[str]:
        """Return the candidates that go before the others; none where the pattern has chosen."""
        return [] if self.pattern is not None else residual_units(model, example, candidates)

    def _check_enough(self, candidates: list[str], notes: list[str]) -> None:
        if self.drop > len(candidates):
            which = "; ".join([", ".join(candidates), *notes])
            hint = "" if self.pattern is not None else "; parts of residual units go where `pattern` names them"
            raise ConfigError(
                f"DropBlocks.drop is {self.drop}, but only {len(candidates)} blocks can go: {which}{hint}"
            )

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


def blocks_in_scope(model: nn.Module, example: Inputs, method: Method, pattern: str | None = None) -> list[str]:
    """Return the names of the blocks that ``method`` may remove.

    Args:
        model: not changed.
        example: two inputs.
        method: its ``include`` and ``exclude`` are applied.
        pattern: of their names, part by part.

    Raises:
        ModelError: the model has no block.
        ConfigError: no block has a name of ``pattern``; see :func:`nutlet.graph.scope.in_scope` too.
    """
    blocks = droppable(model, example)
    if not blocks:
        raise ModelError(
            f"{type(method).__name__} found no block; expected a submodule with dense layers or convolutions inside it "
            "whose output has the shape of its input (residual blocks, transformer layers)"
        )
    names = [name for name, _ in model.named_modules() if "parametrizations" not in name]
    free = set(in_scope(names, method, names))
    # A block goes with all that is inside it.
    whole = [b for b in in_scope(blocks, method, names) if all(n in free for n in names if n.startswith(b + "."))]
    if pattern is not None:
        return _matching(whole, pattern, type(method).__name__)
    # No part of a residual unit goes alone: it was trained together with the shortcut around it.
    units = _smallest(residual_units(model, example, whole), method.include)
    others = [b for b in whole if not any(b == unit or _within(b, unit) or _within(unit, b) for unit in units)]
    chosen = {*units, *_smallest(others, method.include)}
    return [block for block in whole if block in chosen]


def _within(inner: str, holder: str) -> bool:
    return inner.startswith(holder + ".")


def _matching(blocks: list[str], pattern: str, owner: str) -> list[str]:
    """Return the blocks whose names fit ``pattern`` part by part.

    >>> _matching(["a.0", "a.0.conv", "a.1"], "a.*", "DropBlocks")
    ['a.0', 'a.1']
    """
    parts = pattern.split(".")
    fitting = [
        block
        for block in blocks
        if len(block.split(".")) == len(parts) and all(map(fnmatchcase, block.split("."), parts))
    ]
    if not fitting:
        raise ConfigError(
            f"{owner}.pattern is {pattern!r}, which fits the name of no block that can go; expected one part for each "
            f"part of a name; {nearest(pattern, blocks)}"
        )
    return fitting


def droppable(model: nn.Module, example: Inputs) -> list[str]:
    """Return the names of the submodules that hold weighted layers and keep the shape of their first, one tensor."""
    shapes: dict[str, list[bool]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            taken = [a.shape if isinstance(a, Tensor) else None for a in args]
            same = isinstance(output, Tensor) and taken[:1] == [output.shape] and not any(taken[1:])
            shapes.setdefault(name, []).append(same)

        return hook

    handles = [module.register_forward_hook(note(name), with_kwargs=True) for name, module in _containers(model)]
    try:
        run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, _ in model.named_modules() if shapes.get(name) == [True]]


def _smallest(blocks: list[str], include: Iterable[str]) -> list[str]:
    """Return the blocks with no other inside; what is inside a block that a pattern names counts only if named too.

    >>> _smallest(["a", "a.0", "a.1", "b", "b.0"], ["a", "b*"])
    ['a', 'b.0']
    """
    named = [b for b in blocks if any(fnmatchcase(b, pattern) for pattern in include)]
    counted = [b for b in blocks if b in named or not any(b.startswith(holder + ".") for holder in named)]
    return [b for b in counted if not any(inner.startswith(b + ".") for inner in counted)]


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
