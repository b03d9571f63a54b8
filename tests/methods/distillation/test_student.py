"""The student that is designed: how small, and with which weights it begins."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from conformance.examples import same_state
from nutlet.compression.compressed import Compressed
from nutlet.compression.pipeline import compress
from nutlet.constraints.stack import Mask, constrain, constrained_weight
from nutlet.data.examples import Data
from nutlet.errors import ModelError
from nutlet.graph.reinit import reinit_modules
from nutlet.methods import Distill, FineTune, PruneWeights, Quantize, Student


@pytest.fixture
def data() -> Data:
    return tiny.tiny_data((3, 8, 8))


@pytest.fixture
def model(data: Data) -> nn.Module:
    return tiny.settled(tiny.TinyCNN(), data.train.x)


def test_width_and_depth(model: nn.Module, data: Data) -> None:
    result = compress(model, [Student(width=0.5, depth=0.5)], data)
    student, plan = result.model, result.steps[1].plan
    assert len(plan["dropped"]) == 1
    assert plan["removed"]
    assert tuple(student.get_parameter("stem.weight").shape) == (4, 3, 3, 3)
    assert tuple(student.get_parameter("mix.weight").shape) == (8, 6, 3, 3)
    kept = [k for k in range(16) if k not in plan["removed"]["mix"]]
    assert torch.equal(student.get_parameter("fc.weight"), model.get_parameter("fc.weight")[:, kept])


def test_multiples_and_depth_alone(model: nn.Module, data: Data) -> None:
    wide = compress(model, [Student(width=0.3, multiple_of=4)], data).model
    assert wide.get_parameter("stem.weight").size(0) == 4
    flat = compress(model, [Student(depth=0.0)], data)
    assert sorted(flat.steps[1].plan["dropped"]) == ["block1", "block2"]
    assert flat.steps[1].plan["removed"] == {}


def test_a_fresh_start_follows_the_seed_and_nothing_else(model: nn.Module, data: Data, tmp_path: Path) -> None:
    other = tiny.settled(tiny.TinyCNN(), data.train.x, seed=5)
    fresh = Student(width=0.5, start="fresh")
    first, again, third = (compress(model, [fresh], data, seed=seed) for seed in (0, 0, 1))
    assert same_state(first.model, again.model)
    assert not same_state(first.model, third.model)
    # Nothing of the original is left but its shape.
    assert same_state(first.model, compress(other, [fresh], data).model)
    first.save(tmp_path)
    assert same_state(Compressed.load(tmp_path, tiny.TinyCNN()).model, first.model)


def test_a_fresh_start_lies_below_the_constraints(model: nn.Module, data: Data) -> None:
    steps = [PruneWeights(sparsity=0.5), Student(width=0.5, start="fresh"), Distill(epochs=1, batch_size=16)]
    result = compress(model, steps, data)
    weight = constrained_weight(result.model.get_submodule("mix"))
    assert 0.1 < float((weight == 0).float().mean()) < 0.9
    compress(model, [Quantize(), *steps[1:]], data)


class Everything(nn.Module):
    """Layers with a reset of every kind, and one parameter with none."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.attention = nn.LSTM(5, 4, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.whole = nn.Transformer(4, 2, 1, 1, 8, batch_first=True)
        self.embedding, self.norm, self.prelu = nn.Embedding(3, 4), nn.GroupNorm(2, 4), nn.PReLU()
        self.masked = nn.Linear(4, 4)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.token = nn.Parameter(torch.full((4,), 7.0))
        constrain(self.masked, [Mask(torch.eye(4).bool())])


def test_every_kind_of_layer_is_drawn_anew() -> None:
    torch.manual_seed(0)
    model = Everything()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    assert sorted(reinit_modules(model, 3)) == ["", "normed"]
    left = [name for name, p in model.named_parameters() if bool((p == 7.0).any())]
    assert [name for name in left if not name.startswith(("token", "normed"))] == []
    assert torch.equal(constrained_weight(model.masked) != 0, torch.eye(4).bool())
    assert not bool(model.attention.in_proj_bias.any())
    assert not bool(model.attention.out_proj.bias.any())  # set by what holds it
    before = copy.deepcopy(model.state_dict())
    reinit_modules(model, 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_without_blocks_cannot_be_made_shallower(data: Data) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, tiny.CLASSES))
    with pytest.raises(ModelError, match="Student found no block"):
        compress(flat, [Student(depth=0.5)], data)


def test_a_student_of_another_kind_is_compressed_itself(model: nn.Module, data: Data) -> None:
    class Small(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))

    def distance(student: nn.Module) -> Tensor:
        with torch.no_grad():
            return (student(data.train.x).softmax(1) - model(data.train.x).softmax(1)).abs().mean()

    torch.manual_seed(0)
    small = Small()
    taught = compress(small, [Distill(epochs=20, batch_size=16, lr=0.1, kd_weight=1.0, hints=0.1)], data, teacher=model)
    assert float(distance(taught.model)) < 0.8 * float(distance(small))


def test_recovery_follows_it(model: nn.Module, data: Data) -> None:
    result = compress(model, [Student(width=0.5)], data, recover=FineTune(epochs=1, batch_size=16))
    assert [type(step) for step in result.recipe] == [Student, FineTune]
