"""Quantizers of weights: codes, values, fits against formulas and brute force, what they do when a weight changes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nutlet.constraints import (
    Binarizer,
    Codebook,
    HalfFloat,
    Quantizer,
    QuantScheme,
    TrainedTernarizer,
    WeightQuantizer,
)
from nutlet.constraints.stack import Mask, constrain, constrained_weight, constraints, raw_weight

GRIDS = [
    QuantScheme(),
    QuantScheme(bits=2, ranges="mse", learn=True),
    QuantScheme(bits=3, granularity="group", group_size=4),
    QuantScheme(bits=4, granularity="group", group_size=5, symmetric=False, ranges="mse"),
    QuantScheme(bits=4, granularity="tensor", ranges="mean", learn=True),
    QuantScheme(bits=5, symmetric=False),
    QuantScheme(bits=6, power_of_two=True),
    QuantScheme(bits=8, granularity="tensor"),
]
FITS: dict[str, Callable[[Tensor], Quantizer]] = {
    **{f"grid {k}": lambda w, grid=grid: WeightQuantizer.fit(w, grid=grid) for k, grid in enumerate(GRIDS)},
    "binary": Binarizer.fit,
    "binary, one scale": lambda w: Binarizer.fit(w, granularity="tensor"),
    "signs": lambda w: Binarizer.fit(w, granularity="none"),
    "ttq": TrainedTernarizer.fit,
    "codebook": lambda w: Codebook.fit(w, count=8),
    "codebook without zero": lambda w: Codebook.fit(w, count=8, keep_zero=False),
    "float16": lambda w: HalfFloat("float16"),
    "bfloat16": lambda w: HalfFloat("bfloat16"),
}
every_kind = pytest.mark.parametrize("kind", FITS)


def weights(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@every_kind
@given(seed=st.integers(0, 2**31), shape=st.sampled_from([(3, 7), (2, 3, 3, 3), (1, 1), (4, 8)]))
@settings(max_examples=25, deadline=None)
def test_coding_twice_is_coding_once(kind: str, seed: int, shape: tuple[int, ...]) -> None:
    weight = weights(seed, *shape)
    quantizer = FITS[kind](weight).eval()
    once = quantizer(weight).detach()
    codes = quantizer.codes(weight)
    assert torch.equal(quantizer.values(codes).detach(), once)
    assert torch.equal(quantizer.codes(once), codes)
    assert torch.equal(quantizer(once), once)
    assert torch.equal(quantizer.restored(quantizer.stored(once)), once)
    assert set(codes.unique().tolist()) <= set(quantizer.levels)
    assert not bool((torch.signbit(once) & (once == 0)).any()), "a negative zero"


@every_kind
def test_training_gives_what_evaluation_gives_and_a_gradient_to_everything(kind: str) -> None:
    layer = nn.Linear(7, 3)
    quantizer = FITS[kind](raw_weight(layer).detach())
    constrain(layer, [quantizer])
    trained, evaluated = layer.train().weight.detach(), layer.eval().weight.detach()
    assert torch.equal(trained, evaluated)
    layer.train()(torch.ones(2, 7)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


@every_kind
def test_moving_the_weight_keeps_it_on_its_values(kind: str) -> None:
    layer = nn.Linear(7, 3)
    constrain(layer, [FITS[kind](raw_weight(layer).detach())])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    for _ in range(5):
        optimizer.zero_grad()
        (layer(weights(0, 16, 7)) - 1).square().sum().backward()
        optimizer.step()
    quantizer, weight = constraints(layer.eval())[0], constrained_weight(layer)
    assert isinstance(quantizer, Quantizer)
    assert torch.equal(quantizer(weight), weight)


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.granularity != "group"])
def test_channels_that_are_selected_keep_their_values(grid: QuantScheme) -> None:
    weight, keep = weights(1, 6, 5, 3, 3), torch.tensor([0, 2, 5])
    quantizer = WeightQuantizer.fit(weight, grid=grid).eval()
    assert torch.equal(quantizer.select(0, keep).eval()(weight[keep]), quantizer(weight)[keep])
    inputs = torch.tensor([1, 4])
    assert torch.equal(quantizer.select(1, inputs).eval()(weight[:, inputs]), quantizer(weight)[:, inputs])


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_follow_a_selection(symmetric: bool) -> None:
    weight = weights(2, 4, 12)
    grid = QuantScheme(bits=8, granularity="group", group_size=4, symmetric=symmetric)
    quantizer = WeightQuantizer.fit(weight, grid=grid)
    assert torch.equal(quantizer.select(0, torch.tensor([1, 3]))(weight[[1, 3]]), quantizer(weight)[[1, 3]])
    whole = torch.arange(4, 12)
    assert torch.allclose(quantizer.select(1, whole)(weight[:, whole]), quantizer(weight)[:, whole], atol=1e-6)
    odd = torch.tensor([0, 1, 5, 6, 7, 10])
    left = quantizer.select(1, odd)
    assert len(left.scale) == 4 * 2
    assert float((left(weight[:, odd]) - weight[:, odd]).abs().max()) <= float(left.scale.max()) * 0.51


def test_two_symmetric_bits_solve_the_problem_of_ternary_weight_networks() -> None:
    weight = weights(3, 1, 200)
    quantizer = WeightQuantizer.fit(weight, grid=QuantScheme(bits=2, ranges="mse"))
    error = float((quantizer(weight) - weight).square().sum())
    magnitudes = weight.abs().flatten().sort(descending=True).values
    # For the k largest weights kept, the best scale is their mean: all thresholds are tried (Li et al., equation 5).
    least = min(float(weight.square().sum()) - float(magnitudes[:k].sum()) ** 2 / k for k in range(1, 200))
    assert least <= error <= least * 1.02
    delta = 0.7 * weight.abs().mean()
    assert float(quantizer.scale) == pytest.approx(float(magnitudes[magnitudes > delta].mean()), rel=0.1)


def test_binary_scales_are_mean_magnitudes() -> None:
    weight = torch.tensor([[1.0, -3.0], [0.0, -0.5]])
    assert torch.equal(Binarizer.fit(weight)(weight), torch.tensor([[2.0, -2.0], [0.5, -0.5]]))
    assert torch.equal(Binarizer.fit(weight, granularity="none")(weight), torch.tensor([[1.0, -1.0], [1.0, -1.0]]))


def test_ttq_has_a_value_for_either_sign_and_zero_within_the_threshold() -> None:
    weight = torch.tensor([[4.0, 2.0, -1.0, 0.19, -0.2]])
    assert torch.equal(TrainedTernarizer.fit(weight)(weight), torch.tensor([[3.0, 3.0, -1.0, 0.0, 0.0]]))


@given(seed=st.integers(0, 2**31), count=st.integers(2, 20), zero=st.booleans())
@settings(max_examples=50, deadline=None)
def test_codebooks_have_their_size_and_keep_zeros(seed: int, count: int, zero: bool) -> None:
    weight = weights(seed, 5, 6)
    weight[weight.abs() < 0.5] = 0
    book = Codebook.fit(weight, count=count, keep_zero=zero)
    coded = book(weight).detach()
    assert len(book.shared) == count
    assert len(coded.unique()) <= count
    if zero:
        assert bool((coded[weight == 0] == 0).all())
    if len(weight.unique()) <= count:
        assert torch.allclose(coded, weight, atol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_more_bits_lose_less_and_groups_lose_less_than_channels(bits: int) -> None:
    weight = weights(4, 8, 64) * torch.logspace(0, 1, 64)

    def error(grid: QuantScheme) -> float:
        return float((WeightQuantizer.fit(weight, grid=grid)(weight) - weight).square().mean())

    finer = [
        error(QuantScheme(bits=bits, reduce_range=False, granularity="tensor")),
        error(QuantScheme(bits=bits, reduce_range=False)),
    ]
    finer.append(error(QuantScheme(bits=bits, granularity="group", group_size=8)))
    assert all(one > other for one, other in pairwise(finer))
    assert error(QuantScheme(bits=bits, ranges="mse", reduce_range=False)) <= finer[1]
    assert error(QuantScheme(bits=bits, power_of_two=True, reduce_range=False)) >= finer[1]
    if bits < 8:
        assert error(QuantScheme(bits=bits + 1, reduce_range=False)) < finer[1]


def test_powers_of_two_are_powers_of_two() -> None:
    for weight in (weights(5, 4, 9), weights(6, 4, 9) * 1e-4):
        scale = WeightQuantizer.fit(weight, grid=QuantScheme(power_of_two=True)).scale
        assert torch.equal(torch.exp2(scale.log2().round()), scale)


def test_an_asymmetric_grid_wastes_nothing_on_one_sided_weights() -> None:
    weight = weights(7, 3, 50).abs()
    quantizer = WeightQuantizer.fit(weight, grid=QuantScheme(bits=4, symmetric=False))
    assert quantizer.codes(weight).amin(1).tolist() == [-8, -8, -8]
    assert quantizer.codes(weight).amax(1).tolist() == [7, 7, 7]
    assert torch.equal(quantizer(torch.zeros(3, 50)), torch.zeros(3, 50))


def test_the_gradient_of_a_learned_step_is_that_of_the_paper() -> None:
    weight = torch.tensor([[0.9, -0.2, 5.0]])
    quantizer = WeightQuantizer(torch.tensor([0.5]), grid=QuantScheme(bits=3, learn=True, granularity="tensor")).train()
    quantizer(weight).sum().backward()
    ratio = weight / 0.5
    inside = (ratio.round() - ratio)[:, :2].sum()  # Esser et al. 2020, equation 3; the third is above the limit of 3
    assert quantizer.scale.grad is not None
    assert float(quantizer.scale.grad) == pytest.approx(float(inside + 3) / (3 * 3) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("kind", ["grid 0", "grid 2", "binary"])
def test_a_factor_for_each_channel_is_followed_exactly(kind: str) -> None:
    weight, factor = weights(8, 4, 12), torch.tensor([2.0, -0.5, 4.0, 1.0])
    quantizer = FITS[kind](weight)
    assert quantizer.supports_scaling
    before = quantizer(weight).detach()
    quantizer.scale_outputs(factor)
    assert torch.equal(quantizer(weight * factor[:, None]), before * factor[:, None])


def test_what_a_factor_would_move_does_not_fold() -> None:
    refusing = {name for name, fit in FITS.items() if not fit(weights(9, 4, 8)).supports_scaling}
    wanted = {"binary, one scale", "signs", "ttq", "codebook", "codebook without zero", "float16", "bfloat16"}
    wanted |= {
        f"grid {k}" for k, g in enumerate(GRIDS) if not g.symmetric or g.granularity == "tensor" or g.power_of_two
    }
    assert refusing == wanted


def test_half_floats_stay_finite() -> None:
    assert torch.equal(HalfFloat("float16")(torch.tensor([1e6, -1e6])), torch.tensor([65504.0, -65504.0]))
    assert float(HalfFloat("bfloat16")(torch.tensor(1e30))) == pytest.approx(1e30, rel=0.01)


def test_a_stack_has_its_order_whatever_came_first() -> None:
    layer = nn.Linear(6, 4)
    weight = raw_weight(layer).detach()
    made = [Mask(weight > 0), WeightQuantizer.fit(weight), Codebook.fit(weight, count=4)]
    constrain(layer, made)
    assert [type(c).__name__ for c in constraints(layer)] == ["Codebook", "WeightQuantizer", "Mask"]
    assert len(constrained_weight(layer).unique()) <= 4 * 4
    assert not bool(constrained_weight(layer)[weight <= 0].any())
