from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from nutlet.compression.pipeline import compress
from nutlet.constraints.stack import constrained_weight, raw_weight
from nutlet.data.examples import Data
from nutlet.errors import ConfigError
from nutlet.methods import PruneGradually, PruneWeights
from nutlet.methods.pruning import prune_gradually
from nutlet.methods.pruning.moving import MovingMasks, remembering
from nutlet.training.context import Context
from nutlet.training.loop import LossTerm, cross_entropy, fit


@pytest.fixture
def made() -> tuple[nn.Module, Data]:
    return tiny.tiny("mlp")


def gradually(**options: object) -> PruneGradually:
    return PruneGradually(**{"sparsity": 0.8, "epochs": 4, "batch_size": 16, "lr": 0.01, **options})  # type: ignore[arg-type]


def zeros(model: nn.Module) -> Tensor:
    return torch.cat([constrained_weight(m).flatten() == 0 for m in model.modules() if isinstance(m, nn.Linear)])


@pytest.mark.parametrize("criterion", ["magnitude", "movement"])
@pytest.mark.parametrize("distribution", ["global", "uniform"])
def test_reaches_the_share_that_was_asked_for(made: tuple[nn.Module, Data], criterion: str, distribution: str) -> None:
    model, data = made
    result = compress(model, [gradually(criterion=criterion, distribution=distribution)], data)
    assert abs(float(zeros(result.model).float().mean()) - 0.8) < 0.005
    assert "80.0" in result.steps[-1].notes[-1]
    if distribution == "uniform":
        assert all(abs(float((constrained_weight(m) == 0).float().mean()) - 0.8) < 0.02
                   for m in result.model.modules() if isinstance(m, nn.Linear))  # fmt: skip
    assert "remembered" not in dict(result.model.named_modules())


def test_is_more_careful_than_one_blow(made: tuple[nn.Module, Data]) -> None:
    model, data = made
    at_once = compress(model, [PruneWeights(sparsity=0.8)], data).steps[-1].accuracy
    assert compress(model, [gradually(epochs=10)], data).steps[-1].accuracy >= at_once


@pytest.mark.parametrize(("ramp", "moves"), [("cubic", 11), ("iterative", 5)])
def test_moves_on_the_schedule_and_then_stays(
    made: tuple[nn.Module, Data], monkeypatch: pytest.MonkeyPatch, ramp: str, moves: int
) -> None:
    reached: list[float] = []
    prune = MovingMasks.prune

    def noted(
        self: MovingMasks, model: nn.Module, scores: dict[str, Tensor], sparsity: float, context: Context
    ) -> None:
        reached.append(sparsity)
        prune(self, model, scores, sparsity, context)

    monkeypatch.setattr(MovingMasks, "prune", noted)
    compress(made[0], [gradually(ramp=ramp)], made[1])  # 16 steps, of which the last 30 % leave the masks alone
    assert reached == sorted(reached)
    assert reached[-1] == 0.8
    assert len(reached) == moves + (ramp == "cubic")


def test_never_revives_what_an_earlier_step_removed(made: tuple[nn.Module, Data]) -> None:
    model, data = made
    first = compress(model, [PruneWeights(sparsity=0.5)], data)
    both = compress(model, [PruneWeights(sparsity=0.5), gradually()], data)
    assert not bool((zeros(first.model) & ~zeros(both.model)).any())
    lower = compress(model, [PruneWeights(sparsity=0.5), gradually(sparsity=0.3)], data)
    assert torch.equal(zeros(lower.model), zeros(first.model))
    assert any("zero already" in note for note in lower.steps[-1].notes)


@pytest.mark.parametrize("criterion", ["magnitude", "movement"])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    made: tuple[nn.Module, Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, criterion: str
) -> None:
    model, data = made
    steps = [gradually(criterion=criterion, kd_weight=0.0)]
    whole = compress(model, steps, data)
    calls = 0

    def stopped(x: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 10:  # in the third of four epochs
            raise KeyboardInterrupt
        return cross_entropy(x, outputs, y)

    with monkeypatch.context() as patch:
        patch.setattr(prune_gradually, "softened", lambda *_: stopped)
        with pytest.raises(KeyboardInterrupt):
            compress(model, steps, data, workdir=tmp_path)
    assert list(tmp_path.glob("*/training.pt"))
    parts = compress(model, steps, data, workdir=tmp_path)
    assert any("continued after epoch 2" in note for note in parts.steps[-1].notes)
    for one, other in zip(whole.model.state_dict().values(), parts.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert not list(tmp_path.glob("*/training*.pt"))


def test_movement_is_the_sum_of_minus_weight_times_gradient() -> None:
    layer = nn.Linear(2, 1, bias=False)
    raw = raw_weight(layer)
    sums = {"layer.0": torch.zeros(1, 2)}
    for gradient in ([1.0, -1.0], [2.0, 0.5]):
        raw.data = torch.tensor([[0.5, 2.0]])
        raw.grad = torch.tensor([gradient])
        prune_gradually._follow({"layer.0": layer}, sums)
    # -0.5 (1 + 2), -2 (-1 + 0.5)
    assert sums["layer.0"].tolist() == [[-1.5, 1.0]]


def test_each_layer_keeps_its_best_weight(made: tuple[nn.Module, Data]) -> None:
    model, data = made
    with torch.no_grad():
        model.fc2.weight.mul_(1e-3)
    result = compress(model, [gradually(sparsity=0.9, lr=1e-5)], data)
    assert int((constrained_weight(result.model.fc2) != 0).sum()) == 1


@pytest.mark.parametrize("criterion", ["magnitude", "movement"])
def test_a_pattern_is_reached(made: tuple[nn.Module, Data], criterion: str) -> None:
    model, data = made
    result = compress(model, [gradually(sparsity=None, pattern="2:4", criterion=criterion)], data)
    for name in ("block1.fc1", "block2.fc2", "fc2"):
        weight = constrained_weight(result.model.get_submodule(name))
        assert bool(((weight.view(len(weight), -1, 4) != 0).sum(-1) == 2).all()), name
    assert bool(constrained_weight(result.model.fc1).all())
    assert any(note.startswith("fc1: its 10 input channels are not a multiple of 4") for note in result.steps[-1].notes)


def test_what_is_remembered_lies_in_the_checkpoint_and_is_gone_after(
    made: tuple[nn.Module, Data], tmp_path: Path
) -> None:
    model, data = made
    context, names = Context(data=data, teacher=model, workdir=tmp_path), list(model.state_dict())
    seen: list[tuple[int, int]] = []
    with remembering(model, {"block1.fc1": torch.zeros(3)}) as memory:

        def before_step(step: int, steps: int) -> None:
            seen.append((step, steps))
            memory.tensors["block1.fc1"].add_(1)
            assert all(p.grad is not None for p in model.parameters())

        loss: LossTerm = cross_entropy
        fit(model, context, gradually(epochs=2), loss, before_step=before_step, checkpoint="training-1.pt")
        assert memory.tensors["block1.fc1"].tolist() == [8.0] * 3
    assert seen == [(k, 8) for k in range(8)]
    state = torch.load(tmp_path / "training-1.pt", weights_only=True)["model"]
    assert state["remembered.block1:fc1"].tolist() == [8.0] * 3
    assert list(model.state_dict()) == names


def test_patience_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"patience is 2.*only at the end"):
        gradually(patience=2)
