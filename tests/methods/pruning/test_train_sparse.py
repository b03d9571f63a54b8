from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny
from nutlet.compression.pipeline import compress
from nutlet.constraints.stack import constrained_weight
from nutlet.methods import PruneWeights, Quantize, TrainSparse
from nutlet.methods.pruning.train_sparse import group_norms
from nutlet.training.context import Context


def sparse(**options: object) -> TrainSparse:
    return TrainSparse(**{"epochs": 8, "batch_size": 16, "lr": 0.02, "kd_weight": 0.0, **options})  # type: ignore[arg-type]


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [constrained_weight(m) for m in model.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("penalty", ["l1", "group"])
def test_a_stronger_penalty_leaves_less(penalty: str) -> None:
    model, data = tiny.tiny("mlp")
    left = []
    for strength in (0.0, 0.01, 0.05):
        result = compress(model, [sparse(penalty=penalty, strength=strength)], data)
        left.append(sum(float(w.abs().sum()) for w in weights(result.model)))
    assert left[0] > left[1] > left[2]


def test_l1_makes_weights_zero_and_group_whole_channels() -> None:
    model, data = tiny.tiny("mlp")
    single = compress(model, [sparse(strength=0.02)], data).model
    whole = compress(model, [sparse(strength=0.1, penalty="group", lr=0.1, epochs=15)], data).model
    assert sum(int((w == 0).sum()) for w in weights(single)) > 100
    empty = sum(int((w.norm(dim=1) == 0).sum()) for w in weights(whole))
    assert empty > 0
    assert sum(int((w == 0).sum()) for w in weights(whole)) >= empty * 10
    assert all(bool(w.any()) for w in weights(whole)), "the largest of a layer always stays"


def test_coupled_channels_become_zero_together() -> None:
    model, data = tiny.tiny("mlp")
    result = compress(model, [sparse(strength=0.1, penalty="group", lr=0.1, epochs=15, threshold=0.5)], data).model
    empty = [~layer.weight.any(1) for layer in (result.fc1, result.block1.fc2, result.block2.fc2)]
    assert bool(empty[0].any())
    assert all(torch.equal(empty[0], other) for other in empty)
    assert not bool((~result.fc2.weight.any(1)).all()), "outputs are groups of their own"


def test_norms_of_a_group_over_its_layers() -> None:
    one, other = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[4.0], [1.0], [0.0]])
    one.requires_grad_()
    norms = group_norms([(one, torch.tensor([1, 0])), (other, torch.tensor([1, 2, 0]))])
    torch.testing.assert_close(norms, torch.tensor([0.0, 5.0, 1.0]))
    norms.sum().backward()
    torch.testing.assert_close(one.grad, torch.tensor([[0.6, 0.0], [0.0, 0.0]]))


def test_without_strength_and_threshold_it_is_plain_training() -> None:
    model, data = tiny.tiny("mlp")
    result = compress(model, [sparse(strength=0.0, threshold=0.0)], data)
    assert all(bool(w.all()) for w in weights(result.model))
    assert result.steps[-1].notes[-1].startswith("0 of")


def test_the_next_step_finds_the_zeros() -> None:
    model, data = tiny.tiny("mlp")
    sparsely = compress(model, [sparse(strength=0.02), PruneWeights(sparsity=0.5)], data)
    assert sparsely.steps[2].accuracy >= compress(model, [PruneWeights(sparsity=0.5)], data).steps[1].accuracy


def test_quantized_weights_stay_on_their_grid() -> None:
    model, data = tiny.tiny("mlp")
    result = compress(model, [Quantize(), sparse(strength=0.02)], data)
    assert sum(int((w == 0).sum()) for w in weights(result.model)) > 50


def test_frozen_weights_stay() -> None:
    model, data = tiny.tiny("mlp")
    model.fc1.weight.requires_grad_(False)
    before = model.fc1.weight.clone()
    sparse(strength=0.5, threshold=0.9).train(model, Context(data=data, teacher=model))
    assert torch.equal(model.fc1.weight, before)
