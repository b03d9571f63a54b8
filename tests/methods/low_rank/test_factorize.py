"""Factorization of whole models: ranks, budgets, notes, and what is kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nutlet as nl
import tiny
from conformance.examples import check_constraints, check_saved, same_state
from nutlet.constraints import WeightQuantizer
from nutlet.constraints.stack import Mask, constrained_layers
from nutlet.data.examples import Data
from nutlet.methods.low_rank import decompositions
from nutlet.tasks.predict import evaluate
from nutlet.training.context import Context

EVERY = ("svd", "whitened", "spatial", "tucker", "cp", "nmf")
Model = tuple[nn.Module, Data]


@pytest.fixture(scope="module")
def cnn() -> Model:
    return tiny.tiny("cnn")


def options(kind: str) -> dict[str, Any]:
    return {"decomposition": kind, "signed": "split" if kind == "nmf" else "refuse"}


@pytest.mark.parametrize("what", ["parameters", "macs"])
@pytest.mark.parametrize("kind", EVERY)
def test_a_budget_is_met_on_the_model_itself(kind: str, what: str, cnn: Model) -> None:
    share = 0.85
    result = nl.compress(cnn[0], [nl.Factorize(**options(kind), **{what: share})], cnn[1])
    before, after = (getattr(step.size, what) for step in result.steps)
    assert after <= share * before
    # Ranks are whole numbers, and the layers small; few ranks are tried of those that have no spectrum.
    assert after > (share - (0.25 if kind in ("cp", "nmf") else 0.12)) * before
    assert result.steps[1].size.parameters < result.steps[0].size.parameters
    assert result.steps[1].size.macs <= result.steps[0].size.macs


def test_a_budget_that_cannot_be_met_says_what_can(cnn: Model) -> None:
    with pytest.raises(nl.ConfigError, match=r"Factorize.parameters is 0.05, but the lowest ranks leave 0\.\d\d"):
        nl.compress(cnn[0], [nl.Factorize(parameters=0.05)], cnn[1])


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_the_search_keeps_the_accuracy_that_was_asked_for(drop: float, cnn: Model) -> None:
    model, data = cnn
    result = nl.compress(model, [nl.Factorize(decomposition="whitened", drop=drop)], data)
    assert evaluate(result.model, data.validation) >= evaluate(model, data.validation) - drop - 1e-9
    assert any("ranks searched with" in note for note in result.steps[1].notes)
    assert result.steps[1].size.parameters < result.steps[0].size.parameters


def test_more_energy_keeps_more(cnn: Model) -> None:
    sizes = [
        nl.compress(cnn[0], [nl.Factorize(energy=energy)], cnn[1]).steps[1].size.parameters
        for energy in (0.3, 0.5, 0.7)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_only_one_way_to_choose_ranks() -> None:
    with pytest.raises(nl.ConfigError, match="macs and drop; expected one of"):
        nl.Factorize(macs=0.5, drop=0.01)


def test_a_rank_larger_than_a_named_matrix_is_refused(cnn: Model) -> None:
    with pytest.raises(nl.ConfigError, match=r"fc is a 4 x 16 matrix; expected at most 4"):
        nl.compress(cnn[0], [nl.Factorize(rank=9, include=("fc",))], cnn[1])
    notes = nl.compress(cnn[0], [nl.Factorize(rank=9)], cnn[1]).steps[1].notes
    assert "fc: rank at most 4, left as it is" in notes


def test_a_signed_weight_is_refused_and_the_split_offered(cnn: Model) -> None:
    with pytest.raises(nl.ConfigError, match=r"values in the weight of fc are negative.*signed='split'"):
        nl.compress(cnn[0], [nl.Factorize(decomposition="nmf", include=("fc",))], cnn[1])
    model = copy.deepcopy(cnn[0])
    with torch.no_grad():
        model.fc.weight.abs_()
    low = nl.compress(model, [nl.Factorize(decomposition="nmf", rank=2, include=("fc",))], cnn[1]).model
    assert all(bool((part.weight >= 0).all()) for part in low.fc)
    split = nl.Factorize(decomposition="nmf", signed="split", rank=2, include=("fc",))
    low = nl.compress(cnn[0], [split], cnn[1]).model
    assert bool((low.fc[0].weight >= 0).all())


class Odd(nn.Module):
    """A grouped convolution, two tied layers, one that is never called, and a strided one."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(3, 6, 3, groups=3, padding=1)
        self.strided = nn.Conv2d(6, 16, 3, stride=(1, 8), padding=1)
        self.a, self.b, self.unused = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(16, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.strided(F.relu(self.grouped(x)))).mean((2, 3))
        return self.fc(F.relu(self.b(F.relu(self.a(x)))))


def test_layers_that_cannot_change_are_left_with_a_note() -> None:
    data = tiny.tiny_data((3, 8, 8))
    model = tiny.settled(Odd(), data.calibration.x)
    result = nl.compress(model, [nl.Factorize(decomposition="spatial", rank=6)], data)
    notes = " | ".join(result.steps[1].notes)
    assert "grouped: a grouped convolution, left as it is" in notes
    assert "a: another layer has the same weight" in notes
    assert "b: another layer has the same weight" in notes
    assert "unused: the model does not call it" in notes
    # Fewer parameters, but the first of two layers would not yet have the stride along the second axis.
    assert "strided: rank 6 not cheaper than 16 x 6 x 3 x 3 as it is" in notes
    assert result.steps[1].plan["ranks"] == {}
    assert same_state(result.model, model)


@pytest.mark.parametrize("kind", EVERY)
def test_constraints_go_over_to_the_factors_or_are_dissolved(kind: str, cnn: Model, tmp_path: Path) -> None:
    steps = [nl.PruneWeights(sparsity=0.3), nl.Quantize(), nl.Factorize(**options(kind), rank=2)]
    result = nl.compress(cnn[0], steps, cnn[1])
    notes = result.steps[-1].notes
    assert "mix: Mask does not hold for the thinner layers" in notes
    assert "mix: WeightQuantizer holds for the thinner layers, fitted anew" in notes
    stacks = {name: layer for name, layer in constrained_layers(result.model.model) if name.startswith("mix.")}
    assert len(stacks) == len(result.model.model.mix)
    for layer in stacks.values():
        assert [type(c) for c in layer.parametrizations.weight] == [WeightQuantizer]
        assert not any(isinstance(c, Mask) for c in layer.parametrizations.weight)
    check_constraints(result.model.model)
    check_saved(result, cnn[0], cnn[1], tmp_path)


@pytest.mark.parametrize("kind", EVERY)
def test_loading_decomposes_nothing(kind: str, cnn: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = cnn
    result = nl.compress(model, [nl.Factorize(**options(kind), rank=2)], data)
    assert result.steps[1].plan["ranks"]
    for name in EVERY:
        monkeypatch.delattr(decompositions, name)
    check_saved(result, model, data, tmp_path)


def test_the_model_is_not_changed_by_deciding(cnn: Model) -> None:
    model, data = cnn
    before = copy.deepcopy(model)
    for kind in ("whitened", "tucker"):
        nl.Factorize(**options(kind), drop=0.2).plan(model, Context(data=data, teacher=model))
        assert same_state(model, before)
        assert repr(model) == repr(before)


def test_ranks_of_a_plan_are_checked(cnn: Model) -> None:
    for ranks in ([0], [5], [2, 2], []):
        with pytest.raises(nl.ModelError, match="found the ranks"):
            nl.Factorize.apply(
                copy.deepcopy(cnn[0]), {"decomposition": "svd", "ranks": {"fc": ranks}}, cnn[1].train.x[:2]
            )
