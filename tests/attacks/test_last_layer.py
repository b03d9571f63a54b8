"""What LastLayerWidth does beyond what the conformance suite asks of every attack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from conformance import inversion_world as world
from nutlet.attacks import LastLayerWidth
from nutlet.attacks.base import AttackerKnowledge
from nutlet.attacks.white_box.last_layer import read_last_layer
from nutlet.oracle import Disclosure, Oracle, source_of

SCENE = AttackerKnowledge(classes=world.OUTPUTS, shape=(world.FEATURES,))


def logits(count: int = 240) -> Tensor:
    """Return the wide victim's logits of normal inputs."""
    x = torch.randn(count, world.FEATURES, generator=torch.Generator().manual_seed(0))
    return source_of(world.wide())(x)


def facts(victim: nn.Module, knowledge: AttackerKnowledge = SCENE, budget: int = 1000) -> dict[str, object]:
    oracle = Oracle(source_of(victim), answers=Disclosure("logits"), budget=budget)
    (loot,) = LastLayerWidth().run(oracle, knowledge, [budget])
    assert loot.facts is not None
    return {**loot.facts, "share": loot.share}


def largest_angle(span: Tensor, columns: Tensor) -> float:
    """Return the largest principal angle between two subspaces, in radians."""
    basis = torch.linalg.qr(columns.double()).Q
    return float(torch.linalg.svdvals(basis - span @ (span.T @ basis)).max().clamp(max=1).asin())


def test_the_span_is_that_of_the_last_layer() -> None:
    _, span = read_last_layer(logits())
    assert span is not None
    assert span.shape == (world.OUTPUTS, world.WIDTH)
    weight = world.wide()[2].weight.detach()  # type: ignore[index]
    assert largest_angle(span, weight) < 1e-4
    other = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    assert largest_angle(span, other) > 1


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_a_bias_is_no_dimension(shift: float) -> None:
    values, span = read_last_layer(logits() + shift * torch.linspace(-1, 1, world.OUTPUTS))
    assert span is not None
    assert span.shape[1] == world.WIDTH
    assert len(values) == world.OUTPUTS


def test_a_softmax_at_the_end_hides_nothing() -> None:
    ended = nn.Sequential(world.wide(), nn.Softmax(1))
    assert facts(ended)["width"] == world.WIDTH


def test_a_layer_as_wide_as_the_outputs_is_not_seen() -> None:
    x = torch.randn(240, world.OUTPUTS, generator=torch.Generator().manual_seed(0))
    assert read_last_layer(x)[1] is None
    assert read_last_layer(x.softmax(1))[1] is None, "what a softmax takes away is no width"
    assert read_last_layer(x[:30])[1] is None, "nor is the number of rows"
    assert read_last_layer(torch.ones(5, 40))[1] is None
    assert read_last_layer(x[:1])[1] is None


def test_facts_and_queries() -> None:
    found = facts(world.wide())
    assert found["width"] == world.WIDTH
    assert found["outputs"] == world.OUTPUTS
    assert found["share"] == 1.0
    assert isinstance(found["singular_values"], list)
    assert len(found["singular_values"]) == world.OUTPUTS
    too_few = facts(world.wide(), budget=world.WIDTH)
    assert (too_few["width"], too_few["share"]) == (None, 0.0)


def test_asks_with_the_transfer_set_where_there_is_one() -> None:
    assert facts(world.wide(), replace(SCENE, transfer=world.rows(200, seed=4)))["width"] == world.WIDTH


def test_says_that_few_outputs_show_nothing() -> None:
    oracle = Oracle(source_of(world.wide()), answers=Disclosure("logits"))
    found = LastLayerWidth().obstacle(oracle, replace(SCENE, classes=10))
    assert found == "vacuous: 10 outputs cannot show a wider hidden layer"
    assert LastLayerWidth().obstacle(oracle, SCENE) is None
