from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from nutlet.attacks.membership import shadow_models as module
from nutlet.attacks.membership.shadow_models import Shadows, halves, nearby
from nutlet.compression.pipeline import compress
from nutlet.compression.recompress import Recompress
from nutlet.data.examples import Examples, split
from nutlet.errors import ConfigError
from nutlet.jobs import Workers
from nutlet.methods import FineTune, PruneWeights, Quantize
from nutlet.tasks.predict import predict
from nutlet.training.loop import Training


def pool() -> Examples:
    return tiny.tiny_data((10,)).train


def make(folder: Path | None = None, **changed: object) -> Shadows:
    settings = Shadows(
        pool=pool(),
        architecture=tiny.settled(tiny.TinyMLP(), torch.zeros(2, 10)),
        training=Training(epochs=2, batch_size=16, lr=0.01, optimizer="adamw"),
        workers=Workers(folder=folder),
    )
    return replace(settings, **changed)  # type: ignore[arg-type]


def louder(model: nn.Module, members: Examples, seed: int) -> nn.Module:
    louder = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in louder.parameters():
            parameter *= 1 + 0.001 * len(members)
    return louder


@pytest.mark.parametrize("candidates", [8, 9])
def test_models_come_in_pairs_that_saw_the_two_halves(candidates: int) -> None:
    members = halves(candidates, 6, seed=3)
    assert (members.sum(0) == 3).all()
    assert torch.equal(members[0::2], ~members[1::2])
    assert not torch.equal(members[0], members[2])
    assert members[0].sum() == candidates // 2
    # A larger number begins with the smaller one; another seed is another draw.
    assert torch.equal(halves(candidates, 20, seed=3)[:6], members)
    assert not torch.equal(halves(candidates, 6, seed=4), members)


@pytest.mark.parametrize("count", [0, 1, 3, -2])
def test_an_odd_number_of_models_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="expected an even number"):
        halves(8, count, seed=0)


def test_each_model_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    train_on = module.train_on
    monkeypatch.setattr(module, "train_on", lambda *a, **k: trained.append(1) or train_on(*a, **k))  # type: ignore[func-returns-value]
    scores, members = make(tmp_path)(2)
    assert (scores.shape, scores.dtype, members.shape) == ((2, 64, 4), torch.float32, (2, 64))
    again, _ = make(tmp_path)(4)
    assert len(trained) == 4
    assert torch.equal(again[:2], scores)
    # What is done after training needs no other training.
    altered, halves_ = make(tmp_path, after=louder)(4)
    assert len(trained) == 4
    assert torch.equal(halves_[:2], members)
    assert not torch.equal(altered, again)
    make(tmp_path, seed=1)(2)
    assert len(trained) == 6


def test_the_seed_decides_everything() -> None:
    first, _ = make()(2)
    torch.rand(5)
    assert torch.equal(make()(2)[0], first)
    assert not torch.equal(make(seed=1)(2)[0], first)
    assert not torch.equal(first[0], first[1])


def test_members_are_what_a_model_was_trained_on() -> None:
    # Labels that have nothing to do with the inputs can only be known by heart.
    examples = replace(pool(), y=torch.randint(0, 4, (64,), generator=torch.Generator().manual_seed(5)))
    long = Training(epochs=40, batch_size=16, lr=0.01, optimizer="adamw")
    scores, members = make(pool=examples, training=long)(2)
    right = scores.argmax(2) == examples.y
    assert right[members].float().mean() > 0.8
    assert right[~members].float().mean() < 0.5


def test_a_trained_model_comes_back_whole(tmp_path: Path) -> None:
    shadows = make(tmp_path, after=louder)
    models = shadows.models(2)
    plain = make(tmp_path)(2)[0]
    for model, scores in zip(models, plain, strict=True):
        assert torch.equal(predict(model, shadows.pool), scores)
        assert not model.training
    assert torch.equal(predict(louder(models[0], shadows.pool.subset(slice(0, 32)), 0), shadows.pool), shadows(2)[0][0])


def test_sensitivity_is_the_change_near_an_input(tmp_path: Path) -> None:
    shadows = make(tmp_path, noise=0.2, repeats=1)
    found = shadows.sensitivity(2)
    assert found.shape == (2, 64, 4)
    assert (found >= 0).all()
    assert found.max() > 0
    # Twice the noise, more change; and it is the change of probabilities, not more than 1.
    more = make(tmp_path, noise=0.4, repeats=1).sensitivity(2)
    assert found.mean() < more.mean() < 1
    x = nearby(pool(), 0.2, seed=0).x - pool().x
    assert float(x.std()) == pytest.approx(0.2, rel=0.1)


def test_shadow_models_are_compressed_as_the_victim_was(tmp_path: Path) -> None:
    recipe = (PruneWeights(sparsity=0.5), FineTune(epochs=1, batch_size=16), Quantize())
    after = Recompress(recipe=recipe, validation=0.25, calibration=8)
    plain = make(tmp_path)
    compressed = replace(plain, after=after)
    scores, members = compressed(2)
    assert torch.equal(members, plain(2)[1])
    assert scores.isfinite().all()
    difference = (scores - plain(2)[0]).abs().mean()
    assert 0 < difference < 5
    assert torch.equal(compressed(2)[0], scores)
    mine = plain.pool.subset(members[0])
    by_hand = compress(plain.models(2)[0], recipe, split(mine, validation=0.25, calibration=8, seed=1), seed=1)
    assert torch.equal(predict(after(plain.models(2)[0], mine, 1), mine), predict(by_hand.model, mine))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"noise": 0}, "noise is 0; expected a finite number above 0"),
        ({"repeats": 0}, "1 or more"),
        ({"seed": -1}, "seed is -1"),
        ({"pool": tiny.tiny_data((10,)).train.subset(slice(0, 3))}, "expected at least 4"),
    ],
)
def test_values_out_of_range_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changed)  # type: ignore[arg-type]
