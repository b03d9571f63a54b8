"""A smaller student, designed from the model by width and depth."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from nutlet.errors import ConfigError, NutletError
from nutlet.graph.reinit import reinit_modules
from nutlet.graph.scope import in_scope, weighted_layers
from nutlet.methods.base import Method, Plan, register
from nutlet.methods.pruning.drop_blocks import DropBlocks, blocks_in_scope
from nutlet.methods.pruning.prune_channels import PruneChannels
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["Student"]


@register
@dataclass(frozen=True, kw_only=True)
class Student(Method):
    """Put a thinner and shallower model of the same kind in the place of the model, for ``Distill`` to teach.

    It has a share of the channels of each group that hangs together, and of the blocks that can go; see
    :class:`PruneChannels` and :class:`DropBlocks`. A student of another architecture is compressed itself, with the
    original as its teacher: ``compress(student, [Distill(epochs=30)], data, teacher=original)``.

    Args:
        width: share of the channels to keep, above 0 up to 1.
        depth: share of the removable blocks to keep, 0 to 1.
        start: ``inherited`` keeps the weights of what stays, the strongest channels and the blocks most missed;
            ``fresh`` draws new ones from the seed, by each layer's own reset.
        multiple_of: widths are rounded up to a multiple of this.

    Raises:
        ConfigError: a value out of range, or a student that is no smaller.

    >>> Student(width=0.5, start="fresh").to_dict()
    {'Student': {'width': 0.5, 'start': 'fresh'}}
    """

    effect: ClassVar[str] = "student"
    sample: ClassVar[Mapping[str, Any]] = {"width": 0.5}
    use_when: ClassVar[str] = (
        "much smaller is asked for and there is time to train: a thinner, shallower net, then Distill"
    )
    recoverable: ClassVar[bool] = True

    width: float = 1.0
    depth: float = 1.0
    start: Literal["inherited", "fresh"] = "inherited"
    multiple_of: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.width <= 1:
            raise ConfigError(f"Student.width is {self.width}; expected a share of the channels above 0 up to 1")
        if not 0 <= self.depth <= 1:
            raise ConfigError(f"Student.depth is {self.depth}; expected a share of the blocks from 0 to 1")
        if self.width == self.depth == 1:
            raise ConfigError("Student.width and depth are both 1; expected one of them below: a student is smaller")
        if self.multiple_of < 1:
            raise ConfigError(f"Student.multiple_of is {self.multiple_of}; expected 1 or more")
        if self.multiple_of > 1 and self.width == 1:
            raise ConfigError("Student.multiple_of rounds widths; found it with width 1, which leaves them as they are")

    def skip_reasons(self, model: nn.Module, example: Inputs) -> dict[str, str]:
        """Return why layers are left alone; a model that :meth:`plan` refuses is refused here already."""
        weighted_layers(model, self)
        if self.depth < 1:
            blocks_in_scope(model, example, self)
        elif self.start == "inherited":
            return self._thinner.skip_reasons(model, example)
        else:
            self._thinner.skip_reasons(model, example)  # or it says that nothing can be thinner
        return super().skip_reasons(model, example)

    @property
    def _thinner(self) -> PruneChannels:
        return PruneChannels(
            ratio=1 - self.width, multiple_of=self.multiple_of, include=self.include, exclude=self.exclude
        )

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the blocks and channels that go, and new weights for a fresh start."""
        weighted_layers(model, self)  # or it says, in the name of this method, why there are none
        trial, example = copy.deepcopy(model), context.example
        plan: Plan = {"dropped": [], "removed": {}, "notes": []}
        if self.depth < 1:
            blocks = blocks_in_scope(model, example, self)
            gone = max(1, round((1 - self.depth) * len(blocks)))
            _take_over(plan, DropBlocks(drop=gone, include=self.include, exclude=self.exclude).plan(trial, context))
            trial = DropBlocks.apply(trial, plan, example)
        if self.width < 1:
            try:
                _take_over(plan, self._thinner.plan(trial, context))
            except NutletError as error:
                if not plan["dropped"]:
                    raise
                plan["notes"].append(f"no thinner where blocks are gone: {error}")
            trial = PruneChannels.apply(trial, plan, example)
        if self.start == "fresh":
            names = [name for name, _ in trial.named_modules()]
            kept = reinit_modules(trial, context.seed, set(in_scope(names, self, names)))
            plan["notes"] += [
                f"{name or 'the model itself'}: has no reset_parameters; keeps its values" for name in kept
            ]
            plan["values"] = {name: tensor.detach().clone() for name, tensor in trial.state_dict().items()}
        return plan

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Take out the blocks, then the channels of what is left."""
        return PruneChannels.apply(DropBlocks.apply(model, plan, example), plan, example)


def _take_over(plan: Plan, part: Plan) -> None:
    plan["notes"] += part.pop("notes")
    plan |= part
