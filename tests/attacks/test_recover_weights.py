from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from nutlet.attacks.base import AttackerKnowledge, AttackResult
from nutlet.attacks.extraction.line import Line
from nutlet.attacks.white_box.recover_weights import RecoverWeights, precision, weight_error
from nutlet.errors import ModelError
from nutlet.oracle import Disclosure, Oracle, source_of


def network(inputs: int, hidden: int, outputs: int, seed: int = 0) -> nn.Sequential:
    """A two-layer network in float64 with random weights and biases."""
    generator = torch.Generator().manual_seed(seed)
    made = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)).double()
    for parameter in made.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
        parameter.data = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made


def steal(victim: nn.Module, shape: tuple[int, ...], outputs: int, budget: int = 5000, seed: int = 7) -> AttackResult:
    oracle = Oracle(source_of(victim), answers=Disclosure("logits"), budget=budget)
    (loot,) = RecoverWeights().run(
        oracle, AttackerKnowledge(classes=outputs, shape=shape, seed=seed), [budget // 2, budget]
    )
    assert loot.queries == oracle.queries <= budget
    assert loot.facts is not None
    return loot


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("sizes", "most"), [((10, 16, 4), 200), ((20, 32, 10), 620), ((10, 16, 2), 350)])
def test_every_weight_is_found(sizes: tuple[int, int, int], most: int, seed: int) -> None:
    victim = network(*sizes, seed=seed)
    loot = steal(victim, sizes[:1], sizes[2], seed=seed + 7)
    assert loot.clone is not None
    assert weight_error(loot.clone, victim) < 1e-4
    assert loot.queries < most
    assert loot.facts is not None
    assert (loot.facts["neurons"], loot.facts["digits"], loot.share) == (sizes[1], 15, 1.0)
    x = torch.randn(50, sizes[0], dtype=torch.float64)
    torch.testing.assert_close(loot.clone(x), victim(x), rtol=1e-4, atol=1e-4)


def test_fewer_queries_than_weights_on_images() -> None:
    victim = network(144, 40, 10)
    loot = steal(nn.Sequential(nn.Flatten(), victim), (1, 12, 12), 10)
    assert loot.clone is not None
    assert weight_error(loot.clone, victim) < 1e-4
    assert loot.queries < 0.3 * sum(p.numel() for p in victim.parameters())
    assert loot.clone(torch.zeros(3, 1, 12, 12)).shape == (3, 10)


def test_scores_that_mirror_each_other() -> None:
    victim = network(24, 12, 2)
    last = victim[2]
    assert isinstance(last, nn.Linear)
    last.weight.data[1], last.bias.data[1] = -last.weight.data[0], -last.bias.data[0]
    loot = steal(victim, (24,), 2)
    assert loot.clone is not None
    assert weight_error(loot.clone, victim) < 1e-4


def test_float32_breaks_it_down() -> None:
    victim = network(10, 8, 2, seed=1)
    exact, coarse = steal(victim, (10,), 2), steal(copy.deepcopy(victim).float(), (10,), 2)
    assert exact.clone is not None
    assert coarse.clone is not None
    assert coarse.facts is not None
    assert coarse.facts["digits"] == 7
    assert weight_error(exact.clone, victim) < 1e-6
    assert 1e-5 < weight_error(coarse.clone, victim) < 0.3


@pytest.mark.parametrize(
    "victim",
    [
        nn.Sequential(network(10, 16, 8), nn.ReLU(), network(8, 6, 4)),
        nn.Sequential(network(10, 16, 4)[0], nn.GELU(), network(10, 16, 4)[2]),
        nn.Sequential(network(10, 16, 4), nn.Softmax(1)),
        network(1, 10, 4)[2],
    ],
    ids=["deeper", "smooth", "probabilities", "linear"],
)
def test_another_kind_of_network_is_not_taken_for_one(victim: nn.Module) -> None:
    loot = steal(victim, (10,), 4, budget=1000)
    assert loot.facts is not None
    assert loot.share == 0


@pytest.mark.parametrize("budget", [9, 20, 60, 140])
def test_a_small_budget_is_kept(budget: int) -> None:
    loot = steal(network(10, 16, 4), (10,), 4, budget=budget)
    assert loot.facts is not None
    assert loot.share == 0


def test_a_line_shows_every_bend_even_within_a_probe() -> None:
    """Close pairs, and a bend exactly where the first questions are asked."""
    times = torch.tensor([-3.0, -1e-5, 1e-5, 0.7, 0.70001], dtype=torch.float64)
    jumps = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def ask(x: Tensor) -> Tensor:
        return (x[:, :1] - times).relu() @ jumps

    line = Line(ask, torch.zeros(2).double(), torch.tensor([1.0, 2.0]).double(), 2.0**-53, loose=False)
    found = line.bends()
    torch.testing.assert_close(torch.tensor([t for t, _ in found]).double(), times, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(torch.stack([jump for _, jump in found]), jumps, atol=1e-6, rtol=1e-6)
    slope = jumps[:3].sum(0)
    gradient = line.gradient(torch.tensor(0.3), torch.tensor(0.3), slope)
    torch.testing.assert_close(gradient, torch.stack([slope, torch.zeros(3)], 1).double(), atol=1e-8, rtol=1e-6)


def test_precision_of_answers() -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert precision(values) == 2.0**-53
    assert precision(values.float()) == 2.0**-24
    assert precision(values.half()) == 2.0**-11
    assert precision(values.bfloat16()) == 2.0**-8
    assert math.isclose(precision(values.round(decimals=3)), 0.0005 / float(values.abs().max()), rel_tol=0.01)
    assert precision(torch.zeros(4)) <= 1


def test_the_oracle_keeps_float64() -> None:
    x = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    assert torch.equal(Oracle(nn.Identity(), answers=Disclosure("logits")).query(x), x)
    victim = network(3, 2, 2)
    assert torch.equal(Oracle(source_of(victim), answers=Disclosure("logits")).query(x), victim(x))
    assert Oracle(source_of(victim.float()), answers=Disclosure("logits")).query(x).dtype == torch.float32


def test_weight_error_knows_what_makes_no_difference() -> None:
    true = network(5, 6, 3)
    first, bias, last, last_bias = (p.detach() for p in true.parameters())
    order, scale = torch.randperm(6), torch.rand(6).double() + 0.5

    def changed(a: Tensor, b: Tensor, w: Tensor, c: Tensor) -> nn.Module:
        made = network(5, len(a), 3)
        for parameter, values in zip(made.parameters(), (a, b, w, c), strict=True):
            parameter.data = values
        return made

    same = changed(first[order] * scale[:, None], bias[order] * scale, last[:, order] / scale, last_bias)
    assert weight_error(same, true) < 1e-12
    assert weight_error(true, same) < 1e-12
    idle = changed(
        torch.cat([first, first[:1]]), torch.cat([bias, bias[:1]]), nn.functional.pad(last, (0, 1)), last_bias
    )
    assert weight_error(true, idle) < 1e-12
    assert weight_error(changed(-first, -bias, last, last_bias), true) > 0.1
    assert weight_error(changed(first[1:], bias[1:], last[:, 1:], last_bias), true) >= 1
    assert math.isclose(weight_error(changed(first, bias, last, last_bias * 1.01), true), 0.01, rel_tol=0.01)
    assert weight_error(changed(first, bias, last * 1.01, last_bias), true) > 0.009
    with pytest.raises(ModelError, match="1 dense layers; expected two"):
        weight_error(nn.Linear(2, 2), true)
    with pytest.raises(ModelError, match="expected two of the same"):
        weight_error(network(4, 6, 3), true)
