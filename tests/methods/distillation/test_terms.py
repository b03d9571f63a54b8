"""Each term of the loss against what its paper says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from nutlet.errors import ConfigError, ModelError
from nutlet.methods.distillation.features import Features, attention, hint, relations
from nutlet.training.losses import decoupled, divergence


@pytest.fixture
def outputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return s, t, torch.arange(6) % 5


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_plain_divergence_is_the_decoupled_one_with_the_share_that_the_teacher_leaves(
    outputs: tuple[Tensor, Tensor, Tensor], temperature: float
) -> None:
    for s, t, y in zip(*(part.split(1) for part in outputs), strict=True):
        p = float((t / temperature).softmax(1)[0, y])
        whole = divergence(s, t, temperature)
        torch.testing.assert_close(decoupled(s, t, y, temperature, 1.0, 1.0 - p), whole)
        assert float(decoupled(s, t, y, temperature, 1.0, 1.0)) >= float(whole)


def test_decoupled_by_hand() -> None:
    s, t = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.8, 0.15, 0.05]]).log()
    y = torch.tensor([0])
    sure = 0.8 * torch.tensor(0.8 / 0.5).log() + 0.2 * torch.tensor(0.2 / 0.5).log()
    others = 0.75 * torch.tensor(0.75 / 0.5).log() + 0.25 * torch.tensor(0.25 / 0.5).log()
    torch.testing.assert_close(decoupled(s, t, y, 1.0, 1.0, 0.0), sure)
    torch.testing.assert_close(decoupled(s, t, y, 1.0, 0.0, 1.0), others)
    torch.testing.assert_close(decoupled(s, t, y, 1.0, 2.0, 8.0), 2 * sure + 8 * others)


def test_of_two_classes_there_are_no_others_to_tell_apart() -> None:
    s, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert float(decoupled(s, t, torch.tensor([1]), 1.0, 0.0, 1.0)) == 0.0


def test_attention_by_hand() -> None:
    one = torch.zeros(1, 2, 1, 2)
    one[0, 0, 0, 0] = 5.0  # all activity on the left
    other = torch.ones(1, 3, 1, 2)  # as much on either side: (1, 1) / sqrt(2)
    root = 0.5**0.5
    assert float(attention(one, other)) == pytest.approx((1 - root) ** 2 + root**2, abs=1e-6)
    torch.testing.assert_close(attention(3 * one, 0.1 * other), attention(one, other))
    assert float(attention(one, one.flip(3))) == pytest.approx(2.0)  # nothing in common
    assert float(attention(one, torch.ones(1, 3, 2, 4))) == pytest.approx(float(attention(one, other)), abs=1e-6)


def test_relations_by_hand() -> None:
    # A triangle 3, 4, 5 against one with equal sides.
    one = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    other = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
    sides = F.smooth_l1_loss(torch.tensor([0.75, 1.0, 1.25]), torch.ones(3)) * 6 / 9  # of 9 pairs, three are one alone
    # Of 27 cosines, an end seen from itself gives 0, an end with itself 1, in both; each angle is met twice.
    cosines = torch.tensor([0.0, 0.6, 0.8])
    angles = 2 * F.smooth_l1_loss(cosines, torch.full((3,), 0.5), reduction="sum") / 27
    assert float(relations(one, other)) == pytest.approx(float(sides + 2 * angles), abs=1e-5)


def test_relations_know_neither_scale_nor_shift_nor_rotation() -> None:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]
    assert float(relations(x, 7 * x @ rotation + 3)) < 1e-6
    assert float(relations(x, x.flip(0))) > 1e-3


def test_relations_of_equal_examples_have_gradients() -> None:
    x = torch.zeros(4, 3, requires_grad=True)
    relations(x, torch.randn(4, 3, generator=torch.Generator().manual_seed(0))).backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_hint_by_hand() -> None:
    s, t = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 0.0], [3.0, 3.0]]])  # one channel, two positions; two
    projection = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        projection.weight.copy_(torch.tensor([[1.0], [2.0]]))
    # (1, 2), (2, 4) against (1, 3), (0, 3)
    assert hint(s, t, projection).item() == pytest.approx((0 + 1 + 4 + 1) / 4)


class Plain(nn.Sequential):
    """No blocks, two resolutions."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, tiny.CLASSES),
        )  # fmt: skip


IMAGES = torch.zeros(2, 3, 8, 8)


def names(features: Features) -> list[tuple[str, str]]:
    return [(s.name, t.name) for s, t in features.pairs]


def test_the_last_blocks_at_each_resolution_are_found() -> None:
    # A resolution without a block gives its last layer.
    assert names(Features(tiny.TinyCNN(), tiny.TinyCNN(), IMAGES)) == [("block2", "block2"), ("mix", "mix")]
    rows = torch.zeros(2, 10)
    assert names(Features(tiny.TinyMLP(), tiny.TinyMLP(), rows)) == [("block2", "block2")]
    assert names(Features(Plain(), Plain(8), IMAGES)) == [("1", "1"), ("5", "5"), ("6", "6")]


def test_models_of_different_kinds_are_matched_by_resolution_or_by_order() -> None:
    assert names(Features(Plain(), tiny.TinyCNN(), IMAGES)) == [("1", "block2")]
    smaller = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                            nn.Linear(4, tiny.CLASSES))  # fmt: skip
    assert names(Features(smaller, tiny.TinyCNN(), IMAGES)) == [("1", "block2"), ("2", "mix")]
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, tiny.CLASSES))
    terms = Features(flat, tiny.TinyCNN(), IMAGES, hints=1.0, attention=1.0, relations=1.0)
    assert names(terms) == [("2", "mix")]
    with terms.watching(flat, teacher := tiny.TinyCNN()):
        flat(IMAGES + 1)
        teacher(IMAGES)
        assert bool(terms.loss().isfinite())


def test_sites_can_be_named_and_projections_stand_where_channels_differ() -> None:
    features = Features(Plain(), tiny.TinyCNN(), IMAGES, sites=("3:block1", "0:stem"), hints=1.0)
    assert names(features) == [("3", "block1"), ("0", "stem")]
    assert [tuple(p.weight.shape) for p in features.projections] == [(8, 4), (8, 4)]
    same = Features(tiny.TinyCNN(), tiny.TinyCNN(), IMAGES, sites=("block1",), hints=1.0)
    assert not list(same.projections.parameters())
    with pytest.raises(ConfigError, match=r"'blok1'.*the student; did you mean 'block1'"):
        Features(tiny.TinyCNN(), tiny.TinyCNN(), IMAGES, sites=("blok1",))
    with pytest.raises(ConfigError, match=r"'fc', which gives no hidden float tensor in the teacher"):
        Features(tiny.TinyCNN(), tiny.TinyCNN(), IMAGES, sites=("block1:fc",))


def test_a_model_without_hidden_features_is_told() -> None:
    flat = nn.Sequential(nn.Linear(10, tiny.CLASSES))
    with pytest.raises(ModelError, match="no hidden features that student and teacher both have; expected"):
        Features(flat, tiny.TinyMLP(), torch.zeros(2, 10), hints=1.0)


def test_a_student_that_is_its_teacher_loses_nothing() -> None:
    model = tiny.settled(tiny.TinyCNN(), IMAGES)
    features = Features(model, model, IMAGES, hints=1.0, attention=1.0, relations=1.0)
    with features.watching(model, model):
        model(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
        assert features.loss().item() < 1e-9
    assert not any(module._forward_hooks for module in model.modules())
