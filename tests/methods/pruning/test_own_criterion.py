"""A function as `criterion=`: scores by it, kept by name, never imported from a file."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import nutlet as nl
from nutlet.functions import Unknown
from tiny import tiny

MODEL, DATA = tiny("cnn")


def nearest_to_one(model: nn.Module, layers: Mapping[str, nn.Module], context: nl.Context) -> dict[str, Tensor]:
    return {name: 1 / (1 + (layer.weight.detach() - 1).abs()) for name, layer in layers.items()}


def last_first(model: nn.Module, layers: Mapping[str, nn.Module], context: nl.Context) -> dict[str, Tensor]:
    """The later a channel, the less it matters."""
    return {name: torch.arange(len(layer.weight), 0, -1).float() for name, layer in layers.items()}


def test_weights_channels_and_the_round_trip(tmp_path):
    model, data = MODEL, DATA
    steps = [
        nl.PruneChannels(ratio=0.5, criterion=last_first),
        nl.PruneWeights(sparsity=0.5, criterion=nearest_to_one),
    ]
    small = nl.compress(model, steps, data, workdir=tmp_path / "steps")
    removed = small.steps[1].plan["removed"]
    assert removed["mix"] == list(range(8, 16))
    mix = small.model.get_submodule("mix").weight
    assert float((mix == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert len(mix) == 8
    assert small.steps[1].method == {"PruneChannels": {"ratio": 0.5, "criterion": f"{__name__}:last_first"}}
    assert nl.method_from_dict(small.steps[1].method) == steps[0]
    small.save(tmp_path / "saved")
    assert nl.Compressed.load(tmp_path / "saved", model).recipe == steps


def test_names_from_files_are_not_imported():
    step = nl.method_from_dict({"PruneWeights": {"sparsity": 0.5, "criterion": "os:system"}})
    assert step.criterion == Unknown("os:system")
    assert step.to_dict() == {"PruneWeights": {"sparsity": 0.5, "criterion": "os:system"}}
    with pytest.raises(nl.ConfigError, match="a name from a file is not imported"):
        nl.compress(MODEL, step, DATA)


def test_refusals():
    with pytest.raises(nl.ConfigError, match="no name of its own to be saved under"):
        nl.PruneWeights(sparsity=0.5, criterion=lambda model, layers, context: {})
    with pytest.raises(nl.ConfigError, match="expected one of 'magnitude', 'activation', 'taylor' or a function"):
        nl.PruneWeights(sparsity=0.5, criterion="size")
    with pytest.raises(nl.ConfigError, match=r"gave a tensor \(8,\) for the layer stem; expected finite scores"):
        nl.compress(MODEL, nl.PruneWeights(sparsity=0.5, criterion=last_first), DATA)
