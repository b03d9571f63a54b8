"""What inversion attacks do beyond what the conformance suite asks of every attack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from conformance import inversion_world as world
from nutlet.attacks import GeneratorInversion, MIFace
from nutlet.attacks.base import Attack, AttackerKnowledge
from nutlet.attacks.inversion.mi_face import roughness
from nutlet.auditing.recognition import recognised
from nutlet.data.examples import Examples
from nutlet.oracle import Disclosure, Oracle, source_of


def share(images: Tensor, judge: nn.Module) -> float:
    return float(recognised(images, judge).float().mean())


def images(
    attack: Attack, knowledge: AttackerKnowledge, victim: nn.Module, shown: str = "probabilities", budget: int = 300
) -> Tensor:
    (loot,) = attack.run(Oracle(source_of(victim), answers=Disclosure.parse(shown), budget=budget), knowledge, [budget])
    assert loot.images is not None
    return loot.images


def stripes() -> nn.Module:
    """Return a classifier of images (1, 6, 6): how bright each of six rows is against the others."""
    flat = nn.Linear(36, 6)
    with torch.no_grad():
        flat.weight.copy_(torch.eye(6).repeat_interleave(6, 1) - 1 / 6)
        flat.bias.zero_()
    return nn.Sequential(nn.Flatten(), flat)


IMAGES = AttackerKnowledge(classes=6, shape=(1, 6, 6), white_box=stripes())


def test_recognised_is_the_share_named_right() -> None:
    judge = world.judge()
    assert share(world.centres(), judge) == 1.0
    half = world.centres().clone()
    half[:8] = half[:8].roll(1, 0)
    assert share(half, judge) == 0.5


def test_noise_and_the_mean_are_recognised_by_chance() -> None:
    judge, generator = world.judge(), torch.Generator().manual_seed(0)
    mean = world.rows(500, seed=9).x.mean(0).expand(world.CLASSES, -1)
    assert share(mean, judge) == 1 / world.CLASSES
    noise = [share(torch.randn(world.CLASSES, world.FEATURES, generator=generator), judge) for _ in range(100)]
    assert abs(sum(noise) / 100 - 1 / world.CLASSES) < 0.02


def test_an_image_without_numbers_is_not_share() -> None:
    assert share(torch.full((4, 4), float("nan")), nn.Identity()) == 0.0


def test_miface_keeps_within_what_is_plausible_and_asks_nothing() -> None:
    found = images(MIFace(steps=20, lr=50.0), world.knowledge(world.victim()), world.victim(), budget=0)
    assert float(found.abs().max()) <= 3


def test_miface_leaves_the_victim_as_it_was() -> None:
    victim = world.untrained().train()
    before = {name: tensor.clone() for name, tensor in victim.state_dict().items()}
    images(MIFace(steps=3), world.knowledge(victim), victim)
    assert victim.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in victim.state_dict().items())
    assert all(parameter.grad is None for parameter in victim.parameters())


def test_miface_sees_through_a_softmax() -> None:
    plain = world.victim()
    ended = nn.Sequential(plain, nn.Softmax(1))
    one, other = (images(MIFace(steps=30), world.knowledge(v), v) for v in (plain, ended))
    assert torch.allclose(one, other, atol=1e-3)


def test_miface_makes_images_and_the_prior_makes_them_smooth() -> None:
    rough, smooth = (images(MIFace(steps=40, prior=prior), IMAGES, stripes()) for prior in (0.0, 0.1))
    for found in (rough, smooth):
        assert found.shape == (6, 1, 6, 6)
        assert found.mean(3).flatten(1).argmax(1).tolist() == list(range(6))
    assert roughness(smooth) < roughness(rough)


def test_roughness() -> None:
    assert roughness(torch.tensor([[3.0, 4.0]])) == 12.5
    assert roughness(torch.ones(2, 3, 4, 4)) == 0
    assert roughness(torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]])) == 1 + 3 + 2


def test_generator_inversion_makes_images() -> None:
    x = torch.randint(0, 256, (300, 1, 6, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    transfer = Examples(x.expand(-1, -1, -1, 6), torch.zeros(300, dtype=torch.long), (0.5,), (0.1,))
    found = images(GeneratorInversion(steps=200), replace(IMAGES, transfer=transfer), stripes())
    assert found.shape == (6, 1, 6, 6)
    assert found.mean(3).flatten(1).argmax(1).tolist() == list(range(6))


@pytest.mark.parametrize("shown", ["top-3", "rounded-2"])
def test_generator_inversion_works_on_part_of_the_answers(shown: str) -> None:
    found = images(GeneratorInversion(steps=200), world.knowledge(world.victim()), world.victim(), shown)
    assert share(found, world.judge()) > 0.5
