from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from nutlet.compression.pipeline import compress
from nutlet.constraints.stack import constrained_weight, raw_weight
from nutlet.methods import FineTune, LotteryTicket, PruneWeights
from nutlet.methods.pruning import lottery_ticket
from nutlet.training.loop import cross_entropy


def ticket(**options: object) -> LotteryTicket:
    defaults = {"sparsity": 0.75, "rounds": 2, "epochs": 2, "batch_size": 16, "lr": 0.01, "kd_weight": 0.0}
    return LotteryTicket(**{**defaults, **options})  # type: ignore[arg-type]


def zeros(model: nn.Module) -> Tensor:
    return torch.cat([constrained_weight(m).flatten() == 0 for m in model.modules() if isinstance(m, nn.Linear)])


@pytest.mark.parametrize("rewind", [0, 1])
def test_every_round_starts_from_the_early_weights(monkeypatch: pytest.MonkeyPatch, rewind: int) -> None:
    model, data = tiny.tiny("mlp")
    starts: list[dict[str, Tensor]] = []
    shares: list[float] = []

    def noted(model: nn.Module, *args: object, **options: object) -> list[str]:
        raw = {n: raw_weight(m).clone() for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        starts.append(raw)
        shares.append(float(zeros(model).float().mean()))
        return fit(model, *args, **options)  # type: ignore[arg-type]

    fit = lottery_ticket.fit
    monkeypatch.setattr(lottery_ticket, "fit", noted)
    result = compress(model, [ticket(rewind=rewind)], data)
    assert [round(share, 2) for share in shares] == [0.0, 0.5, 0.75]
    for name, weight in starts[0].items():
        assert torch.equal(weight, model.get_submodule(name).weight)
        assert torch.equal(starts[1][name], starts[2][name])
        assert torch.equal(starts[0][name], starts[1][name]) == (rewind == 0)
    assert "75.0%" in result.steps[-1].notes[-1]
    assert list(result.model.state_dict()) == list(
        compress(model, [PruneWeights(sparsity=0.1)], data).model.state_dict()
    )


def test_the_early_weights_are_those_of_a_run_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny.tiny("mlp")
    kept: list[Tensor] = []
    copy = lottery_ticket._copy

    def noted(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        kept.append(source["fc1.parametrizations.weight.original"].clone())
        copy(source, target)

    monkeypatch.setattr(lottery_ticket, "_copy", noted)
    compress(model, [ticket(rewind=1, rounds=1)], data)
    assert len(kept) == 2
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], model.fc1.weight)


@pytest.mark.parametrize("stop", [6, 13])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    model, data = tiny.tiny("mlp")
    steps = [ticket(rewind=1)]
    whole = compress(model, steps, data)
    calls = 0

    def stopped(x: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == stop:  # after the early weights were kept in the first round, and in the second round
            raise KeyboardInterrupt
        return cross_entropy(x, outputs, y)

    with monkeypatch.context() as patch:
        patch.setattr(lottery_ticket, "softened", lambda *_: stopped)
        with pytest.raises(KeyboardInterrupt):
            compress(model, steps, data, workdir=tmp_path)
    parts = compress(model, steps, data, workdir=tmp_path)
    for one, other in zip(whole.model.state_dict().values(), parts.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert not list(tmp_path.glob("*/training*.pt"))


def test_what_an_earlier_step_removed_stays_gone() -> None:
    model, data = tiny.tiny("mlp")
    first = compress(model, [PruneWeights(sparsity=0.5), FineTune(epochs=1)], data)
    both = compress(model, [PruneWeights(sparsity=0.5), FineTune(epochs=1), ticket()], data)
    assert not bool((zeros(first.model) & ~zeros(both.model)).any())


def test_a_sparsity_that_is_there_already_is_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny.tiny("mlp")
    titles: list[str] = []
    fit = lottery_ticket.fit

    def noted(*args: object, title: str, **options: object) -> list[str]:
        titles.append(title)
        return fit(*args, title=title, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(lottery_ticket, "fit", noted)
    result = compress(model, [PruneWeights(sparsity=0.75), ticket(sparsity=0.5)], data)
    assert titles == ["round 1 of 1"]
    assert any("zero already: only trained" in note for note in result.steps[-1].notes)
    assert float(zeros(result.model).float().mean()) == 0.75
