"""Each decomposition by itself: what its chain computes, what it says it loses, what it costs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nutlet.compression.size import size_of
from nutlet.constraints.stack import constrained_weight
from nutlet.graph.statistics import input_moments
from nutlet.methods.low_rank import decompositions
from nutlet.methods.low_rank.decompositions import Decomposed, chain, fits, limits, nmf, pieces, svd, whitened
from nutlet.methods.low_rank.ranks import candidates, costs

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: nn.Linear(6, 5), (4, 6)),
    "sequence": (lambda: nn.Linear(6, 5, bias=False), (4, 3, 6)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 8)),
    "same": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2, bias=False), (2, 4, 9, 8)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 2), padding_mode="circular"), (2, 4, 9, 8)),
    "reflected": (lambda: nn.Conv2d(4, 6, (3, 5), padding=(2, 1), padding_mode="reflect"), (2, 4, 9, 8)),
    "column": (lambda: nn.Conv2d(4, 6, (5, 1), padding=(2, 1), stride=2), (2, 4, 9, 8)),
    "point": (lambda: nn.Conv2d(4, 6, 1, stride=2), (2, 4, 9, 8)),
    "signal": (lambda: nn.Conv1d(4, 6, 5, stride=2, padding=4, dilation=2), (2, 4, 17)),
}
EXACT = ("svd", "whitened", "spatial", "tucker")


def layer_of(name: str, weight: Tensor | None = None) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make()
    if weight is not None:
        with torch.no_grad():
            layer.get_parameter("weight").copy_(weight)
    return layer, torch.randn(shape)


def taken_apart(kind: str, layer: nn.Module, x: Tensor) -> tuple[str, Decomposed]:
    weight = constrained_weight(layer)
    kind = fits(kind, tuple(weight.shape))
    if kind == "whitened":
        return kind, whitened(weight, input_moments(nn.Sequential(layer), ["0"], [(x, x)])["0"][0])
    return kind, getattr(decompositions, kind)(weight)


def written(kind: str, layer: nn.Module, taken: Decomposed, ranks: tuple[int, ...]) -> nn.Sequential:
    thin = chain(copy.deepcopy(layer), pieces(kind, tuple(constrained_weight(layer).shape), ranks))
    with torch.no_grad():
        for part, weight in zip(thin, taken.cut(ranks), strict=True):
            part.get_parameter("weight").copy_(weight.reshape(constrained_weight(part).shape))
    return thin


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", EXACT)
def test_at_full_rank_the_chain_computes_what_the_layer_does(kind: str, name: str) -> None:
    layer, x = layer_of(name)
    kind, taken = taken_apart(kind, layer, x)
    thin = written(kind, layer, taken, limits(kind, tuple(constrained_weight(layer).shape)))
    torch.testing.assert_close(thin(x), layer(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["strided", "same", "circular", "column", "signal"])
def test_cp_finds_a_tensor_of_its_rank(name: str) -> None:
    shape = tuple(constrained_weight(layer_of(name)[0]).shape)
    generator = torch.Generator().manual_seed(1)
    sides = [torch.randn(side, 2, generator=generator) for side in shape]
    letters = "abcd"[: len(shape)]
    weight = torch.einsum(",".join(f"{letter}r" for letter in letters) + f"->{letters}", *sides)
    layer, x = layer_of(name, weight)
    thin = written("cp", layer, decompositions.cp(weight), (2,))
    error = (thin(x) - layer(x)).detach().norm() / layer(x).detach().norm()
    assert float(error) < 0.01


def test_nmf_finds_parts_and_splits_signs() -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = torch.rand(8, 2, generator=generator), torch.rand(2, 10, generator=generator)
    taken = nmf(left @ right)
    assert taken.error((2,)) < 1e-4
    assert all(bool((part >= 0).all()) for part in taken.cut((2,)))
    signs = torch.tensor([1.0, -1.0]).repeat(4)[:, None]
    taken = nmf(signs * (left @ right))
    first, second = taken.cut((2,))
    assert taken.error((2,)) < 1e-3
    assert bool((first >= 0).all())
    assert bool((second < 0).any())


@pytest.mark.parametrize("kind", [*EXACT, "cp", "nmf"])
def test_the_error_told_is_the_error_made(kind: str) -> None:
    layer, x = layer_of("strided")
    _, taken = taken_apart(kind, layer, x)
    ranks = (3, 2) if kind == "tucker" else (2,)
    bare = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
    bare.load_state_dict({"weight": layer.weight})
    thin = written(kind, bare, taken, ranks)
    # The weight of a chain is what it answers to each input alone.
    units = torch.eye(36).view(36, 4, 3, 3)
    for module in [bare, *thin]:
        module.padding, module.stride = (0, 0), (1, 1)
    answers, wanted = thin(units).flatten(1).T.detach(), bare(units).flatten(1).T.detach()
    lost = answers - wanted
    if kind == "whitened":
        layer, x = layer_of("strided")
        h = input_moments(nn.Sequential(layer), ["0"], [(x, x)])["0"][0].float()
        made = float((lost @ h * lost).sum() / (wanted @ h * wanted).sum())
    else:
        made = float(lost.square().sum() / wanted.square().sum())
    if kind == "tucker":  # iterated, it gets better than what is told
        assert taken.error(ranks) - 0.05 < made <= taken.error(ranks) + 1e-6
    else:
        assert made == pytest.approx(taken.error(ranks), rel=1e-3)


def test_whitened_loses_less_of_the_outputs_than_plain() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 10)
    x = torch.randn(200, 12) @ torch.diag(torch.linspace(0, 3, 12)) @ torch.randn(12, 12)
    moments = input_moments(nn.Sequential(layer), ["0"], [(x, x)])["0"][0]
    plain = written("svd", layer, svd(layer.weight.detach()), (4,))
    aware = written("svd", layer, whitened(layer.weight.detach(), moments), (4,))
    with torch.no_grad():
        lost = {name: float((thin(x) - layer(x)).norm()) for name, thin in (("svd", plain), ("whitened", aware))}
    assert lost["whitened"] < 0.8 * lost["svd"]


def test_whitened_survives_inputs_that_are_never_seen() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 6), torch.randn(50, 8)
    x[:, 3:] = 0
    taken = whitened(layer.weight.detach(), (x.T @ x / 50).double())
    thin = written("svd", layer, taken, (3,))
    torch.testing.assert_close(thin(x), layer(x), atol=1e-5, rtol=1e-4)
    assert taken.error((3,)) < 1e-6
    dead = whitened(layer.weight.detach(), torch.zeros(8, 8).double())
    assert all(bool(torch.isfinite(part).all()) for part in dead.cut((2,)))


@pytest.mark.parametrize("kind", ["svd", "whitened", "spatial", "tucker", "cp", "nmf"])
def test_a_weight_of_zeros_stays_one(kind: str) -> None:
    layer, x = layer_of("strided", torch.zeros(6, 4, 3, 3))
    kind, taken = taken_apart(kind, layer, x)
    ranks = (2, 2) if kind == "tucker" else (2,)
    torch.testing.assert_close(written(kind, layer, taken, ranks)(x), layer(x))
    assert taken.error(ranks) == 0


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["svd", "spatial", "tucker", "cp"])
def test_costs_are_those_of_the_modules(kind: str, name: str) -> None:
    layer, x = layer_of(name)
    shape = tuple(constrained_weight(layer).shape)
    kind = fits(kind, shape)
    parts = pieces(kind, shape, candidates(kind, shape)[2])
    found = size_of(chain(layer, parts).eval(), x)
    parameters, macs = costs(parts, [(tuple(x.shape), tuple(layer(x).shape))])
    assert macs == found.macs
    assert parameters == found.parameters - (layer.bias is not None) * shape[0]


def test_chains_are_pieces_of_the_shapes_they_say() -> None:
    for kind in ("svd", "spatial", "tucker", "cp"):
        layer, _ = layer_of("strided")
        parts = pieces(kind, (6, 4, 3, 3), (2, 3))
        assert [tuple(part.weight.shape) for part in chain(layer, parts)] == [part.shape for part in parts]
        assert [part.bias is not None for part in chain(layer, parts)] == [False] * (len(parts) - 1) + [True]
