"""Removal of whole channels and neurons, with everything coupled to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.errors import ConfigError, ModelError
from nutlet.graph.coupling.group import Group
from nutlet.graph.coupling.groups import Coupling, refitted, remove_channels, silenced
from nutlet.graph.macs import macs
from nutlet.graph.scope import in_scope, weighted_layers
from nutlet.graph.skip_reasons import EXCLUDED, layers_with_values
from nutlet.graph.trace import trace
from nutlet.methods.base import Method, Plan, register
from nutlet.methods.pruning.channel_scores import ChannelCriterion, channel_scores, relative_to_left
from nutlet.methods.pruning.own_scores import named
from nutlet.options import BelowOne, Count, UpToOne
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["PruneChannels"]


@register
@dataclass(frozen=True, kw_only=True)
class PruneChannels(Method):
    """Remove the output channels that matter least, through additions and concatenations.

    Give one of ``ratio`` and ``macs``. Channels that are coupled go together, by the sum of their scores; each side of
    a concatenation keeps one at least. Where a forward makes heads of its inputs' width, heads and inputs lose the same
    share: with four heads, a quarter or a half. A layer that is excluded keeps its outputs, and reads fewer inputs
    where the layers before it make fewer.

    Args:
        ratio: share of the channels that goes, 0 up to but not including 1.
        macs: share of the multiply-accumulates to keep; the ratio is searched.
        multiple_of: widths are rounded up to a multiple of this (runtimes like 8 or 16; FLOPs are not latency).
        criterion: ``magnitude`` is the square of the weights that make and read a channel, as share of each layer and
            summed over what is coupled (Fang et al. 2023, arXiv:2301.12900, sum the squares alone); ``activation`` the
            mean size of what the channel gives, as share; ``taylor`` what the loss changes by to first order (Molchanov
            et al. 2019, arXiv:1906.10771); ``second-order`` to second order, with the diagonal of the Fisher
            information. All but the first look at the calibration examples. The last two chose worse than
            ``magnitude`` on a ResNet-20 whose training data it knew by heart: measure before use. Or a function
            ``(model, layers, context)`` of your own, with one score for each output channel of each layer
            (:data:`~nutlet.methods.pruning.own_scores.Scorer`).
        distribution: ``uniform`` takes the same share of every group of coupled channels; ``global`` ranks the channels
            of all groups together, by score for each multiply-accumulate that goes with them, shares relative to those
            of channels that are no weaker (LAMP: Lee et al. 2021, arXiv:2010.07611). Without it, ``global`` for
            ``macs`` and ``uniform`` for ``ratio``.

    Raises:
        ConfigError: not exactly one of ``ratio`` and ``macs``, or a value out of range.

    >>> PruneChannels(macs=0.5, multiple_of=16).to_dict()
    {'PruneChannels': {'macs': 0.5, 'multiple_of': 16}}
    """

    effect: ClassVar[str] = "width"
    sample: ClassVar[Mapping[str, Any]] = {"ratio": 0.25}
    use_when: ClassVar[str] = "the model must be smaller and faster on any runtime, and you can fine-tune after"
    recoverable: ClassVar[bool] = True

    ratio: BelowOne | None = None
    macs: UpToOne | None = None
    multiple_of: Count = 1
    criterion: ChannelCriterion = "magnitude"
    distribution: Literal["uniform", "global"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.ratio is None) == (self.macs is None):
            raise ConfigError(
                "PruneChannels needs exactly one of `ratio` (channels to remove) and `macs` (work to keep)"
            )

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the channels each group loses."""
        coupling = Coupling(model, context.example)
        groups, notes = self._free(model, coupling)
        scores = self._scores(model, coupling, groups, context)
        ratio = self.ratio if self.ratio is not None else self._ratio_for_macs(coupling, groups, scores)
        removed = self._removed(groups, scores, ratio)
        notes += [
            f"{group.root}: of each group the same channels would go, which costs far more than the weakest; left alone"
            for group, gone in self._weakest(groups, scores, ratio)
            if group.forced(gone)
        ]
        if not removed:
            rounded = f", rounded up to a multiple of {self.multiple_of}," if self.multiple_of > 1 else ""
            notes.append(f"nothing removed: what each group keeps{rounded} is all of its channels")
        removed, attributes, refused = coupling.tried(removed)
        notes += [f"{root}: {reason}; left alone" for root, reason in refused.items()]
        if refused and self.macs is not None:
            left = macs(trace(coupling.thinner(removed), context.example)) / macs(
                trace(coupling.model, context.example)
            )
            notes.append(
                f"{left:.3f} of the work is left, and {self.macs} was asked for: lower `macs` to make up for it"
            )
        plan = {"removed": removed, "attributes": attributes, "notes": notes}
        return plan | refitted(model, plan, context.example)

    def _free(self, model: nn.Module, coupling: Coupling) -> tuple[list[Group], list[str]]:
        """Return the groups that modules in scope make alone, and sentences about channels that cannot be followed."""
        layers = weighted_layers(model, self)  # or it says why there are none
        modules = [name for name, _ in model.named_modules()]
        free = {"", *in_scope(modules, self, modules)}
        notes = [
            f"{name}: its channels are coupled in a way that cannot be followed ({reason}); left alone"
            for name, reason in coupling.refused.items()
        ]
        held = {group.tie for group in coupling.groups if not free.issuperset(group.producers)}
        if self.criterion != "magnitude":
            unscored = [group for group in coupling.groups if not group.made]
            held |= {group.tie for group in unscored}
            notes += [
                f"{group.root}: criterion {named(self.criterion)} is for dense layers and convolutions; left alone"
                for group in unscored
            ]
        groups = [group for group in coupling.groups if group.tie not in held]
        if not groups:
            raise ModelError(
                "PruneChannels found no channels it can remove; expected a layer in scope that is not the output; "
                + ("; ".join(notes) or f"layers in scope: {', '.join(layers) or 'none'}")
            )
        return groups, notes

    @property
    def _ranks_all(self) -> bool:
        return self.distribution == "global" or (self.distribution is None and self.macs is not None)

    def _scores(self, model: nn.Module, coupling: Coupling, groups: list[Group], context: Context) -> list[Tensor]:
        if self.criterion == "magnitude":
            scores = [group.importance for group in groups]
        else:
            producers = dict.fromkeys(name for group in groups for name in group.made)
            own = channel_scores(model, producers, self.criterion, context)
            scores = [group.summed(own) for group in groups]
        if not self._ranks_all:
            return scores
        if self.criterion in ("magnitude", "activation"):
            scores = [relative_to_left(score) for score in scores]
        return [score / max(work, 1.0) for score, work in zip(scores, coupling.work(groups), strict=True)]

    def _weakest(self, groups: list[Group], scores: list[Tensor], ratio: float) -> Iterator[tuple[Group, list[int]]]:
        """Yield the channels that each group would lose, the weakest first."""
        weakest = torch.cat(scores).sort(stable=True).values
        # Below this score a channel goes, where all are ranked together.
        bar = float(weakest[min(round(len(weakest) * ratio), len(weakest) - 1)])
        wanted = {
            group: float((score >= bar).float().mean()) if self._ranks_all else 1 - ratio
            for group, score in zip(groups, scores, strict=True)
        }
        for group, score in zip(groups, scores, strict=True):
            tied = {other: share for other, share in wanted.items() if other.tie == group.tie}
            yield group, score.argsort(stable=True)[: self._gone(tied, group)].tolist()

    def _gone(self, tied: Mapping[Group, float], group: Group) -> int:
        """Return how many channels ``group`` loses, where those tied to it want to keep these shares of theirs."""
        shares = math.gcd(*(other.channels for other in tied))
        keep = max(1, round(shares * sum(tied.values()) / len(tied)))
        while keep < shares and any(other.width * keep // shares % self.multiple_of for other in tied):
            keep += 1
        return group.channels // shares * (shares - keep)

    def _removed(self, groups: list[Group], scores: list[Tensor], ratio: float) -> dict[str, list[int]]:
        removed: dict[str, list[int]] = {}
        for group, gone in self._weakest(groups, scores, ratio):
            if gone and not group.forced(gone):
                removed[group.root] = sorted([*removed.get(group.root, []), *(group.places[k] for k in gone)])
        return removed

    def _ratio_for_macs(self, coupling: Coupling, groups: list[Group], scores: list[Tensor]) -> float:
        """Bisect for the smallest ratio that leaves at most the asked share of the work."""
        assert self.macs is not None
        example = coupling.example
        budget = self.macs * macs(trace(coupling.model, example))

        def work(ratio: float) -> int:
            return macs(trace(coupling.thinner(self._removed(groups, scores, ratio)), example))

        low, high = 0.0, 1.0
        least = work(high)
        if least > budget:
            share = least / (budget / self.macs)
            raise ConfigError(
                f"PruneChannels.macs is {self.macs}, but removing all it can leaves {share:.2f} of the work; "
                "raise `macs`, lower `multiple_of`, or put DropBlocks before it"
            )
        for _ in range(10):  # to one channel of a thousand
            middle = (low + high) / 2
            if self._removed(groups, scores, low) == self._removed(groups, scores, high):
                break  # channels are whole: a finer ratio changes nothing
            low, high = (low, middle) if work(middle) <= budget else (middle, high)
        return high

    def skip_reasons(self, model: nn.Module, example: Inputs) -> dict[str, str]:
        """Return why layers keep their channels and those they read: how they are coupled decides."""
        coupling = Coupling(model, example)
        thinner = coupling.touched(self._free(model, coupling)[0])
        modules = [name for name, _ in model.named_modules()]
        free = set(in_scope(modules, self, modules))
        return {
            name: ""
            if name in thinner
            else coupling.refused.get(name) or (EXCLUDED if name not in free else "none of its channels can go")
            for name in layers_with_values(model)
        }

    def milder(self) -> PruneChannels:
        """Return it with half of the channels, or half of the work, given back."""
        if self.ratio is not None:
            return replace(self, ratio=round(self.ratio / 2, 3))
        assert self.macs is not None
        return replace(self, macs=round((1 + self.macs) / 2, 3))

    def fitted(self, plan: Plan) -> list[str]:
        """Return the layers whose weight quantizers are fitted anew after the removal."""
        return list(plan.get("refitted", ()))

    def reference(self, model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Return the model as it is, with nothing reading the channels that go."""
        return silenced(model, example, plan["removed"])

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Remove the channels of the plan; constraints are carried."""
        if plan["removed"]:
            remove_channels(model, example, plan["removed"], plan.get("attributes", {}))
        return model
