"""Criteria that are functions of the user."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nutlet as nl
import tiny
from nutlet.constraints.stack import constrained_weight
from nutlet.functions import find
from nutlet.options import schema

Scores = Mapping[str, Tensor]


def sizes(model: nn.Module, layers: Mapping[str, nn.Module], context: nl.Context) -> Scores:
    return {name: constrained_weight(layer).abs() for name, layer in layers.items()}


def last_channels(model: nn.Module, layers: Mapping[str, nn.Module], context: nl.Context) -> Scores:
    return {name: torch.arange(len(constrained_weight(layer)), 0, -1.0) for name, layer in layers.items()}


def last_inputs(model: nn.Module, layers: Mapping[str, nn.Module], context: nl.Context) -> Scores:
    return {name: torch.arange(constrained_weight(layer).shape[1], 0, -1.0) for name, layer in layers.items()}


def nothing(model: nn.Module, layers: Mapping[str, nn.Module], context: nl.Context) -> Scores:
    return {}


def negative(model: nn.Module, layers: Mapping[str, nn.Module], context: nl.Context) -> Scores:
    return {name: -constrained_weight(layer).abs() for name, layer in layers.items()}


def test_a_function_decides_as_the_name_does(tmp_path: Path) -> None:
    model, data = tiny.tiny("cnn")
    own = nl.compress(model, [nl.PruneWeights(sparsity=0.6, criterion=sizes)], data)
    ours = nl.compress(model, [nl.PruneWeights(sparsity=0.6)], data)
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(own.model.state_dict()[name], tensor)
    own.save(tmp_path)
    assert nl.Compressed.load(tmp_path, model).recipe == own.recipe


def test_channels_and_heads_go_by_the_function() -> None:
    model, data = tiny.tiny("cnn")
    context = nl.Context(data=data, teacher=model)
    removed = nl.PruneChannels(ratio=0.25, criterion=last_channels).plan(model, context)["removed"]
    assert removed["stem"] == [6, 7]
    model, data = tiny.tiny("attention")
    removed = nl.PruneHeads(ratio=0.25, criterion=last_inputs).plan(model, nl.Context(data=data, teacher=model))[
        "removed"
    ]
    assert set(map(tuple, removed.values())) == {(3,)}


def test_a_function_goes_through_plain_data() -> None:
    method = nl.PruneWeights(sparsity=0.5, criterion=sizes)
    assert method.to_dict() == {"PruneWeights": {"sparsity": 0.5, "criterion": f"{__name__}:sizes"}}
    assert nl.method_from_dict(method.to_dict()) == method
    assert {"type": "string", "pattern": r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"} in (
        schema(nl.PruneWeights)["properties"]["criterion"]["anyOf"]
    )


@pytest.mark.parametrize("criterion", [lambda *given: {}, partial(sizes), "magnitud", 3])
def test_what_no_file_can_name_is_refused(criterion: Any) -> None:
    with pytest.raises(nl.ConfigError, match=r"'magnitude', .* or a function\(model, layers, context\)"):
        nl.PruneWeights(sparsity=0.5, criterion=criterion)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (nothing, "gave no scores for stem"),
        (negative, "negative, NaN or infinite; expected zero or more"),
        (last_channels, r"gave shape \(8,\) for stem; expected a tensor of shape \(8, 3, 3, 3\)"),
        ("not_imported:score", "expected `import not_imported` before the run"),
    ],
)
def test_scores_that_do_not_fit_are_refused(criterion: Callable[..., Scores] | str, message: str) -> None:
    model, data = tiny.tiny("cnn")
    with pytest.raises(nl.ConfigError, match=message):
        nl.compress(model, [nl.PruneWeights(sparsity=0.5, criterion=criterion)], data)  # type: ignore[arg-type]


def test_a_name_in_a_file_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_scores_of_mine.py").write_text("def score(model, layers, context):\n    return {}\n")
    recipe = [{"PruneWeights": {"sparsity": 0.5, "criterion": "own_scores_of_mine:score"}}]
    model, data = tiny.tiny("cnn")
    with pytest.raises(nl.ConfigError, match="is not there"):
        nl.compress(model, recipe, data)
    assert "own_scores_of_mine" not in sys.modules
    importlib.import_module("own_scores_of_mine")
    try:
        assert find("own_scores_of_mine:score") is not None
        with pytest.raises(nl.ConfigError, match="gave no scores"):
            nl.compress(model, recipe, data)
    finally:
        del sys.modules["own_scores_of_mine"]


def test_another_code_is_another_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny.tiny("cnn")
    recipe = [nl.PruneWeights(sparsity=0.5, criterion=sizes)]
    nl.compress(model, recipe, data, workdir=tmp_path)
    monkeypatch.setattr("nutlet.content_hash.source_code", lambda thing: "other" if thing is sizes else "")
    nl.compress(model, recipe, data, workdir=tmp_path)
    assert len(list(tmp_path.glob("*/compressed.json"))) == 2
