"""Removal of whole channels and neurons, with everything coupled to them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.errors import ConfigError, ModelError
from nutlet.graph.coupling import Group, coupled_groups, refused_removals, remove_channels
from nutlet.graph.reasons import EXCLUDED, layers_with_values
from nutlet.graph.scope import weighted_layers
from nutlet.graph.sites import walk
from nutlet.graph.work import macs
from nutlet.method import Context, Method, Plan, register
from nutlet.methods.pruning.channel_scores import ChannelCriterion, channel_scores

__all__ = ["PruneChannels"]


@register
@dataclass(frozen=True, kw_only=True)
class PruneChannels(Method):
    """Remove the output channels that matter least, through additions and concatenations.

    Give one of ``ratio`` and ``macs``. Channels that are coupled go together, by the sum of their scores; each side of
    a concatenation keeps one at least.

    Args:
        ratio: share of the channels that goes, 0 up to but not including 1.
        macs: share of the multiply-accumulates to keep; the ratio is searched.
        multiple_of: widths are rounded up to a multiple of this (runtimes like 8 or 16; FLOPs are not latency).
        criterion: ``magnitude`` is the norm of the weights that make and read a channel (Li et al. 2017,
            arXiv:1608.08710); ``activation`` the mean size of what the channel gives; ``taylor`` what the loss changes
            by to first order (Molchanov et al. 2019, arXiv:1906.10771); ``second-order`` to second order, with the
            diagonal of the Fisher information. All but the first look at the calibration examples. The last two
            chose worse than ``magnitude`` on a ResNet-20 whose training data it knew by heart: measure before use.
        distribution: ``uniform`` takes the same share of every group of coupled channels, ``global`` ranks the channels
            of all groups together (sizes relative to the mean of their group; changes of the loss as they are).

    Raises:
        ConfigError: not exactly one of ``ratio`` and ``macs``, or a value out of range.

    >>> PruneChannels(macs=0.5, multiple_of=16).to_dict()
    {'PruneChannels': {'macs': 0.5, 'multiple_of': 16}}
    """

    effect: ClassVar[str] = "width"
    sample: ClassVar[Mapping[str, Any]] = {"ratio": 0.25}
    when: ClassVar[str] = "the model must be smaller and faster on any runtime, and you can fine-tune after"
    recoverable: ClassVar[bool] = True

    ratio: float | None = None
    macs: float | None = None
    multiple_of: int = 1
    criterion: ChannelCriterion = "magnitude"
    distribution: Literal["uniform", "global"] = "uniform"

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
        scores = self._scores(model, groups, context)
        ratio = self.ratio if self.ratio is not None else self._ratio_for_macs(model, groups, scores, context.example)
        removed = self._removed(groups, scores, ratio)
        if not removed:
            notes.append(
                f"nothing removed: widths rounded up to multiples of {self.multiple_of} are the widths there are"
            )
        for root, reason in refused_removals(model, context.example, removed).items():
            del removed[root]
            notes.append(f"{root}: {reason}; left alone")
        return {"removed": removed, "notes": notes}

    def _scores(self, model: nn.Module, groups: list[Group], context: Context) -> dict[str, Tensor]:
        if self.criterion == "magnitude":
            scores = {group.root: group.importance for group in groups}
        else:
            producers = dict.fromkeys(name for group in groups for name in group.producers)
            own = channel_scores(model, producers, self.criterion, context.data.calibration, context.loss)
            scores = {group.root: group.summed(own) for group in groups}
        if self.criterion in ("magnitude", "activation"):
            return {root: score / score.mean().clamp_min(1e-12) for root, score in scores.items()}
        return scores

    def _removed(self, groups: list[Group], scores: dict[str, Tensor], ratio: float) -> dict[str, list[int]]:
        weakest = torch.cat([scores[group.root] for group in groups]).sort(stable=True).values
        # Below this score a channel goes, where all are ranked together.
        bar = float(weakest[min(round(len(weakest) * ratio), len(weakest) - 1)])
        removed = {}
        for group in groups:
            gone: list[int] = []
            for cell in group.cells:
                score = scores[group.root][list(cell)]
                wanted = int((score >= bar).sum()) if self.distribution == "global" else round(len(cell) * (1 - ratio))
                keep = min(len(cell), max(1, -(-wanted // self.multiple_of)) * self.multiple_of)
                gone += [cell[i] for i in score.argsort(stable=True)[: len(cell) - keep].tolist()]
            if gone:
                removed[group.root] = sorted(gone)
        return removed

    def _ratio_for_macs(
        self, model: nn.Module, groups: list[Group], scores: dict[str, Tensor], example: Tensor
    ) -> float:
        """Bisect for the smallest ratio that leaves at most the asked share of the work."""
        assert self.macs is not None
        budget = self.macs * macs(walk(model, example))

        def work(ratio: float) -> int:
            trial = copy.deepcopy(model)
            remove_channels(trial, example, self._removed(groups, scores, ratio))
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
