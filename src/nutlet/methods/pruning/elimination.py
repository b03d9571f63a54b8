"""Changing the weights of a layer column by column, while the columns that are left make up for it.

The error of a layer whose weight changes by ``D`` is ``tr(D H D^T)`` with the second moments ``H`` of its inputs.
Optimal brain surgery says what giving up one weight costs, and what the others have to become (Hassibi & Stork 1993).
Going through the columns in order, for all outputs at once, makes that affordable, for pruning and rounding alike
(Frantar & Alistarh 2023, arXiv:2301.00774; Frantar et al. 2022, arXiv:2210.17323).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["BLOCK", "damped", "eliminate", "inverse_factor", "least_error"]

BLOCK = 128
"""Columns between two updates of all that follow."""

Change = Callable[[int, Tensor, Tensor], Tensor]
"""``(k, columns, spread) -> column``: what column ``k`` becomes, ``(groups, m)``.

``columns`` ``(groups, m, b)`` are the present values of column ``k`` and those after it in its block, ``spread``
``(groups, b)`` the root of what the inverse of H has on its diagonal for them: giving up a weight w costs
``(w / spread)^2``.
"""


def damped(moments: Tensor, damping: float) -> Tensor:
    """Return moments ``(groups, n, n)``, float64, with a share of the mean of their diagonal added to it."""
    moments = moments.double()
    # Inputs that are never anything but zero leave no moments at all.
    extra = (damping * moments.diagonal(dim1=1, dim2=2).mean(1)).clamp_min(1e-12)
    return moments + extra[:, None, None] * torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)


def inverse_factor(moments: Tensor, damping: float) -> Tensor:
    """Return upper triangular ``U`` with ``U^T U`` the inverse of the damped moments, float64.

    Args:
        moments: ``(groups, n, n)`` as :func:`nutlet.graph.statistics.input_moments` returns them.
        damping: this share of the mean of the diagonal is added to it.

    >>> inverse_factor(torch.tensor([[[2.0, 0.0], [0.0, 6.0]]]), damping=0.5).diagonal(dim1=1, dim2=2).square()
    tensor([[0.2500, 0.1250]], dtype=torch.float64)
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(moments, damping)))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def least_error(weight: Tensor, moments: Tensor, mask: Tensor) -> Tensor:
    """Return the weight nearest to ``weight`` in what it gives among those that are zero where ``mask`` is false.

    Columns that were decided on early cannot make up for later ones in :func:`eliminate`; here they do, at the cost of
    one system of equations for each output.

    Args:
        weight: ``(groups, m, n)``.
        moments: ``(groups, n, n)``, damped.
        mask: of the shape of the weight.
    """
    result = torch.zeros_like(weight, dtype=moments.dtype)
    for group, h in enumerate(moments):
        targets = weight[group].to(h.dtype) @ h
        for row, stays in enumerate(mask[group]):
            result[group, row, stays] = torch.linalg.solve(h[stays][:, stays], targets[row, stays])
    return result


def eliminate(weight: Tensor, factor: Tensor, change: Change, block: int = BLOCK) -> Tensor:
    """Return the weight after every column was changed, each error fed on to the columns that come later.

    Args:
        weight: ``(groups, m, n)``; not changed.
        factor: ``(groups, n, n)`` from :func:`inverse_factor`.
        change: called once for each column, in order.
        block: see :data:`BLOCK`; it changes what ``change`` gets to see, and the result by rounding alone.
    """
    weight = weight.to(factor.dtype, copy=True)
    spread = factor.diagonal(dim1=1, dim2=2)
    for start in range(0, weight.shape[-1], block):
        stop = min(start + block, weight.shape[-1])
        errors = torch.zeros_like(weight[..., start:stop])
        for k in range(start, stop):
            changed = change(k, weight[..., k:stop], spread[:, k:stop]).to(weight.dtype)
            error = (weight[..., k] - changed) / spread[:, k, None]
            weight[..., k:stop] -= error[..., None] * factor[:, None, k, k:stop]
            weight[..., k] = changed  # exactly, and not but for rounding
            errors[..., k - start] = error
        weight[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return weight
