"""The dense weights that factors stand for, multiplied out beside the chain of layers that computes with them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import constrained_weight, raw_weight, remove_constraints
from nutlet.methods.low_rank.decompositions import Shape, fits, pieces

__all__ = ["multiplied_out", "product", "products", "unlike_weights"]

EXPLAINED = 0.25
"""Of its own length, how far a product of factors points along the weight at least; a projection does all the way."""


def product(factors: list[Tensor], shape: Shape) -> Tensor:
    """Return the weight ``shape`` that thin layers with weights ``factors``, first to last, come to.

    The kernels of what follows one another here never overlap along an axis: where one has an extent the others have
    1, so that positions multiply.

    >>> product([torch.ones(1, 2, 3, 1), torch.full((4, 1, 1, 3), 2.0)], (4, 2, 3, 3)).unique().tolist()
    [2.0]
    """
    whole, axes = factors[0], len(shape) - 2
    for factor in factors[1:]:
        if factor.shape[1] != len(whole):
            whole = factor * whole  # depthwise
            continue
        joined = torch.tensordot(factor, whole, dims=([1], [0]))  # (m, kernel, n, kernel)
        joined = joined.movedim(1 + axes, 1)
        between = [place for axis in range(axes) for place in (2 + axis, 2 + axes + axis)]
        sides = [max(factor.shape[2 + axis], whole.shape[2 + axis]) for axis in range(axes)]
        whole = joined.permute(0, 1, *between).reshape(len(factor), whole.shape[1], *sides)
    return whole.expand(shape)


def products(model: nn.Module, plan: dict[str, Any]) -> dict[str, Tensor]:
    """Return the products of the factors in a plan by layer, float64.

    Args:
        model: before the factorization.
        plan: with ``decomposition``, ``ranks`` and the factors among the ``values``.
    """
    found = {}
    for name, ranks in plan["ranks"].items():
        shape = tuple(constrained_weight(model.get_submodule(name)).shape)
        factors = []
        for k in range(len(pieces(fits(plan["decomposition"], shape), shape, tuple(ranks)))):
            key = f"{name}.{k}.weight"
            key = key if key in plan["values"] else f"{name}.{k}.parametrizations.weight.original"
            factors.append(plan["values"][key].double())
        found[name] = product(factors, shape)
    return found


def unlike_weights(model: nn.Module, plan: dict[str, Any]) -> dict[str, str]:
    """Return the layers whose product does not stand for their weight, each with how far it is away.

    It has to point along the weight, as a projection does. Of a truncated SVD the error is known besides (Eckart &
    Young 1936): the singular values that were dropped.

    Args:
        model: before the factorization.
        plan: see :func:`products`.
    """
    found = {}
    for name, written in products(model, plan).items():
        weight = constrained_weight(model.get_submodule(name)).double()
        error, size = (weight - written).square().sum(), weight.square().sum()
        along = (weight * written).sum() / written.square().sum().clamp_min(1e-30)
        worse = False
        if plan["decomposition"] == "svd":
            dropped = torch.linalg.svdvals(weight.flatten(1))[plan["ranks"][name][0] :]
            worse = bool(error > 1.01 * dropped.square().sum() + 1e-6 * size)
        if worse or along < EXPLAINED:
            away = float((error / size).sqrt())
            found[name] = f"the product of the factors is {away:.2g} of the weight's norm away from it"
    return found


def multiplied_out(model: nn.Module, plan: dict[str, Any]) -> nn.Module:
    """Return a copy of ``model`` with each factorized weight replaced by its product, free of constraints.

    Args:
        model: before the factorization.
        plan: see :func:`products`.
    """
    dense = copy.deepcopy(model)
    for name, weight in products(model, plan).items():
        layer = dense.get_submodule(name)
        remove_constraints(layer, bake=True)
        with torch.no_grad():
            raw_weight(layer).copy_(weight)
    return dense
