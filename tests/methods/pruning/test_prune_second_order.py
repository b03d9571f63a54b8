"""Second-order pruning against the closed form, and against magnitude."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import nutlet as nl
import tiny
from nutlet.constraints import WeightQuantizer
from nutlet.constraints.stack import Mask, constrained_weight, constraints
from nutlet.data.examples import Data, Examples
from nutlet.graph.statistics import input_moments
from nutlet.methods.pruning.elimination import eliminate, inverse_factor, least_error


def problem(groups: int = 1, rows: int = 3, columns: int = 6) -> tuple[Tensor, Tensor]:
    """Return a weight and the moments of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(groups, 50, columns, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(groups, columns, columns, generator=generator, dtype=torch.float64)
    weight = torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)
    return weight, x.transpose(1, 2) @ x / 50


def removing(columns: set[int]):  # type: ignore[no-untyped-def]
    return lambda k, rest, spread: rest[..., 0] * (k not in columns)


def test_one_removed_weight_is_the_closed_form_of_optimal_brain_surgery() -> None:
    weight, moments = problem()
    found = eliminate(weight, inverse_factor(moments, damping=1e-12), removing({0}))
    inverse = torch.linalg.inv(moments[0])
    expected = weight[0] - torch.outer(weight[0, :, 0] / inverse[0, 0], inverse[0])  # w - w_q / [H^-1]_qq H^-1_q
    torch.testing.assert_close(found[0, :, 1:], expected[:, 1:])
    assert not bool(found[..., 0].any())


def test_the_first_columns_that_go_are_made_up_for_as_well_as_can_be() -> None:
    weight, moments = problem(groups=2)
    found = eliminate(weight, inverse_factor(moments, damping=1e-12), removing({0, 1}))
    for group in range(2):
        h = moments[group]
        best = weight[group] @ h[:, 2:] @ torch.linalg.inv(h[2:, 2:])  # least squares on the columns that stay
        torch.testing.assert_close(found[group, :, 2:], best)


def test_no_weight_that_stays_could_do_better() -> None:
    weight, moments = problem(groups=2)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    found = least_error(weight, moments, mask)
    gradient = (found - weight) @ moments
    assert not bool(found[~mask].any())
    torch.testing.assert_close(gradient[mask], torch.zeros_like(gradient[mask]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("block", [1, 2, 4, 100])
def test_blocks_change_nothing(block: int) -> None:
    weight, moments = problem()
    factor = inverse_factor(moments, damping=0.01)
    whole = eliminate(weight, factor, removing({1, 4}))
    torch.testing.assert_close(eliminate(weight, factor, removing({1, 4}), block), whole)


def test_rounding_with_feedback_beats_rounding() -> None:
    weight, moments = problem(rows=20)
    fed = eliminate(weight, inverse_factor(moments, 0.01), lambda k, rest, spread: rest[..., 0].round())
    assert torch.equal(fed, fed.round())
    assert error(fed - weight, moments) < 0.7 * error(weight.round() - weight, moments)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    weight, moments = problem()
    moments[:, 2], moments[:, :, 2] = 0, 0
    for h in (moments, torch.zeros_like(moments)):
        assert bool(eliminate(weight, inverse_factor(h, 0.01), removing({0, 2})).isfinite().all())


def error(change: Tensor, moments: Tensor) -> float:
    return float((change @ moments @ change.transpose(1, 2)).diagonal(dim1=1, dim2=2).sum())


OPTIONS = [
    {"sparsity": 0.5, "distribution": "uniform"},
    {"pattern": "2:4"},
    {"sparsity": 0.5, "pattern": "block", "block": (1, 2), "distribution": "uniform"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_layers_are_reconstructed_better_than_by_magnitude(kind: str, options: dict[str, object]) -> None:
    model, data = tiny.tiny(kind)
    second, first = (
        nl.compress(model, [nl.method_from_dict({name: options})], data)
        for name in ("PruneSecondOrder", "PruneWeights")
    )
    names = second.steps[-1].plan["masked"]
    assert names == first.steps[-1].plan["masked"]
    moments = input_moments(model, names, data.calibration.batches())
    for name in names:
        old = constrained_weight(model.get_submodule(name)).flatten(1)
        h = moments[name]
        errors = []
        for result in (second, first):
            change = constrained_weight(result.model.get_submodule(name)).flatten(1) - old
            errors.append(error(change.double().view(len(h), -1, h.shape[-1]), h))
        assert errors[0] < errors[1], name
        kept = [int(constrained_weight(r.model.get_submodule(name)).count_nonzero()) for r in (second, first)]
        assert kept[0] == kept[1], name


def test_n_of_m_is_exact() -> None:
    model, data = tiny.tiny("cnn")
    result = nl.compress(model, [nl.PruneSecondOrder(pattern="1:4")], data)
    for name in result.steps[-1].plan["masked"]:
        weight = constrained_weight(result.model.get_submodule(name))
        assert bool(((weight != 0).movedim(1, -1).unflatten(-1, (-1, 4)).sum(-1) == 1).all()), name


def test_an_earlier_mask_is_kept() -> None:
    model, data = tiny.tiny("cnn")
    chain = [nl.PruneWeights(sparsity=0.3, distribution="uniform"), nl.PruneSecondOrder(sparsity=0.5)]
    one, both = nl.compress(model, chain[:1], data), nl.compress(model, chain, data)
    for name in both.steps[-1].plan["masked"]:
        before, after = (constrained_weight(r.model.get_submodule(name)) for r in (one, both))
        assert not bool(after[before == 0].any()), name
        assert float((after == 0).float().mean()) == pytest.approx(0.5, abs=0.03), name


def test_weights_stay_on_their_grid_and_what_rounding_loses_is_made_up_for() -> None:
    model, data = tiny.tiny("mlp")
    coarse = nl.compress(model, [nl.Quantize(activations=False)], data)
    result = nl.compress(model, [nl.Quantize(activations=False), nl.PruneSecondOrder(sparsity=0.5)], data)
    for name in result.steps[-1].plan["masked"]:
        old, new = coarse.model.get_submodule(name), result.model.get_submodule(name)
        grid, mask = constraints(new)
        assert isinstance(grid, WeightQuantizer)
        assert isinstance(mask, Mask)
        assert torch.equal(grid.scale, constraints(old)[0].scale)
        weight = constrained_weight(new)
        assert torch.equal(grid.codes(weight) * grid.scale[:, None], weight)
        assert not torch.equal(weight, mask(constrained_weight(old))), "the rest made up for nothing"


def test_layers_that_cannot_be_changed_are_named() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
            self.two.weight = self.one.weight
            self.unused = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.out(self.two(self.one(x).relu()).relu())
            return result

    examples = Examples(torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4)
    data = Data(train=examples, validation=examples, calibration=examples)
    step = nl.compress(Tied(), [nl.PruneSecondOrder(sparsity=0.5)], data).steps[-1]
    assert step.plan["masked"] == ["out"]
    assert "one: another layer has the same weight, left alone" in step.notes
    assert "unused: nobody calls it, left alone" in step.notes
