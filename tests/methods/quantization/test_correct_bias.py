"""Shifted means come back; layers without a counterpart are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tiny
from nutlet.compression.compressed import Compressed
from nutlet.compression.pipeline import compress
from nutlet.graph.statistics import observe
from nutlet.methods import CorrectBias, DropBlocks, Factorize, PruneChannels, PruneWeights, Quantize
from nutlet.tasks.predict import predict

ENDS = ("norm", "block1.bn1", "block1.bn2", "branch", "norm2", "mix", "fc")


def means(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        found[name] = output.mean((0, *range(2, output.ndim)))

    observe(model, ENDS, note, [(x, x)])
    return found


@pytest.mark.parametrize("steps", [[PruneWeights(sparsity=0.6)], [Factorize(energy=0.7)]], ids=["pruned", "factors"])
def test_every_layer_gives_the_mean_of_the_original(steps: list[PruneWeights]) -> None:
    model, data = tiny.tiny("cnn")
    before = compress(model, steps, data).model
    result = compress(model, [*steps, CorrectBias()], data)
    x = data.calibration.x
    wanted, shifted, corrected = means(model, x), means(before, x), means(result.model, x)
    for name in ENDS:
        assert float((shifted[name] - wanted[name]).abs().max()) > 0.01
        torch.testing.assert_close(corrected[name], wanted[name], atol=1e-4, rtol=1e-4)
    # What the mean is not of, the error of each example, falls as well.
    answers = predict(model, data.validation)
    errors = [float((predict(m, data.validation) - answers).square().mean()) for m in (before, result.model)]
    assert errors[1] < 0.7 * errors[0]


def test_norms_take_the_correction_and_bare_layers_get_a_bias() -> None:
    model, data = tiny.tiny("cnn")
    pruned = compress(model, [PruneWeights(sparsity=0.6), CorrectBias()], data).steps[2]
    assert {"block1.bn1", "norm2", "mix"} <= set(pruned.plan["corrected"])
    assert pruned.plan["made"] == []
    bare = nn.Sequential(nn.Linear(10, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    result = compress(bare, [PruneWeights(sparsity=0.5), CorrectBias()], tiny.tiny_data((10,)))
    assert result.steps[2].plan["made"] == ["0", "2"]
    assert isinstance(result.model[0].bias, nn.Parameter)
    assert result.model[0].bias.requires_grad


def test_folded_norms_are_compared_behind_them() -> None:
    model, data = tiny.tiny("cnn")
    result = compress(model, [PruneWeights(sparsity=0.6), Quantize(activations=False), CorrectBias()], data)
    assert "block1.conv1" in result.steps[3].plan["corrected"]
    corrected, wanted = means(result.model, data.calibration.x), means(model, data.calibration.x)
    for name in ENDS:  # the norms are identities now
        torch.testing.assert_close(corrected[name], wanted[name], atol=1e-4, rtol=1e-4)


def test_what_has_no_counterpart_is_left_alone(tmp_path: object) -> None:
    model, data = tiny.tiny("cnn")
    thin = compress(model, [PruneChannels(ratio=0.3), CorrectBias()], data)
    assert any("block1.bn1: its channels are not those of the original" in note for note in thin.steps[2].notes)
    short = compress(model, [DropBlocks(drop=1), CorrectBias()], data)
    dropped = short.steps[1].plan["dropped"][0]
    assert not any(name.startswith(dropped) for name in short.steps[2].plan["corrected"])
    same: Compressed = compress(model, CorrectBias(), data)
    assert same.steps[1].notes == ("nothing to correct: no layer in scope gives another mean than in the original",)
