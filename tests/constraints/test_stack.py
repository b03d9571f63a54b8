"""Constraints: what they do to a weight, alone and stacked."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from conformance.examples import largest_code_pair
from nutlet.constraints import QuantScheme, WeightQuantizer
from nutlet.constraints.stack import (
    Mask,
    constrain,
    constrained_weight,
    constraints,
    expand_range,
    output_axis,
    raw_weight,
    remove_constraints,
)

SHAPES = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4)),
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
)


@given(shape=SHAPES, seed=st.integers(0, 2**31), power=st.sampled_from([1.0, 3.0]), axis=st.integers(0, 1))
@example(shape=(1, 2), seed=0, power=1.0, axis=0)
@settings(max_examples=300, deadline=None)
def test_portable_codes_of_neighbours_never_saturate(
    shape: tuple[int, ...], seed: int, power: float, axis: int
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight = weight.sign() * weight.abs() ** power
    quantizer = WeightQuantizer.fit(weight, axis)
    snapped = quantizer(weight)
    codes = quantizer.codes(snapped)
    assert largest_code_pair(codes, axis) <= 128
    assert int(codes.abs().max()) <= 127
    # No weight is clipped: the error is at most half a step.
    steps = quantizer.scale.view([-1 if d == axis else 1 for d in range(weight.ndim)])
    assert bool(((snapped - weight).abs() <= steps * 0.5 * (1 + 1e-4)).all())


@given(shape=SHAPES, seed=st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_codes_give_the_weight_back(shape: tuple[int, ...], seed: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    quantizer = WeightQuantizer.fit(weight, grid=QuantScheme(reduce_range=False))
    snapped = quantizer(weight)
    scale = quantizer.scale.view([-1] + [1] * (weight.ndim - 1))
    assert torch.equal(quantizer.codes(snapped) * scale, snapped)
    assert torch.equal(quantizer(snapped), snapped), "quantizing twice is quantizing once"
    assert bool((quantizer.codes(snapped).abs().flatten(1).amax(1) == 127).all())


@given(shape=SHAPES, seed=st.integers(0, 2**31), data=st.data())
@settings(max_examples=100, deadline=None)
def test_select_commutes_with_the_constraint(shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    dim = data.draw(st.integers(0, len(shape) - 1))
    keep = torch.tensor(sorted(data.draw(st.sets(st.integers(0, shape[dim] - 1), min_size=1))))
    for constraint in (
        Mask(torch.rand(shape, generator=generator) < 0.5),
        WeightQuantizer.fit(weight),
        WeightQuantizer.fit(weight, 1),
    ):
        assert torch.equal(
            constraint.select(dim, keep)(weight.index_select(dim, keep)), constraint(weight).index_select(dim, keep)
        )


def test_an_all_zero_channel_stays_zero() -> None:
    weight = torch.zeros(2, 3)
    quantizer = WeightQuantizer.fit(weight)
    assert bool((quantizer.scale > 0).all())
    assert torch.equal(quantizer(weight), weight)


def test_a_mask_gives_true_zeros() -> None:
    masked = Mask(torch.tensor([False, False]))(torch.tensor([-1.0, float("inf")]))
    assert torch.equal(masked, torch.zeros(2))
    assert not bool(torch.signbit(masked).any())


def test_gradients_stop_at_the_mask_and_pass_the_quantizer() -> None:
    layer = nn.Linear(4, 2, bias=False)
    mask = torch.tensor([[True, False, True, True], [True, True, False, True]])
    constrain(layer, [Mask(mask), WeightQuantizer.fit(raw_weight(layer).detach() * mask)])
    layer(torch.ones(1, 4)).sum().backward()
    grad = raw_weight(layer).grad
    assert grad is not None
    assert torch.equal(grad, mask.float())


@pytest.mark.parametrize("bake", [False, True])
def test_taking_off_a_copy_leaves_the_original_alone(bake: bool) -> None:
    layer = nn.Linear(3, 3)
    raw = raw_weight(layer).detach().clone()
    constrain(layer, [Mask(torch.eye(3, dtype=torch.bool))])
    copied = copy.deepcopy(layer)
    stack = remove_constraints(copied, bake=bake)
    assert type(copied) is nn.Linear
    assert [type(c) for c in stack] == [Mask]
    assert torch.equal(copied.weight, raw * torch.eye(3) if bake else raw)
    assert torch.equal(layer.weight, raw * torch.eye(3))
    assert len(constraints(layer)) == 1
    constrain(copied, stack)
    assert torch.equal(constrained_weight(copied), constrained_weight(layer))


def test_widening_only_widens() -> None:
    layer = nn.Linear(4, 2)
    constrain(layer, [WeightQuantizer.fit(raw_weight(layer))])
    quantizer = constraints(layer)[0]
    assert isinstance(quantizer, WeightQuantizer)
    before = quantizer.scale.clone()
    with torch.no_grad():
        raw_weight(layer)[0] *= 2
        raw_weight(layer)[1] /= 2
    expand_range(layer)
    torch.testing.assert_close(quantizer.scale, before * torch.tensor([2.0, 1.0]))
    assert largest_code_pair(quantizer.codes(constrained_weight(layer)), 0) <= 128


def test_output_axis() -> None:
    assert output_axis(nn.ConvTranspose2d(3, 4, 1)) == 1
    assert output_axis(nn.Conv2d(3, 4, 1)) == output_axis(nn.Linear(3, 4)) == 0
