r"""Evidence of membership from few shadow models: a likelihood ratio that is sure only of what it has seen often.

For one candidate let :math:`\varphi \in R^D` be its confidences, one for each release of the model that is attacked,
:math:`\varphi_1 \dots \varphi_n` those of the ``n`` shadow models that saw it (or did not), and suppose they are normal
with unknown mean and covariance, under the conjugate normal-inverse-Wishart prior (for ``D = 1`` normal-inverse-gamma)

.. math:: \Sigma \sim IW(s \Sigma_0,\, s + D + 1), \quad \mu \mid \Sigma \sim N(m_0, \Sigma / \kappa_0).

Then a new value has a multivariate Student t distribution (Gelman et al., Bayesian Data Analysis, 2013, section 3.6)

.. math::
    \varphi \sim t_{s+n+2}\Big(m_n,\ \frac{\kappa_n + 1}{\kappa_n (s+n+2)} \Psi_n\Big), \quad
    \kappa_n = \kappa_0 + n, \quad m_n = \frac{\kappa_0 m_0 + n \bar\varphi}{\kappa_n},

    \Psi_n = s \Sigma_0 + \sum_i (\varphi_i - \bar\varphi)(\varphi_i - \bar\varphi)^T
    + \frac{\kappa_0 n}{\kappa_n} (\bar\varphi - m_0)(\bar\varphi - m_0)^T,

and the evidence is its log density among members less that among others. ``s`` is the number of models that the prior
covariance is worth: with few it is near LiRA, with very many near LiRA of one variance for all like candidates.

The prior is the pool itself (empirical Bayes), the candidates *of about the same difficulty*: :math:`m_0` their mean,
:math:`\Sigma_0` their covariance within candidates, pooled, and :math:`\kappa_0` the ratio of its diagonal to the
variance between candidates. The variance of a confidence changes with its mean: one shrunk to that of the whole pool is
wrong nearly everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from nutlet.options import Range

__all__ = ["Neighbours", "log_ratio"]

Neighbours = Annotated[int, Range(2, noun="a number of candidates")]
"""Candidates of about the same difficulty that make one prior."""


def log_ratio(
    phi: Tensor, values: Tensor, members: Tensor, *, online: bool, strength: float, neighbours: int
) -> Tensor:
    """Return the evidence that each candidate is a member, ``(N,)``, in nats.

    Args:
        phi: confidences of the victim's releases, ``(N, D)``.
        values: the same of the shadow models, ``(M, N, D)``.
        members: what each was trained on, ``(M, N)`` bool; at least two models on each side of every candidate.
        online: look at the shadow models that saw a candidate; otherwise its values as a member are guessed from those
            of candidates of the same difficulty.
        strength: models that the prior covariance is worth, ``s``.
        neighbours: candidates of about the same difficulty that make one prior.
    """
    phi, values = phi.double(), values.double()
    inside, outside = _side(values, members), _side(values, ~members)
    difficulty = (values.mean(0) if online else outside.mean).mean(1)
    rank = torch.empty_like(difficulty, dtype=torch.long)
    rank[difficulty.argsort(stable=True)] = torch.arange(len(rank))
    groups = max(1, len(rank) // neighbours)
    group = rank * groups // len(rank)
    return _log_density(phi, inside, _prior(inside, group), strength, seen=online) - _log_density(
        phi, outside, _prior(outside, group), strength, seen=True
    )


@dataclass(frozen=True)
class _Side:
    """Of each candidate: models on this side ``(N,)``, their mean ``(N, D)``, squares around it ``(N, D, D)``."""

    count: Tensor
    mean: Tensor
    squares: Tensor


@dataclass(frozen=True)
class _Prior:
    """Of each candidate: prior mean ``(N, D)``, covariance ``(N, D, D)``, models that the mean is worth ``(N,)``."""

    mean: Tensor
    covariance: Tensor
    worth: Tensor


def _side(values: Tensor, chosen: Tensor) -> _Side:
    weights = chosen.double()
    count = weights.sum(0)
    mean = torch.einsum("mn,mnd->nd", weights, values) / count[:, None]
    residual = (values - mean) * weights[..., None]
    return _Side(count, mean, torch.einsum("mnd,mne->nde", residual, residual))


def _prior(side: _Side, group: Tensor) -> _Prior:
    groups = int(group.max()) + 1

    def total(of: Tensor) -> Tensor:
        return of.new_zeros(groups, *of.shape[1:]).index_add(0, group, of)

    size = total(torch.ones_like(side.count))
    within = total(side.squares) / total(side.count - 1)[:, None, None]
    # Where all models answer the same there is no spread to divide by: a thousandth of the pool's is left.
    pooled = (side.squares.sum(0) / (side.count - 1).sum()).diagonal()
    within = within + torch.diag(1e-3 * pooled + 1e-9)
    mean = total(side.mean) / size[:, None]
    noise = within.diagonal(dim1=1, dim2=2)
    between = total((side.mean - mean[group]) ** 2) / size[:, None] - noise * (total(1 / side.count) / size)[:, None]
    worth = (noise / between.clamp_min(1e-2 * noise)).mean(1)
    return _Prior(mean[group], within[group], worth[group])


def _log_density(phi: Tensor, side: _Side, prior: _Prior, strength: float, *, seen: bool) -> Tensor:
    count = side.count if seen else torch.zeros_like(side.count)
    kappa = prior.worth + count
    away = side.mean - prior.mean
    mean = prior.mean + (count / kappa)[:, None] * away
    psi = strength * prior.covariance
    if seen:
        psi = psi + side.squares + (prior.worth * count / kappa)[:, None, None] * away[:, :, None] * away[:, None, :]
    dof, size = strength + count + 2, phi.shape[1]
    factor = torch.linalg.cholesky(psi * ((kappa + 1) / (kappa * dof))[:, None, None])
    standard = torch.linalg.solve_triangular(factor, (phi - mean)[:, :, None], upper=False)[..., 0]
    density: Tensor = (
        torch.lgamma((dof + size) / 2)
        - torch.lgamma(dof / 2)
        - size / 2 * torch.log(dof * math.pi)
        - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        - (dof + size) / 2 * torch.log1p((standard**2).sum(1) / dof)
    )
    return density
