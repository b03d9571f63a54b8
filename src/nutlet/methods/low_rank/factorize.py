"""Low-rank factorization of dense layers and convolutions by truncated SVD."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nutlet.errors import ConfigError, ModelError
from nutlet.graph.constraints import (
    Mask,
    constrain,
    constrained_weight,
    constraints,
    raw_weight,
    take_off,
)
from nutlet.graph.modules import replace, shared_parameters
from nutlet.graph.scope import weighted_layers
from nutlet.method import Context, Method, Plan, register
from nutlet.predict import evaluating

__all__ = ["Factorize"]


@register
@dataclass(frozen=True, kw_only=True)
class Factorize(Method):
    """Replace a layer by two thinner ones, from the SVD of its weight; where that does not pay, leave it.

    A dense ``(m, n)`` weight becomes ``(r, n)`` and ``(m, r)``; a convolution ``(m, n, k, k)``, seen as a matrix
    ``(m, n k k)``, becomes the same convolution to ``r`` channels and a 1x1 one to ``m`` (Denton et al. 2014,
    arXiv:1404.0736; Zhang et al. 2015, arXiv:1505.06798). It pays where ``r (m + n k k) < m n k k``.

    Args:
        energy: keep the smallest rank whose squared singular values add up to this share.
        rank: keep this rank instead.

    Raises:
        ConfigError: ``energy`` outside (0, 1], ``rank`` below 1 or larger than a matrix allows, or both given.

    >>> weight = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    >>> [round(float(s), 4) for s in torch.linalg.svdvals(weight)[:2]]
    [16.8481, 1.0684]
    """

    effect: ClassVar[str] = "rank"
    when: ClassVar[str] = "large dense layers or wide convolutions carry most of the bytes"
    recoverable: ClassVar[bool] = True

    energy: float = 0.9
    rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.energy <= 1:
            raise ConfigError(f"Factorize.energy is {self.energy}; expected a share above 0 up to 1")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"Factorize.rank is {self.rank}; expected 1 or more")
        if self.rank is not None and self.energy != type(self).energy:
            raise ConfigError("Factorize takes one of `energy` (share to keep) and `rank` (the same for every layer)")

    def decide(self, model: nn.Module, context: Context) -> Plan:
        """Return the rank of each layer that gets cheaper."""
        plan: Plan = {"ranks": {}, "notes": []}
        shared = shared_parameters(model)
        for name, layer in weighted_layers(model, self, (nn.Linear, nn.Conv1d, nn.Conv2d)).items():
            if getattr(layer, "groups", 1) > 1:
                plan["notes"].append(f"{name}: grouped convolution, left as it is")
                continue
            if raw_weight(layer) in shared:
                plan["notes"].append(f"{name}: another layer has the same weight, left as it is")
                continue
            matrix = constrained_weight(layer).flatten(1)
            rows, columns = matrix.shape
            if self.rank is not None and self.rank > min(rows, columns):
                if self.include != ("*",):
                    raise ConfigError(
                        f"Factorize.rank is {self.rank}, but {name} is a {rows} x {columns} matrix; "
                        f"expected at most {min(rows, columns)}"
                    )
                plan["notes"].append(f"{name}: rank at most {min(rows, columns)}, left as it is")
                continue
            rank = self.rank or _rank_for_energy(torch.linalg.svdvals(matrix), self.energy)
            if rank * (rows + columns) >= rows * columns:
                plan["notes"].append(f"{name}: rank {rank} would not be smaller than {rows} x {columns}, left as it is")
                continue
            plan["ranks"][name] = rank
            if any(isinstance(c, Mask) for c in constraints(layer)):
                plan["notes"].append(f"{name}: its mask was dissolved, the factors are dense")
            if any(not isinstance(c, Mask) for c in constraints(layer)):
                plan["notes"].append(f"{name}: its quantizer was recomputed for the two factors")
        for name in _read_by_others(model, plan["ranks"], context.example):
            del plan["ranks"][name]
            plan["notes"].append(f"{name}: another module reads its weight, left as it is")
        if not plan["ranks"]:
            plan["notes"].append("nothing factorized: no layer in scope would have become smaller")
        return plan

    @staticmethod
    def execute(model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
        """Replace each layer of the plan by its two factors."""
        for name, rank in plan["ranks"].items():
            layer = model.get_submodule(name)
            most = min(constrained_weight(layer).flatten(1).shape)
            if not 1 <= rank <= most:
                raise ModelError(f"found the rank {rank} for {name}; expected 1 to {most}")
            earlier = take_off(layer, bake=True)
            factors = _factors(layer, rank)
            for factor in factors:
                again = (constraint.anew(raw_weight(factor).detach()) for constraint in earlier)
                constrain(factor, [constraint for constraint in again if constraint is not None])
            factors.train(layer.training)
            replace(model, name, factors)
        return model


def _read_by_others(model: nn.Module, names: Iterable[str], example: Tensor) -> list[str]:
    """Return the layers whose ``weight`` another module reads, as attention reads that of its output projection."""
    trial, found = copy.deepcopy(model), []
    for name in names:
        layer = trial.get_submodule(name)
        replace(trial, name, _Nameless(layer))
        try:
            with evaluating(trial), torch.no_grad():
                trial(example)
        except AttributeError:
            found.append(name)
        replace(trial, name, layer)
    return found


class _Nameless(nn.Module):
    """A layer that runs, and whose weight nobody finds."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


def _rank_for_energy(singular: Tensor, energy: float) -> int:
    share = singular.square().cumsum(0) / singular.square().sum().clamp_min(1e-30)
    return min(int((share < energy - 1e-7).sum()) + 1, len(singular))


def _factors(layer: nn.Module, rank: int) -> nn.Sequential:
    """Split a layer; the singular values are shared out evenly, so that both factors train and quantize alike."""
    weight = constrained_weight(layer)
    left, singular, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    root = singular[:rank].sqrt()
    left, right = left[:, :rank] * root, right[:rank] * root[:, None]
    bias = layer.bias
    first: nn.Module
    second: nn.Module
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features, bias=bias is not None)
    else:
        assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
        kind: Any = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
        geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        first = kind(layer.in_channels, rank, *geometry, bias=False, padding_mode=layer.padding_mode)
        second = kind(rank, layer.out_channels, 1, bias=bias is not None)
    with torch.no_grad():
        raw_weight(first).copy_(right.reshape(raw_weight(first).shape))
        raw_weight(second).copy_(left.reshape(raw_weight(second).shape))
        if isinstance(bias, Tensor):
            second.get_parameter("bias").copy_(bias)
    return nn.Sequential(first, second)
