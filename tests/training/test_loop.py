from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from nutlet.data.examples import Data, flip_and_crop
from nutlet.errors import ConfigError, ModelError, StorageError
from nutlet.formats.onnx.export import export_onnx
from nutlet.methods import Distill, FineTune
from nutlet.progress import Progress
from nutlet.training import loop as train
from nutlet.training.context import Context
from nutlet.training.loop import Training, cross_entropy, fit


@pytest.fixture(scope="module")
def data() -> Data:
    return tiny.tiny_data((10,))


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return tiny.settled(tiny.TinyMLP(), torch.zeros(2, 10))


def context(data: Data, *, seed: int = 0, workdir: Path | None = None, progress: Progress | None = None) -> Context:
    return Context(
        data=data, teacher=fresh(), seed=seed, workdir=workdir, progress=progress or Progress(quiet=True)
    )  # fmt: skip


def trained(data: Data, settings: FineTune | Distill, **how: Any) -> nn.Module:
    model = fresh()
    settings.train(model, context(data, **how))
    return model


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_seed_decides_everything(data: Data, optimizer: str) -> None:
    settings = FineTune(epochs=2, batch_size=16, optimizer=optimizer)  # type: ignore[arg-type]
    first = trained(data, settings)
    torch.rand(7)  # the global generator is at another place
    assert same(first, trained(data, settings))
    assert not same(first, trained(data, settings, seed=1))
    assert not same(first, fresh())


def test_augmentation_follows_the_seed() -> None:
    images = replace(tiny.tiny_data((3, 8, 8)), augment=flip_and_crop(padding=2))
    models = []
    for seed in (0, 0, 1):
        model = tiny.settled(tiny.TinyCNN(), torch.zeros(2, 3, 8, 8))
        FineTune(epochs=1, batch_size=16).train(model, Context(data=images, teacher=model, seed=seed))
        models.append(model)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("patience", [None, 5])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    data: Data, tmp_path: Path, optimizer: str, patience: int | None
) -> None:
    settings = Training(epochs=5, batch_size=16, optimizer=optimizer, patience=patience)  # type: ignore[arg-type]
    whole, parts = fresh(), fresh()
    fit(whole, context(data), settings, cross_entropy)
    calls = 0

    def stopped(x: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 10:  # in the third of five epochs
            raise KeyboardInterrupt
        return cross_entropy(x, outputs, y)

    with pytest.raises(KeyboardInterrupt):
        fit(parts, context(data, workdir=tmp_path), settings, stopped)
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]
    parts = fresh()
    notes = fit(parts, context(data, workdir=tmp_path), settings, cross_entropy)
    assert "continued after epoch 2" in notes[0]
    assert same(whole, parts)
    # The checkpoint stays until the chain has kept the result; running once more changes nothing.
    again = fresh()
    fit(again, context(data, workdir=tmp_path), settings, cross_entropy)
    assert same(whole, again)


@pytest.mark.parametrize("content", [b"", b"\x80\x04cos\nsystem\n(S'true'\ntR.", b"PK\x03\x04 cut"])
def test_a_damaged_checkpoint_is_made_anew_and_not_run(data: Data, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "training.pt").write_bytes(content)
    model, clean = fresh(), fresh()
    FineTune(epochs=1).train(model, context(data, workdir=tmp_path))
    FineTune(epochs=1).train(clean, context(data))
    assert same(model, clean)
    assert (tmp_path / "training.pt").read_bytes() != content


def test_a_checkpoint_of_another_training_is_named(data: Data, tmp_path: Path) -> None:
    torch.save({"model": {}, "epoch": 1}, tmp_path / "training.pt")
    with pytest.raises(StorageError, match=r"training\.pt is no checkpoint.*delete it"):
        FineTune(epochs=1).train(fresh(), context(data, workdir=tmp_path))


@pytest.mark.parametrize(
    ("accuracies", "kept", "stopped"), [((0.5, 0.9, 0.8, 0.7, 1.0), 2, 4), ((0.0, 0.0, 0.0, 0.0, 0.0), 1, 3)]
)
def test_early_stopping_keeps_the_best(
    data: Data, monkeypatch: pytest.MonkeyPatch, accuracies: tuple[float, ...], kept: int, stopped: int
) -> None:
    states: list[dict[str, Tensor]] = []

    def scripted(model: nn.Module, examples: object) -> float:
        states.append(copy.deepcopy(model.state_dict()))
        return accuracies[len(states) - 1]

    monkeypatch.setattr(train, "evaluate", scripted)
    model = fresh()
    notes = FineTune(epochs=5, batch_size=16, patience=2).train(model, context(data))
    assert len(states) == stopped
    assert all(torch.equal(model.state_dict()[name], states[kept - 1][name]) for name in states[0])
    assert notes == [
        f"stopped after epoch {stopped}, no better for 2",
        f"kept epoch {kept} of {stopped}, the best on validation",
    ]


def test_without_patience_the_last_epoch_stays(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    falling = iter([0.9, 0.5, 0.1])
    monkeypatch.setattr(train, "evaluate", lambda model, examples: next(falling))
    settings = FineTune(epochs=3, batch_size=16)
    model = trained(data, settings)
    monkeypatch.undo()
    assert same(model, trained(data, settings))


def test_schedules() -> None:
    one_cycle, cosine = Training(lr=1.0), Training(lr=1.0, schedule="cosine")
    rates = [train._rate(one_cycle, progress) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([0.04, 0.52, 1.0, 0.5, 0.0])
    assert [train._rate(cosine, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert train._rate(replace(cosine, lr=0.3), 0.0) == pytest.approx(0.3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_is_for_matrices_only(optimizer: str) -> None:
    model = tiny.TinyCNN()
    groups = train._optimizer(model, Training(weight_decay=0.1, optimizer=optimizer)).param_groups  # type: ignore[arg-type]
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim > 1}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_frozen_parameters_stay(data: Data) -> None:
    model = fresh()
    first = model.get_parameter("fc1.weight").requires_grad_(False)
    before = first.clone()
    FineTune(epochs=1, batch_size=16).train(model, context(data))
    assert torch.equal(first, before)


def test_a_loss_that_is_not_finite_is_said(data: Data) -> None:
    with pytest.raises(ModelError, match=r"fine-tuning: the loss became (nan|inf) in epoch .*Lower `lr`"):
        trained(data, FineTune(epochs=20, lr=99.0, batch_size=16))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": -1.0}, "lr is -1"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"patience": 0}, "patience is 0"),
        ({"weight_decay": 1.0}, "weight_decay is 1"),
        ({"optimizer": "adam"}, "optimizer is 'adam'"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
    ],
)
@pytest.mark.parametrize("kind", [FineTune, Distill])
def test_options_out_of_range(kind: type[FineTune], options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__}.{says}.*expected"):
        kind(**options)


@pytest.mark.parametrize(
    ("flags", "has"), [("avx2 avx512_bf16", True), ("amx_bf16 amx_tile", True), ("avx2 avx512f", False), (None, False)]
)
def test_bf16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch, flags: str | None, has: bool) -> None:
    def read_text(self: Path, encoding: str) -> str:
        if flags is None:
            raise FileNotFoundError
        return f"flags\t: fpu {flags}\n"

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train._computes_in_bf16() is has


def test_precisions_in_one_process(data: Data, tmp_path: Path) -> None:
    full = trained(data, FineTune(epochs=1, batch_size=16, precision="fp32"))
    half = trained(data, FineTune(epochs=1, batch_size=16, precision="bf16"))
    distilled = trained(data, Distill(epochs=1, batch_size=16, precision="bf16"))
    x = data.validation.x
    for model in (half, distilled):
        assert not same(full, model)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        # Nothing of the lower precision stays behind: the forward is the module's own.
        assert "forward" not in vars(model)
        assert torch.equal(model(x), copy.deepcopy(model)(x))
        assert model(x).dtype == torch.float32
        export_onnx(model, tmp_path / "model.onnx", x[:2])
    with torch.no_grad():
        assert float((full(x) - half(x)).abs().max()) < 0.2


@pytest.mark.parametrize(("batch_size", "batches"), [(16, 4), (30, 2), (64, 1), (128, 1)])
def test_leftovers(data: Data, batch_size: int, batches: int) -> None:
    sizes: list[int] = []

    def counted(x: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
        sizes.append(len(y))
        return cross_entropy(x, outputs, y)

    fit(fresh(), context(data), Training(epochs=1, batch_size=batch_size), counted)
    assert sizes == [min(batch_size, 64)] * batches


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_learns(data: Data, optimizer: str) -> None:
    model = trained(data, FineTune(epochs=8, lr=0.01, batch_size=16, optimizer=optimizer))  # type: ignore[arg-type]
    assert train.evaluate(model, data.validation) > max(0.8, train.evaluate(fresh(), data.validation))
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_bar_shows_loss_metric_and_time_left(
    data: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, a terminal
    monkeypatch.setenv("COLUMNS", "120")
    trained(data, FineTune(epochs=3, batch_size=16), progress=Progress())
    shown = capsys.readouterr()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.err)
    assert shown.out == ""
    assert re.search(r"fine-tuning .*12/12 .*\d:\d\d:\d\d .*epoch 3/3 loss \d\.\d+ top-1 accuracy \d+\.\d+%", plain), (
        plain
    )


def test_no_bar_where_there_is_no_terminal(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    trained(data, FineTune(epochs=1, batch_size=16), progress=Progress())
    assert capsys.readouterr() == ("", "")


def test_distilling_leaves_the_teacher_as_it_is() -> None:
    images = tiny.tiny_data((3, 8, 8))
    teacher = tiny.settled(tiny.TinyCNN(), images.train.x)
    before, modules = copy.deepcopy(teacher.state_dict()), [type(m) for m in teacher.modules()]
    student = copy.deepcopy(teacher)
    Distill(epochs=1, batch_size=16).train(student, Context(data=images, teacher=teacher))
    after = teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [type(m) for m in teacher.modules()] == modules
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not same(student, teacher)


def test_distilling_with_labels_alone_is_fine_tuning(data: Data) -> None:
    assert same(
        trained(data, Distill(epochs=2, batch_size=16, kd_weight=0.0)), trained(data, FineTune(epochs=2, batch_size=16))
    )


def test_distilling_comes_nearer_to_the_teacher(data: Data) -> None:
    teacher = trained(data, FineTune(epochs=5, batch_size=16))
    student = fresh()
    x = data.validation.x

    @torch.no_grad()
    def distance() -> float:
        return float((teacher(x).softmax(1) - student(x).softmax(1)).abs().mean())

    before = distance()
    Distill(epochs=5, batch_size=16, kd_weight=1.0).train(student, Context(data=data, teacher=teacher))
    assert distance() < before / 3
