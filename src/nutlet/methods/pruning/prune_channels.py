"""Removal of whole channels and neurons, with everything coupled to them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from nutlet.errors import ConfigError, ModelError
from nutlet.graph.coupling import Group, coupled_groups, remove_channels
from nutlet.graph.reasons import EXCLUDED, layers_with_values
from nutlet.graph.scope import weighted_layers
from nutlet.graph.sites import walk
from nutlet.graph.work import macs
from nutlet.method import Context, Method, Plan, register

__all__ = ["PruneChannels"]


@register
@dataclass(frozen=True, kw_only=True)
class PruneChannels(Method):
    """Remove the output channels of least weight norm, through additions and concatenations (Li et al. 2017).

    Give one of ``ratio`` and ``macs``. Every group of coupled channels loses the same share, and of it
    every side of a concatenation.

    Args:
        ratio: share of the channels of each group that goes, 0 up to but not including 1.
        macs: share of the multiply-accumulates to keep; the ratio is searched.
        multiple_of: widths are rounded up to a multiple of this (runtimes like 8 or 16; FLOPs are not latency).

    Raises:
        ConfigError: not exactly one of ``ratio`` and ``macs``, or a value out of range.

    >>> PruneChannels(macs=0.5, multiple_of=16).to_dict()
    {'PruneChannels': {'macs': 0.5, 'multiple_of': 16}}
    """

    effect: ClassVar[str] = "width"
    when: ClassVar[str] = "the model must be smaller and faster on any runtime, and you can fine-tune after"
    recoverable: ClassVar[bool] = True

    ratio: float | None = None
    macs: float | None = None
    multiple_of: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.ratio is None) == (self.macs is None):
            raise ConfigError(
                "PruneChannels needs exactly one of `ratio` (channels to remove) and `macs` (work to keep)"
            )
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise ConfigError(f"PruneChannels.ratio is {self.ratio}; expected a share from 0 up to but not including 1")
        if self.macs is not None and not 0 < self.macs <= 1:
            raise ConfigError(f"PruneChannels.macs is {self.macs}; expected a share above 0 up to 1")
        if self.multiple_of < 1:
            raise ConfigError(f"PruneChannels.multiple_of is {self.multiple_of}; expected 1 or more")

    def decide(self, model: nn.Module, context: Context) -> Plan:
        """Return the channels each group loses."""
        in_scope = set(weighted_layers(model, self))
        everything, refused = coupled_groups(model, context.example)
        groups = [g for g in everything if set(g.producers) <= in_scope]
        notes = [
            f"{name}: its channels are coupled in a way that cannot be followed ({reason}); left alone"
            for name, reason in refused.items()
        ]
        if not groups:
            raise ModelError(
                "PruneChannels found no channels it can remove; expected a layer in scope that is not the output; "
                + ("; ".join(notes) or f"layers in scope: {', '.join(sorted(in_scope)) or 'none'}")
            )
        ratio = self.ratio if self.ratio is not None else self._ratio_for_macs(model, groups, context.example)
        removed = self._removed(groups, ratio)
        if not removed:
            notes.append(
                f"nothing removed: widths rounded up to multiples of {self.multiple_of} are the widths there are"
            )
        return {"removed": removed, "notes": notes}

    def _removed(self, groups: list[Group], ratio: float) -> dict[str, list[int]]:
        removed = {}
        for group in groups:
            gone: list[int] = []
            for cell in group.cells:
                wanted = round(len(cell) * (1 - ratio))
                keep = min(len(cell), max(1, -(-wanted // self.multiple_of)) * self.multiple_of)
                order = group.importance[list(cell)].argsort(stable=True)
                gone += [cell[i] for i in order[: len(cell) - keep].tolist()]
            if gone:
                removed[group.root] = sorted(gone)
        return removed

    def _ratio_for_macs(self, model: nn.Module, groups: list[Group], example: Tensor) -> float:
        """Bisect for the smallest ratio that leaves at most the asked share of the work."""
        assert self.macs is not None
        budget = self.macs * macs(walk(model, example))

        def work(ratio: float) -> int:
            trial = copy.deepcopy(model)
            remove_channels(trial, example, self._removed(groups, ratio))
            return macs(walk(trial, example))

        low, high = 0.0, 1.0
        least = work(high)
        if least > budget:
            share = least / (budget / self.macs)
            raise ConfigError(
                f"PruneChannels.macs is {self.macs}, but removing all it can leaves {share:.2f} of the work; "
                "raise `macs`, lower `multiple_of`, or put DropBlocks before it"
            )
        for _ in range(7):  # channels are whole: a finer ratio changes nothing
            middle = (low + high) / 2
            low, high = (low, middle) if work(middle) <= budget else (middle, high)
        return high

    def reasons(self, model: nn.Module, example: Tensor) -> dict[str, str]:
        """Return why layers keep their channels and those they read: how they are coupled decides."""
        in_scope = set(weighted_layers(model, self))
        groups, refused = coupled_groups(model, example)
        thinnest = copy.deepcopy(model)
        free = [group for group in groups if set(group.producers) <= in_scope]
        gone = {group.root: sorted(channel for cell in group.cells for channel in cell[:-1]) for group in free}
        remove_channels(thinnest, example, {root: channels for root, channels in gone.items() if channels})
        return {
            name: ""
            if _shapes(layer) != _shapes(thinnest.get_submodule(name))
            else refused.get(name) or (EXCLUDED if name not in in_scope else "none of its channels can go")
            for name, layer in layers_with_values(model).items()
        }

    def gentler(self) -> PruneChannels:
        """Return it with half of the channels, or half of the work, given back."""
        if self.ratio is not None:
            return replace(self, ratio=round(self.ratio / 2, 3))
        assert self.macs is not None
        return replace(self, macs=round((1 + self.macs) / 2, 3))

    @staticmethod
    def execute(model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
        """Remove the channels of the plan; constraints are carried."""
        if plan["removed"]:
            remove_channels(model, example, plan["removed"])
        return model


def _shapes(layer: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in layer.state_dict().values()]
