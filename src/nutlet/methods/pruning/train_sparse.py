"""Training with a penalty that drives weights, or whole channels, towards zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.constraints.quantizer import along
from nutlet.constraints.stack import constrained_weight, output_axis, raw_weight
from nutlet.errors import ConfigError
from nutlet.graph.coupling.groups import Coupling
from nutlet.graph.scope import training_only, weighted_layers
from nutlet.graph.trace import body_of
from nutlet.methods.base import Method, Plan, register
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context
from nutlet.training.loop import fit
from nutlet.training.losses import DistillationTraining, softened

__all__ = ["TrainSparse", "group_norms"]

Group = Mapping[str, tuple[Tensor, Tensor]]
"""Layers, each with some of its outputs and the channels of the group that they are."""


@register
@dataclass(frozen=True, kw_only=True)
class TrainSparse(DistillationTraining, Method):
    """Train with a penalty on the weights, so that the pruning step after it finds many that hardly matter.

    ``l1`` adds ``strength`` times the sum of ``|w|``; ``group`` adds ``strength`` times the sum of the L2 norms of the
    output channels, which empties whole channels (structured sparsity, Wen et al. 2016, arXiv:1608.03665, equation 4).
    Channels that are coupled, through an addition say, are one group over all layers that make them (Fang et al. 2023,
    arXiv:2301.12900): ``PruneChannels`` can only remove them together.

    At the end, what is small becomes exactly zero. It is a threshold and not a proximal step after each update: behind
    a batch norm the scale of a layer means nothing, so only a share of the layer's own largest weight is a fair
    measure, and the optimizer's momentum is left as it is. Zeros are not held there: let ``PruneWeights`` or
    ``PruneChannels`` follow.

    Args:
        penalty: ``l1`` (single weights) or ``group`` (output channels, coupled ones together).
        strength: the factor of the penalty, lambda, 0 or more; biases and norms are not penalized.
        threshold: what is at most this share of the layer's largest weight (or a group's largest norm) becomes zero.

    Raises:
        ConfigError: a value out of range.

    >>> weight = torch.arange(1.0, 10.0).view(3, 3)
    >>> round(0.1 * float(weight.abs().sum()), 4)  # l1 with a strength of 0.1
    4.5
    >>> [round(float(norm), 4) for norm in group_norms([(weight, torch.arange(3))])]
    [3.7417, 8.775, 13.9284]
    """

    effect: ClassVar[str] = "training"
    use_when: ClassVar[str] = "before pruning, when there is time to train: decides by training what can go"

    penalty: Literal["l1", "group"] = "l1"
    strength: float = 1e-4
    threshold: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(type(self).__name__)
        if not 0 <= self.strength < float("inf"):
            raise ConfigError(f"TrainSparse.strength is {self.strength}; expected a finite number of 0 or more")
        if not 0 <= self.threshold < 1:
            raise ConfigError(
                f"TrainSparse.threshold is {self.threshold}; expected a share from 0 up to but not including 1"
            )

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return nothing to do: values alone change; a model without weights to penalize is refused."""
        weighted_layers(model, self)
        return {}

    def skip_reasons(self, model: nn.Module, example: Inputs) -> dict[str, str]:
        """Return why layers are left alone; a weight that something else makes is refused here already."""
        weighted_layers(model, self)
        return super().skip_reasons(model, example)

    def train(self, model: nn.Module, context: Context) -> list[str]:
        """Run the training loop with the penalty, and make zero what is small then."""
        body = body_of(model)
        named = {name: layer for name, layer in weighted_layers(body, self).items() if raw_weight(layer).requires_grad}
        layers = list(named.values())
        groups = self._groups(body, named, context.example) if self.penalty == "group" else []
        targets = softened(context, self.temperature, self.kd_weight)

        def penalty() -> Tensor:
            if self.penalty == "l1":
                return torch.stack([_weight(layer).abs().sum() for layer in layers]).sum()
            return torch.stack([group_norms(_rows(group, named)).sum() for group in groups]).sum()

        def loss(x: Inputs, outputs: Tensor, y: Tensor) -> Tensor:
            return targets(x, outputs, y) + self.strength * penalty()

        with training_only(model, self):
            notes = fit(model, context, self, loss, title="training sparse")
        before = sum(_zeros(layers))
        for layer, sizes in self._sizes(named, groups):
            _make_zero(layer, sizes <= self.threshold)
        zeros, weights = sum(_zeros(layers)), sum(raw_weight(layer).numel() for layer in layers)
        notes.append(f"{zeros - before} of {weights} weights in scope were small and became zero")
        return notes

    def _groups(self, model: nn.Module, layers: Mapping[str, nn.Module], example: Inputs) -> list[Group]:
        """Return the groups of channels, each output of each layer in one of them."""
        coupled = [group.made for group in Coupling(model, example).groups if group.made.keys() <= layers.keys()]
        groups: list[Group] = [
            {name: (torch.tensor(own), torch.tensor(ours)) for name, (own, ours) in made.items()} for made in coupled
        ]
        for name, layer in layers.items():
            alone = torch.ones(_weight(layer).shape[output_axis(layer)], dtype=torch.bool)
            for made in coupled:
                alone[made.get(name, ([], []))[0]] = False
            if bool(alone.any()):
                own = alone.nonzero()[:, 0]
                groups.append({name: (own, torch.arange(len(own)))})
        return groups

    def _sizes(self, layers: Mapping[str, nn.Module], groups: list[Group]) -> Iterator[tuple[nn.Module, Tensor]]:
        """Yield layers with a size for each weight, as a share of the largest of what it is compared with."""
        if self.penalty == "l1":
            for layer in layers.values():
                sizes = _weight(layer).detach().abs()
                yield layer, sizes / sizes.max().clamp_min(1e-30)
            return
        weights = {name: _weight(layer) for name, layer in layers.items()}
        found = {name: weight.new_ones(weight.shape[output_axis(layers[name])]) for name, weight in weights.items()}
        for group in groups:
            norms = group_norms(_rows(group, layers)).detach()
            for name, (own, ours) in group.items():
                found[name][own] = (norms / norms.max())[ours]
        for name, weight in weights.items():
            yield layers[name], found[name].view(along(output_axis(layers[name]), weight.ndim)).expand_as(weight)


def group_norms(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return ``(channels,)`` L2 norms of channels over several weights.

    Args:
        parts: of each weight the rows that make channels, ``(rows, weights of a row)``, and which those are.
    """
    squares = torch.cat([rows.square().sum(1) for rows, _ in parts])
    index = torch.cat([ours for _, ours in parts])
    sums = squares.new_zeros(1 + int(index.max())).index_add(0, index.to(squares.device), squares)
    # The root has no gradient at zero; that of the bound is zero.
    return sums.clamp_min(1e-30).sqrt()


def _rows(group: Group, layers: Mapping[str, nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Return what :func:`group_norms` takes."""
    weights = {name: _weight(layers[name]).movedim(output_axis(layers[name]), 0).flatten(1) for name in group}
    return [(weights[name][own], ours) for name, (own, ours) in group.items()]


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _make_zero(layer: nn.Module, small: Tensor) -> None:
    raw = raw_weight(layer).detach()
    before = raw.clone()
    raw.masked_fill_(small, 0.0)
    if bool(constrained_weight(layer)[small].any()):  # a constraint that knows no zero, as two values do not
        raw.copy_(before)


def _zeros(layers: Iterable[nn.Module]) -> list[int]:
    return [int((constrained_weight(layer) == 0).sum()) for layer in layers]
