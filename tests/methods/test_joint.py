"""Joint methods come out of stacking: PQAT, CQAT and PCQAT of the TensorFlow Model Optimization toolkit."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from conformance.examples import body_of
from nutlet.compression.compressed import Compressed
from nutlet.compression.pipeline import compress
from nutlet.constraints.stack import constrained_weight
from nutlet.graph.scope import Layer
from nutlet.measurement.parity import parity
from nutlet.methods import Cluster, Distill, PruneWeights, Quantize
from nutlet.methods.base import Method

VALUES = 8
TRAINED = Distill(epochs=2, batch_size=16, lr=0.01)


def weights(result: Compressed) -> dict[str, Tensor]:
    return {
        name: constrained_weight(module)
        for name, module in body_of(result.model).named_modules()
        if isinstance(module, Layer)
    }


def trained(steps: list[Method], folder: Path) -> list[dict[str, Tensor]]:
    """Return the weights before training, after it, and after saving and loading."""
    model, data = tiny.tiny("cnn")
    before = compress(model, steps, data)
    after = compress(model, [*steps, TRAINED], data)
    after.save(folder)
    loaded = Compressed.load(folder, tiny.tiny("cnn")[0])
    moved = [not torch.equal(weights(before)[name], weights(after)[name]) for name in weights(before)]
    assert all(moved), "training changed nothing"
    return [weights(result) for result in (before, after, loaded)]


def check_zeros(states: list[dict[str, Tensor]], share: float) -> None:
    for name, weight in states[0].items():
        zero = weight == 0
        assert all(not bool(state[name][zero].any()) for state in states[1:]), f"{name}: a weight was revived"
    everything = torch.cat([weight.flatten() for weight in states[-1].values()])
    assert float((everything == 0).float().mean()) >= share


def check_sizes(states: list[dict[str, Tensor]]) -> None:
    for state in states:
        assert all(len(weight.unique()) <= VALUES for weight in state.values())
    # A codebook that collapsed would pass above.
    assert max(len(weight.unique()) for weight in states[-1].values()) > VALUES // 2


def test_sparsity_preserving_quantization_aware_training(tmp_path: Path) -> None:
    check_zeros(trained([PruneWeights(sparsity=0.6), Quantize(learn=True)], tmp_path), 0.599)


def test_sparsity_preserving_clustering(tmp_path: Path) -> None:
    states = trained([PruneWeights(sparsity=0.6), Cluster(values=VALUES)], tmp_path)
    check_zeros(states, 0.599)
    check_sizes(states)


@pytest.mark.parametrize("learn", [False, True])
def test_cluster_preserving_quantization_aware_training(learn: bool, tmp_path: Path) -> None:
    check_sizes(trained([Cluster(values=VALUES), Quantize(learn=learn)], tmp_path))


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_all_three_in_any_order(order: tuple[int, ...], tmp_path: Path) -> None:
    steps: list[Method] = [PruneWeights(sparsity=0.6), Cluster(values=VALUES), Quantize(learn=True)]
    states = trained([steps[k] for k in order], tmp_path)
    check_zeros(states, 0.59)
    check_sizes(states)


def test_each_step_makes_the_saved_file_smaller() -> None:
    model, data = tiny.tiny("cnn")
    result = compress(model, [PruneWeights(sparsity=0.6), Cluster(values=4), Quantize()], data)
    packed = [step.size.bytes_packed for step in result.steps]
    assert packed[0] > packed[1] > packed[2]
    assert packed[3] < packed[2] * 1.2, "scales cost more than there is to win"


@pytest.mark.parametrize("masked_first", [True, False])
def test_a_mask_beside_a_codebook_without_zero_leaves_indices(masked_first: bool, tmp_path: Path) -> None:
    model, data = tiny.tiny("cnn")
    mask, shared = PruneWeights(sparsity=0.5), Cluster(values=4, keep_zeros=False)
    result = compress(model, [mask, shared] if masked_first else [shared, mask], data)
    assert {layer.bits for layer in result.steps[-1].size.layers if layer.name == "mix"} == {8}
    assert result.steps[-1].size.bytes < 0.4 * result.steps[0].size.bytes
    check = parity(result.model, result.export(tmp_path / "model.onnx"), data.train)
    assert check.max_difference < 1e-4
