"""Training with a penalty that drives weights, or whole channels, towards zero."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.errors import ConfigError
from nutlet.graph.constraints import constrained_weight, output_axis, raw_weight
from nutlet.graph.quantizers.few_values import along
from nutlet.graph.scope import training_only, weighted_layers
from nutlet.graph.sites import body_of
from nutlet.method import Context, Method, Plan, register
from nutlet.methods.distillation.targets import SoftTraining, softened
from nutlet.train import fit

__all__ = ["TrainSparse", "group_norms"]


@register
@dataclass(frozen=True, kw_only=True)
class TrainSparse(SoftTraining, Method):
    """Train with a penalty on the weights, so that the pruning step after it finds many that hardly matter.

    ``l1`` adds ``strength`` times the sum of ``|w|``; ``group`` adds ``strength`` times the sum of the L2 norms of the
    output channels, which empties whole channels (structured sparsity, Wen et al. 2016, arXiv:1608.03665, equation 4).

    At the end, what is small becomes exactly zero. It is a threshold and not a proximal step after each update: behind
    a batch norm the scale of a layer means nothing, so only a share of the layer's own largest weight is a fair
    measure, and the optimizer's momentum is left as it is. Zeros are not held there: let ``PruneWeights`` or
    ``PruneChannels`` follow.

    Args:
        penalty: ``l1`` (single weights) or ``group`` (output channels).
        strength: the factor of the penalty, lambda, 0 or more; biases and norms are not penalized.
        threshold: what is at most this share of the layer's largest weight (or norm of a channel) becomes zero.

    Raises:
        ConfigError: a value out of range.

    >>> weight = torch.arange(1.0, 10.0).view(3, 3)
    >>> round(0.1 * float(weight.abs().sum()), 4)  # l1 with a strength of 0.1
    4.5
    >>> [round(float(norm), 4) for norm in group_norms(weight)]
    [3.7417, 8.775, 13.9284]
    """

    effect: ClassVar[str] = "training"
    when: ClassVar[str] = "before pruning, when there is time to train: decides by training what can go"

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

    def decide(self, model: nn.Module, context: Context) -> Plan:
        """Return nothing to do: values alone change; a model without weights to penalize is refused."""
        weighted_layers(model, self)
        return {}

    def reasons(self, model: nn.Module, example: Tensor) -> dict[str, str]:
        """Return why layers are left alone; a weight that something else makes is refused here already."""
        weighted_layers(model, self)
        return super().reasons(model, example)

    def train(self, model: nn.Module, context: Context) -> list[str]:
        """Run the training loop with the penalty, and make zero what is small then."""
        named = weighted_layers(body_of(model), self)
        layers = [layer for layer in named.values() if raw_weight(layer).requires_grad]
        targets = softened(context, self.temperature, self.soft)

        def loss(x: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
            return targets(x, outputs, y) + self.strength * self._penalty(layers)

        with training_only(model, self):
            notes = fit(model, context, self, loss, title="training sparse")
        before = sum(_zeros(layers))
        for layer in layers:
            self._zero_small(layer)
        zeros, weights = sum(_zeros(layers)), sum(raw_weight(layer).numel() for layer in layers)
        notes.append(f"{zeros - before} of {weights} weights in scope were small and became zero")
        return notes

    def _penalty(self, layers: Iterable[nn.Module]) -> Tensor:
        terms = []
        for layer in layers:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            terms.append(weight.abs().sum() if self.penalty == "l1" else group_norms(weight, output_axis(layer)).sum())
        return torch.stack(terms).sum()

    def _zero_small(self, layer: nn.Module) -> None:
        weight, raw, axis = constrained_weight(layer), raw_weight(layer).detach(), output_axis(layer)
        sizes = weight.abs()
        if self.penalty == "group":
            sizes = group_norms(weight, axis).view(along(axis, weight.ndim)).expand_as(weight)
        small = sizes <= self.threshold * sizes.max()
        before = raw.clone()
        raw.masked_fill_(small, 0.0)
        if bool(constrained_weight(layer)[small].any()):  # a constraint that knows no zero, as two values do not
            raw.copy_(before)


def group_norms(weight: Tensor, axis: int = 0) -> Tensor:
    """Return the L2 norm of each output channel."""
    norms: Tensor = torch.linalg.vector_norm(weight.movedim(axis, 0).flatten(1), dim=1)
    return norms


def _zeros(layers: Iterable[nn.Module]) -> list[int]:
    return [int((constrained_weight(layer) == 0).sum()) for layer in layers]
