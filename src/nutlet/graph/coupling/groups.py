"""Groups of channels that methods choose from, and their removal from a model."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.constraints import WeightQuantizer
from nutlet.constraints.stack import (
    Constraint,
    constrain,
    constrained_layers,
    constrained_weight,
    refit,
    remove_constraints,
)
from nutlet.graph.channels import by_group
from nutlet.graph.coupling.channels import Channels, Family, Place, followed
from nutlet.graph.coupling.cut import Attributes, cut, put_attributes
from nutlet.graph.coupling.follow import RETURNED
from nutlet.graph.coupling.group import Group, as_shares
from nutlet.graph.coupling.silence import Silenced
from nutlet.graph.coupling.trial import OffenceError, Trial
from nutlet.graph.macs import site_macs
from nutlet.graph.quantization_error import carried_problem
from nutlet.graph.scope import Layer
from nutlet.graph.trace import trace
from nutlet.tasks.inputs import Inputs

__all__ = ["Coupling", "refitted", "remove_channels", "silenced"]

ONE = "all of its channels go together"
Removed = Mapping[str, list[int]]
"""Output channels by the layer that makes them (by the weight, where it has several); heads by their attention."""


@dataclass(eq=False)
class Coupling:
    """How the channels of a model are coupled, tried on copies of it.

    A group can be chosen from when the model without some of its channels makes all its calls with the channels that
    they expect, and answers as the whole model does once nothing reads those channels.

    Args:
        model: not changed.
        example: real inputs, batch first.
        heads: whether heads of attention are chosen from, in the place of channels.

    Attributes:
        groups: to choose from.
        refused: the roots of all others but the outputs, each with the reason.
    """

    model: nn.Module
    example: Inputs
    heads: bool = False
    groups: list[Group] = field(init=False)
    refused: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        bare, self._stacks = _bare(copy.deepcopy(self.model))
        self._channels = channels = followed(bare, self.example, heads=self.heads)
        self._trial = Trial(bare, self.example, channels)
        self.refused = {}
        free = {}
        for family, root in self._families().items():
            labels = family.labels[[label not in channels.fixed for label in family.labels.tolist()]]
            if len(labels) > 1:
                free[family] = labels
            elif (reason := channels.fixed.get(int(family.labels[0]), ONE)) != RETURNED:
                self.refused.setdefault(root, reason)
        # Every third: enough to see where order matters, or numbers that a forward has written down.
        wrong, _ = self._wrong({family: set(labels[::3].tolist()) for family, labels in free.items()})
        ties = self._ties({family: labels for family, labels in free.items() if family in wrong})
        self.refused |= {self._families()[family]: reason for family, reason in wrong.items() if family not in ties}
        self.groups = [
            self._group(family, labels, ties.get(family, family))
            for family, labels in free.items()
            if family not in wrong or family in ties
        ]

    def _families(self) -> dict[Family, str]:
        """Return the families that are chosen from, each with the name of its root."""
        families = self._channels.families
        if not self.heads:
            return {family: _key(family.root) for family in families}
        of = {label: path for path, labels in self._channels.attention.items() for label in labels}
        return {family: of[label] for family in families if (label := int(family.labels[0])) in of}

    def _ties(self, labels: dict[Family, Tensor]) -> dict[Family, Family]:
        """Return the families that can only lose the same share of their channels, each with the first of its tie.

        A forward that makes heads of ``x.shape[-1] // self.num_heads`` channels ties the heads to what it reads them
        from: what is tied is as wide somewhere. It is tried on the smallest share that all of them can lose.

        Args:
            labels: of the families that could not lose any share alone.
        """
        ties: dict[Family, Family] = {}
        for tied in _as_wide(labels, {family: self._widths(family) for family in labels}):
            shares = math.gcd(*(len(labels[family]) for family in tied))
            if len(tied) < 2 or shares < 2:
                continue
            wrong, _ = self._wrong({family: set(labels[family][::shares].tolist()) for family in tied})
            holding = [family for family in tied if family not in wrong]
            if len(holding) > 1:
                ties |= dict.fromkeys(holding, holding[0])
        return ties

    def _widths(self, family: Family) -> set[int]:
        """Return the widths of weights along which nothing but channels of a family lies."""
        along = [self._channels.at(place) for place in family.places]
        return {len(labels) for labels in along if bool(torch.isin(labels, family.labels).all())}

    def tried(self, removed: Removed) -> tuple[dict[str, list[int]], Attributes, dict[str, str]]:
        """Try to remove channels together.

        Returns:
            What can go, what attributes have to be then, and the roots of what cannot, each with the reason.
        """
        chosen = self._chosen(removed)
        wrong, attributes = self._wrong(chosen)
        lost = {label for family in wrong for label in chosen[family]}
        left = {}
        for root, channels in removed.items():
            numbered = numbered_by(self._channels, root)
            if kept := [k for k in channels if numbered[k] not in lost]:
                left[root] = kept
        return left, attributes, {self._families()[family]: reason for family, reason in wrong.items()}

    def thinner(self, removed: Removed) -> nn.Module:
        """Return a copy without constraints and without those channels that it runs without.

        It shares the parameters that lose nothing.
        """
        _, thinner, _ = self._running(self._chosen(removed), {})
        return thinner

    @property
    def has_attention(self) -> bool:
        """Whether there are heads at all, a single one included."""
        return bool(self._channels.heads)

    def touched(self, groups: Iterable[Group]) -> set[str]:
        """Return the modules of which something goes with channels of ``groups``."""
        channels, gone = self._channels, torch.tensor([label for group in groups for label in group.labels.tolist()])
        lying = [(name, labels) for name, dims in channels.axes.items() for labels in dims.values()]
        lying += channels.elements.items()
        return {name.rpartition(".")[0] for name, labels in lying if bool(torch.isin(labels, gone).any())}

    def work(self, groups: Iterable[Group]) -> list[float]:
        """Return the multiply-accumulates that go with one channel of each group, while all others stay.

        A layer spends as much on each of its outputs, and on each of its inputs; what lies at an output and an input
        that are one channel counts twice. Where a call takes several weights, each has its share by size.
        """
        axes = self._channels.axes
        sizes = {name: _tensor(self._trial.model, name).numel() for name in axes}
        spent = dict.fromkeys(axes, 0.0)
        record = trace(self._trial.model, self.example)
        for site in record.sites.values():
            weights = [name for name in site.parameters if name in axes]
            for name in weights:
                spent[name] += site_macs(site, record.batch) * sizes[name] / sum(sizes[other] for other in weights)
        work = torch.zeros(len(self._channels.labels))
        for name, dims in axes.items():
            for labels in dims.values():
                work.index_add_(0, labels, torch.full((len(labels),), spent[name] / len(labels)))
        return [float(work[group.labels].mean()) for group in groups]

    def _chosen(self, removed: Removed) -> dict[Family, set[int]]:
        gone = labels_of(self._channels, removed)
        return {family: found for family in self._channels.families if (found := gone & set(family.labels.tolist()))}

    def _wrong(self, chosen: dict[Family, set[int]]) -> tuple[dict[Family, str], Attributes]:
        """Return the families that cannot lose these channels, each with the reason, and attributes for the others."""
        wrong: dict[Family, str] = {}
        while True:
            gone, thinner, attributes = self._running(chosen, wrong)
            reason = self._trial.disagreement(thinner, gone) if gone else ""
            if not reason:
                return wrong, attributes
            left = [family for family in chosen if family not in wrong]
            alone = {family: self._alone(chosen[family]) for family in left} if len(left) > 1 else {}
            wrong |= {family: found for family, found in alone.items() if found} or dict.fromkeys(left, reason)

    def _running(
        self, chosen: dict[Family, set[int]], wrong: dict[Family, str]
    ) -> tuple[set[int], nn.Module, Attributes]:
        """Return what can go so that the model runs, that model and its attributes; ``wrong`` gets what cannot."""
        while True:
            left = {family: own for family, own in chosen.items() if family not in wrong}
            gone: set[int] = set().union(*left.values())
            try:
                return gone, *self._trial.walk(gone)
            except OffenceError as error:
                offenders = [family for family, own in left.items() if own & error.labels]
                # A shape may be wrong that was read from channels of another family, or of one that cannot be found.
                offenders = offenders or [f for f in left if set(f.labels.tolist()) & error.labels] or list(left)
                wrong |= dict.fromkeys(offenders, str(error))

    def _alone(self, gone: set[int]) -> str:
        try:
            return self._trial.disagreement(self._trial.walk(gone)[0], gone)
        except OffenceError as error:
            return str(error)

    def _owners(self, name: str) -> list[str]:
        """Return the modules that hold a parameter: more than one where they share it."""
        weight = _tensor(self._trial.model, name)
        return [
            path
            for path, module in self._trial.model.named_modules()
            if any(own is weight for own in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
        ]

    def _group(self, family: Family, labels: Tensor, tie: Family) -> Group:
        index = {label: k for k, label in enumerate(labels.tolist())}
        score = torch.zeros(len(labels))
        made: dict[str, tuple[list[int], list[int]]] = {}
        read: dict[str, tuple[list[int], list[int]]] = {}
        for name, dim in family.places:
            own, ours = _lying(self._channels.at((name, dim)).tolist(), index)
            owner, _, parameter = name.rpartition(".")
            layer = self._trial.model.get_submodule(owner)
            weight = _tensor(self._trial.model, name).detach()
            for constraint in self._stacks.get(owner, []) if parameter == "weight" else []:
                weight = constraint(weight).detach()
            norms = weight.movedim(dim, 0).flatten(1).norm(dim=1)[own]
            score += as_shares(torch.zeros(len(labels)).index_add_(0, torch.tensor(ours), norms.square()))
            if isinstance(layer, Layer):
                (made if (name, dim) in family.makers else read)[owner] = own, ours
                if (name, dim) == family.root:
                    outputs = by_group(layer, weight).flatten(2).norm(dim=2).flatten()
                    lying = self._channels.at((name, dim)).tolist()
                    own, ours = _lying(lying * (len(outputs) // len(lying)), index)
                    norms = outputs[own]
            if (name, dim) == family.root:
                of_root = norms, torch.tensor(ours)
        root = self._families()[family]
        numbered = numbered_by(self._channels, root)
        return Group(
            root=root,
            channels=len(labels),
            width=sum(label in index for label in self._channels.at(family.root).tolist()),
            places=[numbered.index(label) for label in labels.tolist()],
            producers=tuple(dict.fromkeys(owner for name, _ in family.makers for owner in self._owners(name))),
            importance=score,
            made=made,
            read=read,
            labels=labels,
            own=of_root,
            tie=self._families()[tie],
        )


def _as_wide(families: Iterable[Family], widths: Mapping[Family, set[int]]) -> list[list[Family]]:
    """Return families together that share a width with one of the others."""
    found: list[list[Family]] = []
    for family in families:
        like = [others for others in found if any(widths[family] & widths[other] for other in others)]
        found = [others for others in found if others not in like]
        found.append([*(other for others in like for other in others), family])
    return found


def _tensor(model: nn.Module, name: str) -> Tensor:
    """Return a parameter or a buffer: fixed kernels are weights too."""
    tensor: Tensor = attrgetter(name)(model)
    return tensor


def _lying(labels: list[int], index: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """Return where channels of a group lie along a dimension, and which they are."""
    found = [(k, index[label]) for k, label in enumerate(labels) if label in index]
    return [k for k, _ in found], [k for _, k in found]


def remove_channels(
    model: nn.Module, example: Inputs, removed: Removed, attributes: Attributes, *, heads: bool = False
) -> list[str]:
    """Remove output channels with everything coupled to them, in place; constraints are carried.

    Args:
        model: changed.
        example: inputs, batch first.
        removed: see :class:`Coupling`, which tried it.
        attributes: what attributes of modules have to be then.
        heads: as it was for the :class:`Coupling`.

    Returns:
        Names of the layers whose quantizers had to be fitted anew: other weights lie side by side now, and a scale may
        hold for several.
    """
    before = {name: constrained_weight(layer) for name, layer in constrained_layers(model)}
    _, stacks = _bare(model)
    channels = followed(model, example, heads=heads)
    cuts = channels.cuts(labels_of(channels, removed))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    stays = {name: cuts.get(names[id(model.get_submodule(name).get_parameter("weight"))], []) for name in stacks}
    cut(model, cuts)
    put_attributes(model, attributes)
    refitted = []
    for name, stack in stacks.items():
        layer, places = model.get_submodule(name), stays[name]
        weight = layer.get_parameter("weight").detach()
        expected = _selected(before[name], places)
        for k, constraint in enumerate(stack):
            for dim, keep in places:
                stack[k] = constraint = constraint.select(dim, keep)
            weight = constraint(weight)
        constrain(layer, stack)
        # Other weights lie side by side now, whose products a kernel adds up.
        saturates = bool(places) and any(isinstance(few, WeightQuantizer) and few.saturates(weight) for few in stack)
        if places and (saturates or not torch.equal(weight, expected) or carried_problem(layer)):
            refitted.append(name)
            refit(layer)
    return refitted


def refitted(
    model: nn.Module, plan: Mapping[str, Any], example: Inputs, *, heads: bool = False
) -> dict[str, list[str]]:
    """Return what a plan has to say of quantizers that are fitted anew, found on a copy where there are any."""
    if not plan["removed"] or not any(True for _ in constrained_layers(model)):
        return {}
    names = remove_channels(copy.deepcopy(model), example, plan["removed"], plan["attributes"], heads=heads)
    return {"refitted": names} if names else {}


def _selected(weight: Tensor, places: list[tuple[int, Tensor]]) -> Tensor:
    for dim, keep in places:
        weight = weight.index_select(dim, keep)
    return weight


def silenced(model: nn.Module, example: Inputs, removed: Removed, *, heads: bool = False) -> nn.Module:
    """Return a copy of ``model`` in which nothing reads the channels that :func:`remove_channels` would remove."""
    whole = copy.deepcopy(model)
    bare, _ = _bare(copy.deepcopy(model))
    channels = followed(bare, example, heads=heads)
    return Silenced(whole, bare, example, channels, labels_of(channels, removed))


def labels_of(channels: Channels, removed: Removed) -> set[int]:
    """Return the labels of channels that are named by what makes them."""
    return {numbered_by(channels, root)[k] for root, own in removed.items() for k in own}


def numbered_by(channels: Channels, root: str) -> list[int]:
    """Return the labels of the outputs of a layer, or of the heads of an attention, in order."""
    if root in channels.attention:
        return channels.attention[root]
    name = root if root in channels.made else f"{root}.weight"
    return channels.at((name, channels.made[name])).tolist()


def _key(place: Place) -> str:
    return place[0].removesuffix(".weight")


def _bare(model: nn.Module) -> tuple[nn.Module, dict[str, list[Constraint]]]:
    """Take the constraints off, in place, and return them by layer."""
    return model, {name: remove_constraints(layer) for name, layer in list(constrained_layers(model))}
