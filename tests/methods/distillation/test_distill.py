"""Distillation as a step: what is trained, what is kept, what is asked of a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from nutlet.compression.pipeline import compress
from nutlet.data.examples import Data
from nutlet.errors import ConfigError
from nutlet.methods import Distill, PruneChannels
from nutlet.methods.distillation import features
from nutlet.training.context import Context

FEATURES: dict[str, Any] = {"hints": 0.1, "attention": 1.0, "relations": 0.1}


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def images() -> Data:
    return tiny.tiny_data((3, 8, 8))


@pytest.fixture
def teacher(images: Data) -> nn.Module:
    return tiny.settled(tiny.TinyCNN(), images.train.x)


def thin(teacher: nn.Module, data: Data) -> nn.Module:
    return compress(teacher, [PruneChannels(ratio=0.5)], data).model


def test_projections_are_trained_and_dropped(images: Data, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[features.Features] = []
    first: list[Tensor] = []

    class Watched(features.Features):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)
            first.extend(p.detach().clone() for p in self.projections.parameters())

    monkeypatch.setattr("nutlet.methods.distillation.distill.Features", Watched)
    student = thin(teacher, images)
    before = list(student.state_dict())
    notes = Distill(epochs=2, batch_size=16, hints=1.0).train(student, Context(data=images, teacher=teacher))
    after = [p.detach() for p in made[0].projections.parameters()]
    assert [tuple(p.shape) for p in after] == [(8, 4), (16, 8)]
    assert all(not torch.equal(a, b) for a, b in zip(first, after, strict=True))
    assert list(student.state_dict()) == before
    assert not any(module._forward_hooks for module in student.modules())
    assert "compared hidden features of block2, mix" in notes


def test_hints_bring_the_features_nearer(images: Data, teacher: nn.Module) -> None:
    def distance(student: nn.Module) -> float:
        terms = features.Features(student, teacher, images.train.x[:2], hints=1.0)
        with terms.watching(student, teacher), torch.no_grad():
            student(images.train.x)
            teacher(images.train.x)
            return float(terms.loss())

    with torch.random.fork_rng():
        torch.manual_seed(1)
        students = [tiny.settled(tiny.TinyCNN(), images.train.x, seed=1) for _ in range(2)]
    for student, hints in zip(students, (0.0, 3.0), strict=True):
        Distill(epochs=5, batch_size=16, hints=hints).train(student, Context(data=images, teacher=teacher))
    assert distance(students[1]) < 0.8 * distance(students[0])


@pytest.mark.parametrize("kd_weight", [0.9, 0.0])
def test_a_run_that_is_killed_ends_the_same_with_projections(
    images: Data, teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kd_weight: float
) -> None:
    method = Distill(epochs=4, batch_size=16, kd_weight=kd_weight, **FEATURES)
    whole, part, parts = (thin(teacher, images) for _ in range(3))
    method.train(whole, Context(data=images, teacher=teacher, seed=3))
    calls = 0
    original = features.Features.loss

    def stopped(self: features.Features) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 10:  # in the third of four epochs
            raise KeyboardInterrupt
        return original(self)

    context = Context(data=images, teacher=teacher, seed=3, workdir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(features.Features, "loss", stopped)
        with pytest.raises(KeyboardInterrupt):
            method.train(part, context)
    torch.rand(3)
    notes = method.train(parts, context)
    assert "continued after epoch 2" in notes[0]
    assert same(whole, parts)


def test_rows_have_no_map_to_attend_to(teacher: nn.Module) -> None:
    data = tiny.tiny_data((10,))
    model = tiny.settled(tiny.TinyMLP(), data.train.x)
    notes = Distill(epochs=1, attention=1.0).train(model, Context(data=data, teacher=model))
    assert any("no attention was transferred" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alpha": 2.0}, "alpha and beta weigh targets='decoupled'"),
        ({"sites": ("a",)}, "hints, attention and relations are all 0"),
        ({"hints": -1.0}, r"Distill\.hints is -1\.0; expected a finite weight of 0 or more"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Distill(**options)
