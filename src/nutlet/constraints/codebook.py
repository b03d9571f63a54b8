"""Weights that share the values of a codebook."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from nutlet.constraints.quantizer import Quantizer, fitting, looked_up, scale_grad

__all__ = ["Codebook"]


class Codebook(Quantizer):
    """Each weight is one of K shared values, which training learns (Han et al. 2016, arXiv:1510.00149, section 3).

    Args:
        shared: ``(K,)`` the values, K at most 256.
        keep_zero: the value nearest to zero is zero and stays so; what is zero stays zero with it.
    """

    def __init__(self, shared: Tensor, *, keep_zero: bool) -> None:
        super().__init__()
        self.shared = nn.Parameter(shared)
        self.keep_zero = keep_zero

    @staticmethod
    def fit(weight: Tensor, axis: int = 0, *, count: int, keep_zero: bool = True) -> Codebook:
        """Return the codebook of ``count`` values by k-means in one dimension (scikit-learn; deterministic).

        Args:
            weight: of any shape.
            axis: does not matter; the whole weight shares its values.
            count: 2 to 256; where the weight has fewer values, the largest is there several times.
            keep_zero: one value is zero, and the others are fitted to the weights that are not.
        """
        return Codebook(_centres(weight, count, keep_zero=keep_zero), keep_zero=keep_zero)

    @property
    def supports_scaling(self) -> bool:
        """Never: a factor for each channel would make new values."""
        return False

    @property
    def levels(self) -> range:
        """Indices into the codebook."""
        return range(len(self.shared))

    def codes(self, weight: Tensor) -> Tensor:
        """Return the index of the nearest value, int16."""
        values, order = self._values().detach().sort()
        nearest = torch.bucketize(weight.detach().contiguous(), (values[1:] + values[:-1]) / 2)
        return order[nearest].to(torch.int16)

    def values(self, codes: Tensor) -> Tensor:
        """Return the values of indices."""
        return scale_grad(self._values(), (len(self.shared) / codes.numel()) ** 0.5)[codes.long()]

    def restored(self, stored: Tensor) -> Tensor:
        """Return the weight of stored indices."""
        return looked_up(self._values().detach(), stored)

    def refit(self, weight: Tensor) -> None:
        """Cluster the changed weight anew."""
        with torch.no_grad():
            self.shared.copy_(_centres(weight, len(self.shared), keep_zero=self.keep_zero))

    def fit_like(self, weight: Tensor, axis: int = 0) -> Codebook:
        """Return the codebook of another weight."""
        return Codebook.fit(weight, count=len(self.shared), keep_zero=self.keep_zero)

    def select(self, dim: int, keep: Tensor) -> Codebook:
        """Return the codebook of the kept slices: the same."""
        return Codebook(self.shared.detach().clone(), keep_zero=self.keep_zero)

    def with_zero(self, weight: Tensor) -> Codebook:
        """Return a codebook that has zero as well, where a mask made some of ``weight`` zero and there is room."""
        if self.keep_zero or bool((self._values() == 0).any()) or len(self.shared) == 256 or bool((weight != 0).all()):
            return self
        values = self.shared.detach()
        return Codebook(torch.cat([torch.zeros_like(values[:1]), values]), keep_zero=True)

    def _values(self) -> Tensor:
        # The first is the one that is zero.
        return torch.cat([torch.zeros_like(self.shared[:1]), self.shared[1:]]) if self.keep_zero else self.shared


def _centres(weight: Tensor, count: int, *, keep_zero: bool) -> Tensor:
    """Return ``count`` values; where zero is one, it is the first."""
    if not fitting():
        return weight.new_zeros(count)
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    points = weight.detach().flatten().double().cpu()
    zeros = points.new_zeros(1)
    if keep_zero:
        points = points[points != 0]
        count -= 1
    distinct = torch.unique(points)
    if len(distinct) > count:
        # Begun on a line from the smallest to the largest, which keeps the large ones (Han et al., section 3.2).
        start = torch.linspace(float(distinct[0]), float(distinct[-1]), count, dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # values almost the same leave centres without any
            fitted = KMeans(count, init=start[:, None].numpy(), n_init=1, tol=0).fit(points[:, None].numpy())
        distinct = torch.from_numpy(fitted.cluster_centers_[:, 0]).sort().values
    distinct = distinct if len(distinct) else zeros
    values = torch.cat([distinct, distinct[-1:].expand(count - len(distinct))])
    return torch.cat([zeros, values] if keep_zero else [values]).to(weight)
