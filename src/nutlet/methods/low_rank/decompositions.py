"""Decompositions of one weight, and the chain of thin layers that its factors make.

A chain is described by its pieces: the shape of each thin weight, and which axes of the kernel it covers. Costs,
modules and the order of the factors all follow from that one description. Factors are computed in double precision.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "ITERATIVE",
    "Decomposed",
    "Piece",
    "Ranks",
    "Shape",
    "chain",
    "cp",
    "fits",
    "limits",
    "nmf",
    "pieces",
    "spatial",
    "svd",
    "tucker",
    "whitened",
]

Ranks = tuple[int, ...]
"""One rank; for Tucker-2 that of the outputs and that of the inputs."""
ITERATIVE = ("cp", "nmf")
"""Decompositions without a spectrum: their error at a rank is known once they are made."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Decomposed:
    """A weight taken apart, to be cut at any rank.

    Args:
        cut: returns the weights of the thin layers in the order of :func:`pieces`, each of the piece's size.
        error: returns the share of the squared norm that is lost there, 0 to 1.
    """

    cut: Callable[[Ranks], list[Tensor]]
    error: Callable[[Ranks], float]


@dataclass(frozen=True)
class Piece:
    """One thin layer of a chain.

    Args:
        shape: of its weight, kernel included.
        axes: axes of the kernel it covers, with the stride, padding and dilation there; elsewhere its kernel is 1.
        groups: more than 1 in a depthwise convolution.
    """

    shape: Shape
    axes: tuple[int, ...] = ()
    groups: int = 1


def fits(kind: str, shape: Shape) -> str:
    """Return the decomposition that ``kind`` comes to for a weight of this shape.

    Without a kernel Tucker-2, CP and the spatial split all are the SVD of the matrix.

    >>> fits("tucker", (8, 4)), fits("spatial", (8, 4, 3, 1)), fits("cp", (8, 4, 3, 1))
    ('svd', 'svd', 'cp')
    """
    wide = sum(k > 1 for k in shape[2:])
    return "svd" if wide < {"spatial": 2, "tucker": 1, "cp": 1}.get(kind, 0) else kind


def limits(kind: str, shape: Shape) -> Ranks:
    """Return the largest ranks that mean anything for a weight of this shape.

    >>> limits("svd", (8, 4, 3, 3)), limits("spatial", (8, 4, 3, 3)), limits("cp", (8, 4, 3, 3))
    ((8,), (12,), (36,))
    >>> limits("tucker", (8, 4, 3, 3))
    (8, 4)
    """
    if kind == "tucker":
        outputs, inputs = shape[:2]
        return min(outputs, inputs * prod(shape[2:])), min(inputs, outputs * prod(shape[2:]))
    if kind == "cp":
        return (prod(shape) // max(shape),)
    if kind == "spatial":
        return (min(shape[1] * shape[2], shape[0] * shape[3]),)
    return (min(shape[0], prod(shape[1:])),)


def pieces(kind: str, shape: Shape, ranks: Ranks) -> list[Piece]:
    """Return the thin layers, first to last, for a weight ``(m, n, *kernel)`` decomposed at ``ranks``.

    >>> [piece.shape for piece in pieces("tucker", (8, 4, 3, 3), (2, 3))]
    [(3, 4, 1, 1), (2, 3, 3, 3), (8, 2, 1, 1)]
    """
    (m, n, *kernel), rank, point = shape, ranks[0], (1,) * len(shape[2:])
    axes = tuple(range(len(kernel)))
    if kind == "tucker":
        return [
            Piece((ranks[1], n, *point)),
            Piece((rank, ranks[1], *kernel), axes),
            Piece((m, rank, *point)),
        ]
    if kind == "spatial":
        return [Piece((rank, n, kernel[0], 1), (0,)), Piece((m, rank, 1, kernel[1]), (1,))]
    if kind == "cp":
        thin = [Piece((rank, 1, *(k if b == a else 1 for b, k in enumerate(kernel))), (a,), rank) for a in axes]
        return [Piece((rank, n, *point)), *thin, Piece((m, rank, *point))]
    return [Piece((rank, n, *kernel), axes), Piece((m, rank, *point))]


def chain(layer: nn.Module, parts: list[Piece]) -> nn.Sequential:
    """Return the thin layers that take the place of ``layer``, with its bias in the last; their weights are not set."""
    bias = layer.bias if isinstance(layer.bias, Tensor) else None
    thin: list[nn.Module] = []
    for part in parts:
        last = part is parts[-1] and bias is not None
        if isinstance(layer, nn.Linear):
            thin.append(nn.Linear(part.shape[1], part.shape[0], bias=last))
            continue
        assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
        kind: Any = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d

        def only(values: Any, other: int, axes: tuple[int, ...] = part.axes) -> Any:
            if isinstance(values, str):  # "same" pads by the kernel, and not at all where that is 1
                return values
            return tuple(v if axis in axes else other for axis, v in enumerate(values))

        thin.append(
            kind(
                part.shape[1] * part.groups,
                part.shape[0],
                part.shape[2:],
                only(layer.stride, 1),
                only(layer.padding, 0),
                only(layer.dilation, 1),
                part.groups,
                bias=last,
                padding_mode=layer.padding_mode,
            )
        )
    if bias is not None:
        with torch.no_grad():
            thin[-1].get_parameter("bias").copy_(bias)
    return nn.Sequential(*thin)


def svd(weight: Tensor) -> Decomposed:
    """Truncated SVD of the weight as a matrix ``(m, n k k)``.

    Denton et al. 2014, arXiv:1404.0736; Zhang et al. 2015, arXiv:1505.06798. The singular values are shared out evenly,
    so that both factors train and quantize alike.

    What is kept are the factors, not the matrix they multiply to:

    >>> matrix = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    >>> taken = svd(matrix)
    >>> [tuple(factor.shape) for factor in taken.cut((1,))]
    [(1, 3), (3, 1)]
    >>> right, left = taken.cut((2,))
    >>> torch.allclose((left @ right).float(), matrix, atol=1e-5)
    True
    """
    left, singular, right = torch.linalg.svd(weight.double().flatten(1), full_matrices=False)
    lost = _lost(singular)

    def cut(ranks: Ranks) -> list[Tensor]:
        root = singular[: ranks[0]].sqrt()
        return [right[: ranks[0]] * root[:, None], left[:, : ranks[0]] * root]

    return Decomposed(cut, lambda ranks: lost[ranks[0] - 1])


def whitened(weight: Tensor, moments: Tensor) -> Decomposed:
    """Return the factors of least error on the outputs: ``min E |W x - W' x|^2`` over matrices W' of the rank.

    With ``H = E x x^T = S S^T`` that is the truncated SVD of ``W S``, multiplied by the inverse of S (SVD-LLM, Wang et
    al. 2024, arXiv:2403.07378). The same matrix is ``U U^T W`` with the first left singular vectors U of ``W S``:
    nothing is inverted, and inputs that are never seen (H singular) do no harm.

    Args:
        weight: ``(m, n, ...)``.
        moments: H, ``(n', n')`` for the weight flattened to ``(m, n')``.
    """
    matrix = weight.double().flatten(1)
    values, vectors = torch.linalg.eigh(moments)
    root = vectors * values.clamp_min(0).sqrt()
    left, singular, _ = torch.linalg.svd(matrix @ root, full_matrices=False)
    right = left.T @ matrix
    lost = _lost(singular)
    size = right.norm(dim=1).clamp_min(1e-30).sqrt()

    def cut(ranks: Ranks) -> list[Tensor]:
        first = slice(ranks[0])
        return [right[first] / size[first, None], left[:, first] * size[first]]

    return Decomposed(cut, lambda ranks: lost[ranks[0] - 1])


def spatial(weight: Tensor) -> Decomposed:
    """Split ``(m, n, h, w)`` into ``(r, n, h, 1)`` and ``(m, r, 1, w)`` (Jaderberg et al. 2014, arXiv:1405.3866, scheme 2).

    The best such pair is the truncated SVD of the weight as a matrix ``(m w, n h)`` (Tai et al. 2015,
    arXiv:1511.06067).
    """  # noqa: E501
    m, n, high, wide = weight.shape
    taken = svd(weight.permute(0, 3, 1, 2).reshape(m * wide, n * high))

    def cut(ranks: Ranks) -> list[Tensor]:
        right, left = taken.cut(ranks)  # (r, n h), (m w, r)
        return [right, left.view(m, wide, -1).transpose(1, 2)]

    return Decomposed(cut, taken.error)


def tucker(weight: Tensor) -> Decomposed:
    """Tucker-2: a core with few inputs and outputs between two 1x1 layers (Kim et al. 2016, arXiv:1511.06530).

    Factors come from higher-order orthogonal iteration. The error told is that of the truncated higher-order SVD,
    which that begins with and never makes worse: known for all pairs of ranks from one core.
    """
    whole = weight.double()
    outputs = torch.linalg.svd(whole.flatten(1), full_matrices=True)[0]
    inputs = torch.linalg.svd(whole.transpose(0, 1).flatten(1), full_matrices=True)[0]
    core = torch.einsum("mn...,mr,ns->rs...", whole, outputs, inputs)
    kept = core.square().flatten(2).sum(2).cumsum(0).cumsum(1)
    lost = (kept[-1, -1] - kept) / kept[-1, -1].clamp_min(1e-30)

    def cut(ranks: Ranks) -> list[Tensor]:
        from tensorly import backend_context
        from tensorly.decomposition import partial_tucker

        if not bool(whole.any()):  # the iteration divides by the norm
            return [torch.zeros(part.shape) for part in pieces("tucker", tuple(whole.shape), ranks)]
        with backend_context("numpy", local_threadsafe=True):
            (middle, (left, right)), _ = partial_tucker(whole.numpy(), list(ranks), modes=[0, 1], random_state=0)
        return [torch.from_numpy(np.ascontiguousarray(part)) for part in (right.T, middle, left)]

    return Decomposed(cut, lambda ranks: max(float(lost[ranks[0] - 1, ranks[1] - 1]), 0.0))


def cp(weight: Tensor) -> Decomposed:
    """A sum of r rank-one tensors: 1x1, one depthwise convolution for each axis, 1x1 (Lebedev et al. 2015, arXiv:1412.6553).

    Alternating least squares from the singular vectors of the unfoldings. A little ridge keeps components from
    growing against each other without end, which makes CP layers hard to train (Phan et al. 2020, arXiv:2008.05441);
    what norm a component has is shared out evenly over its factors.
    """  # noqa: E501
    scale = float(weight.double().norm()) or 1.0
    whole = weight.double() / scale

    @cache
    def fitted(rank: int) -> tuple[list[Tensor], float]:
        from tensorly import backend_context, cp_to_tensor
        from tensorly.cp_tensor import cp_normalize
        from tensorly.decomposition import parafac

        if not bool(whole.any()):
            return [torch.zeros(side, rank).double() for side in whole.shape], 0.0
        with backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a side smaller than the rank: begun at random there
            # The ridge also keeps the normal equations solvable then.
            found = parafac(whole.numpy(), rank, n_iter_max=100, tol=1e-6, l2_reg=1e-6, random_state=0)
            error = float(np.square(whole.numpy() - cp_to_tensor(found)).sum())
            norms, factors = cp_normalize(found)
        share = (norms * scale) ** (1 / len(factors))
        return [torch.from_numpy(np.ascontiguousarray(factor * share)) for factor in factors], min(error, 1.0)

    def cut(ranks: Ranks) -> list[Tensor]:
        outputs, inputs, *kernel = fitted(ranks[0])[0]
        return [inputs.T, *(factor.T for factor in kernel), outputs]

    return Decomposed(cut, lambda ranks: fitted(ranks[0])[1])


def nmf(weight: Tensor) -> Decomposed:
    """Non-negative factors of a non-negative matrix (Lee & Seung 1999, doi:10.1038/44565), by coordinate descent.

    A signed weight is taken as ``W = W+ - W-``, and both parts share their first factor: ``[W+; W-] = [A+; A-] B``. So
    what the layer adds up from its inputs (B) stays non-negative, and ``A+ - A-`` weighs it.

    >>> matrix = torch.tensor([[1.0, 2], [2, 4]])
    >>> right, left = nmf(matrix).cut((1,))
    >>> bool((right >= 0).all()), torch.allclose((left @ right).float(), matrix, atol=1e-3)
    (True, True)
    """
    matrix = weight.double().flatten(1)
    negative = bool((matrix < 0).any())
    parts = [matrix.clamp_min(0), (-matrix).clamp_min(0)] if negative else [matrix]
    stacked = torch.cat(parts)
    norm = max(float(matrix.square().sum()), 1e-30)

    @cache
    def fitted(rank: int) -> tuple[list[Tensor], float]:
        from sklearn.decomposition import NMF
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # near enough after so many sweeps
            found = NMF(rank, init="nndsvda", max_iter=500, random_state=0)
            left = torch.from_numpy(found.fit_transform(stacked.numpy()))
        right = torch.from_numpy(found.components_)
        left = left[: len(matrix)] - left[len(matrix) :] if negative else left
        error = float((matrix - left @ right).square().sum()) / norm
        sizes = [left.norm(dim=0), right.norm(dim=1)]
        share = torch.where(sizes[0] * sizes[1] > 0, (sizes[1] / sizes[0].clamp_min(1e-30)).sqrt(), 1.0)
        return [right / share[:, None], left * share], min(error, 1.0)

    return Decomposed(lambda ranks: fitted(ranks[0])[0], lambda ranks: fitted(ranks[0])[1])


def _lost(singular: Tensor) -> list[float]:
    """Return the share of the squares that is lost beyond each rank, from 1 on."""
    squares = singular.square()
    tail = squares.flip(0).cumsum(0).flip(0)
    total = float(tail[0])
    if not total or not math.isfinite(total):
        return [0.0] * len(singular)
    result: list[float] = (torch.cat([tail[1:], tail.new_zeros(1)]) / total).tolist()
    return result
