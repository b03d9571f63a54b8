"""What the costly clone attacks do beyond what the conformance suite asks of every attack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nutlet.attacks import DataFree, LabelOnly
from nutlet.attacks.base import AttackerKnowledge
from nutlet.attacks.extraction.adaptive_knockoff import draw, updated
from nutlet.attacks.extraction.data_free import _Duel
from nutlet.attacks.extraction.queries import QueriedSet
from nutlet.attacks.extraction.surrogate import Surrogate
from nutlet.data.examples import Examples
from nutlet.oracle import Disclosure, Oracle

TRANSFER = Examples(torch.arange(60.0).view(60, 1), torch.arange(60) % 3)


def test_the_policy_says_which_classes_are_asked_about_until_they_are_used_up() -> None:
    oracle, random = Oracle(nn.Linear(1, 2)), torch.Generator().manual_seed(0)
    asked, policy = QueriedSet.nothing(TRANSFER), torch.tensor([0.0, 0.9, 0.1])
    first = draw(asked, policy, 15, random)
    labels = TRANSFER.y[first].tolist()
    assert 0 not in labels
    assert labels.count(1) > labels.count(2)
    rest = draw(asked.more(oracle, first), policy, 45, random)
    assert sorted([*first.tolist(), *rest.tolist()]) == list(range(60))


def test_a_rewarded_class_is_preferred_and_the_sum_of_preferences_stays() -> None:
    labels, reward = torch.tensor([2, 0, 0, 1]), torch.tensor([1.0, 1.0, -1.0])
    preferences = updated(torch.zeros(3), labels, reward)
    # Two of class 0 share its step, the one of class 1 has a whole step down; class 2 is none of the last three.
    assert preferences.argsort(descending=True).tolist() == [0, 2, 1]
    assert float(preferences.sum()) == pytest.approx(0, abs=1e-6)


def duel(answers: Disclosure, *, batch: int = 32) -> _Duel:
    """Return a clone of random weights against another of random weights."""
    torch.manual_seed(0)
    surrogate = Surrogate(architecture=nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), batch_size=batch)
    victim = surrogate.model(9)
    knowledge = AttackerKnowledge(classes=3, shape=(6,), seed=1, surrogate=surrogate)
    return _Duel(Oracle(lambda x: victim(x).detach(), answers=answers), knowledge, surrogate, 100_000)


def test_forward_differences_point_where_clone_and_victim_disagree_more() -> None:
    game, attack = duel(Disclosure()), DataFree(directions=40, step=0.01)
    x = torch.randn(32, 6, generator=game.random)
    slope = game.slope(x, attack)
    assert game.count == 32 * 41
    further = x + 0.1 * slope / slope.flatten(1).norm(dim=1, keepdim=True)
    assert bool((game.disagreement(further) > game.disagreement(x)).float().mean() > 0.9)


def test_a_trained_generator_finds_more_disagreement() -> None:
    game, attack = duel(Disclosure(), batch=64), DataFree(directions=4)

    def found() -> float:
        with torch.no_grad():
            return float(game.disagreement(game.invent()).mean())

    before = sum(found() for _ in range(5))
    for _ in range(100):
        game.challenge(attack, game.most)
    assert sum(found() for _ in range(5)) > 1.1 * before


def test_labels_alone_cost_the_generator_no_query() -> None:
    game = duel(Disclosure("labels"))
    before = [parameter.clone() for parameter in game.generator.parameters()]
    game.challenge(DataFree(), game.most)
    assert game.count == game.oracle.queries == 0
    assert any(not torch.equal(a, b) for a, b in zip(before, game.generator.parameters(), strict=True))


def test_images_are_invented_too() -> None:
    architecture = nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 10, 2))
    surrogate = Surrogate(architecture=architecture, effort=0.01, batch_size=8)
    knowledge = AttackerKnowledge(classes=2, shape=(3, 9, 10), surrogate=surrogate)
    sent: list[Tensor] = []

    def victim(x: Tensor) -> Tensor:
        sent.append(x)
        return x.mean((2, 3))[:, :2]

    [loot] = DataFree().run(Oracle(victim, budget=75), knowledge, [75])
    x = torch.cat(sent)
    assert x.shape == (75, 3, 9, 10)
    assert loot.queries == 75
    assert float(x.mean()) == pytest.approx(0, abs=0.1)
    assert float(x.std()) == pytest.approx(1, abs=0.1)


def test_copies_are_shares_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    # The victim is a threshold at 0: an input there gets both labels, one far away only one.
    x = torch.tensor([[0.0], [50.0], [-50.0], [40.0]])
    knowledge = AttackerKnowledge(classes=2, shape=(1,), transfer=Examples(x, torch.zeros(4, dtype=torch.long)),
                  surrogate=Surrogate(architecture=nn.Linear(1, 2), effort=0.01))  # fmt: skip
    taught: list[tuple[Tensor, Tensor]] = []
    train = Surrogate.train

    def spy(self: Surrogate, examples: Examples, answers: Tensor, **options: object) -> nn.Module:
        taught.append((examples.x, answers))
        return train(self, examples, answers, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Surrogate, "train", spy)
    oracle = Oracle(lambda x: torch.cat([x, -x], 1), answers=Disclosure("labels"), outputs="logits")
    sent = [loot.queries for loot in LabelOnly(copies=50, noise=0.05).run(oracle, knowledge, [204, 1000])]
    assert sent == [4 + 4 * 50] * 2, "when all inputs have their copies, the rest of the budget is not used"
    for inputs, shares in taught:
        share = dict(zip(inputs.flatten().tolist(), shares[:, 0].tolist(), strict=True))
        assert 0.2 < share[0.0] < 0.8
        assert share[50.0] == share[40.0] == 1
        assert share[-50.0] == 0


def test_a_batch_cut_short_by_the_budget_is_answered() -> None:
    game = duel(Disclosure())
    game.turn(DataFree(), 33)
    assert game.count == 33
    again = duel(Disclosure())
    again.turn(replace(DataFree(), clone_steps=1), 33)
    assert again.count == 32, "the generator's queries do not fit"
