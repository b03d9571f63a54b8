"""What membership attacks do beyond what the conformance suite asks of every attack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t
from torch import Tensor, nn

from conformance import membership_world as world
from conformance.membership_world import CANDIDATES
from nutlet.attacks import RMIA, SAMIA, BaVarIA, LiRA, LossThreshold, ShadowClassifier, TwoVersion
from nutlet.attacks.base import Attack, AttackerKnowledge
from nutlet.attacks.membership.evidence import log_ratio
from nutlet.attacks.membership.shadow_models import halves
from nutlet.attacks.membership.signals import answers_to, as_shown, confidence
from nutlet.data.examples import Examples
from nutlet.errors import BudgetError, ConfigError
from nutlet.measurement.roc import auc
from nutlet.oracle import Disclosure, Oracle, source_of

FEW = [
    LossThreshold(),
    ShadowClassifier(steps=60),
    LiRA(models=8),
    RMIA(),
    BaVarIA(neighbours=60),
    TwoVersion(models=8, neighbours=60),
]


def scores(attack: Attack, shown: str = "probabilities", knowledge: AttackerKnowledge | None = None) -> Tensor:
    """Return the scores of an attack on the victim of the tiny world, or on one of the same pool."""
    answers = Disclosure.parse(shown)
    knowledge = knowledge or world.knowledge(shown=answers)
    (loot,) = attack.run(oracle(shown), knowledge, [3 * CANDIDATES])
    assert loot.scores is not None
    return loot.scores


def oracle(shown: str = "probabilities") -> Oracle:
    return Oracle(source_of(world.victim()), answers=Disclosure.parse(shown))


def area(attack: Attack, shown: str = "probabilities") -> float:
    return auc(scores(attack, shown), world.members()).value


@pytest.mark.parametrize("attack", FEW, ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize("shown", ["labels", "top-2", "rounded-2"])
def test_the_other_releases_may_show_little_too(attack: Attack, shown: str) -> None:
    assert area(attack, shown) > 0.58


def test_shadow_models_tell_more_than_the_loss_alone() -> None:
    loss = area(LossThreshold())
    for attack in (RMIA(models=8), BaVarIA(models=8, neighbours=60), TwoVersion(models=8, neighbours=60)):
        assert area(attack) > loss


@pytest.mark.parametrize("attack", [*FEW, SAMIA()], ids=lambda attack: type(attack).__name__)
def test_a_budget_too_small_is_refused_before_anything_is_asked(attack: Attack) -> None:
    asked = oracle()
    with pytest.raises(BudgetError, match=f"largest budget is {CANDIDATES - 1} queries; expected at least"):
        next(attack.run(asked, world.knowledge(), [10, CANDIDATES - 1]))
    assert asked.queries == 0


@pytest.mark.parametrize("models", [2, 3])
def test_too_few_models_say_why(models: int) -> None:
    with pytest.raises(ConfigError, match=r"LiRA.models is \d; expected an even number of 4 or more.*RMIA takes two"):
        LiRA(models=models)


def test_sensitivity_needs_shadow_models_that_tell_it() -> None:
    plain = replace(world.knowledge(), shadows=lambda count: world.shadows()(count))
    assert "sensitivity" in (SAMIA().obstacle(oracle(), plain) or "")


def test_shadow_models_of_two_releases_must_fit_each_other() -> None:
    attack, knowledge, shadows = TwoVersion(models=6), world.knowledge(), world.shadows()
    with pytest.raises(ConfigError, match="different halves"):
        scores(attack, knowledge=replace(knowledge, companion_shadows=(replace(shadows, seed=1),)))
    with pytest.raises(ConfigError, match="shadow models of 3 releases; expected one kind for each of 2"):
        scores(attack, knowledge=replace(knowledge, companion_shadows=(shadows, shadows)))


def test_a_release_that_is_the_same_file_adds_nothing() -> None:
    alone = area(BaVarIA(models=8, neighbours=60))
    knowledge = replace(world.knowledge(), companions=(oracle(),), companion_shadows=(world.shadows(),))
    both = auc(scores(TwoVersion(models=8, neighbours=60), knowledge=knowledge), world.members()).value
    assert both == pytest.approx(alone, abs=0.02)


def test_a_release_of_another_model_does_no_harm() -> None:
    # What it shows has nothing to do with the victim's training data.
    knowledge = replace(
        world.knowledge(),
        companions=(Oracle(lambda x: torch.ones(len(x), world.CLASSES)),),
        companion_shadows=(lambda count: (torch.ones(count, CANDIDATES, world.CLASSES), world.shadows()(count)[1]),),
    )
    both = auc(scores(TwoVersion(models=8, neighbours=60), knowledge=knowledge), world.members()).value
    assert both == pytest.approx(area(BaVarIA(models=8, neighbours=60)), abs=0.03)


def test_the_line_of_rmia_is_fitted_or_given() -> None:
    found, flat = scores(RMIA(mode="offline")), scores(RMIA(mode="offline", a=0.0))
    assert not torch.equal(found, flat)
    # With a = 0 the guess is (p_out + 1) / 2 for each candidate.
    pool = world.pool()
    logits, members = world.shadows()(4)
    each = torch.arange(CANDIDATES)
    unseen = (logits.double().softmax(2)[:, each, pool.y] * ~members).sum(0) / 2
    ratio = oracle().query(pool.x).double()[each, pool.y] / ((unseen + 1) / 2)
    assert torch.allclose(flat, (ratio[:, None] > ratio[None]).double().mean(1), atol=2 / CANDIDATES)


def test_gamma_makes_ties_and_changes_no_order() -> None:
    one, two = scores(RMIA()), scores(RMIA(gamma=1.2))
    assert len(two.unique()) < len(one.unique())
    assert (two[one.argsort()].diff() >= 0).all()


def test_lira_of_four_models_by_hand() -> None:
    # Two candidates; the models' confidences in the label, as logits against 0.
    values = torch.tensor([[4.0, 1.0], [1.0, 3.0], [6.0, -1.0], [-1.0, 5.0]])
    members = torch.tensor([[True, False], [False, True], [True, False], [False, True]])
    victim = torch.tensor([5.0, 0.0])

    def logits(phi: Tensor) -> Tensor:
        return torch.stack([phi, torch.zeros_like(phi)], -1)

    pool = Examples(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
    knowledge = AttackerKnowledge(classes=2, shape=(1,), pool=pool, shadows=lambda count: (logits(values), members))
    scores = LiRA(models=4).scores(logits(victim), Disclosure("logits"), knowledge)
    # Members N(5, 1) and N(4, 1), others N(0, 1) and N(0, 1): (5² - 0²) / 2 and (0² - 4²) / 2.
    assert torch.allclose(scores, torch.tensor([12.5, -8.0], dtype=torch.float64), atol=1e-4)
    offline = LiRA(models=4, mode="offline").scores(logits(victim), Disclosure("logits"), knowledge)
    assert torch.allclose(offline, torch.tensor([5.0, 0.0], dtype=torch.float64), atol=1e-4)
    fixed = LiRA(models=4, mode="offline", variance="fixed").scores(logits(victim), Disclosure("logits"), knowledge)
    assert torch.allclose(fixed, torch.tensor([5.0, 0.0], dtype=torch.float64) / 2**0.5, atol=1e-4)


def test_confidence_keeps_its_digits_and_what_is_hidden_is_spread() -> None:
    labels = torch.tensor([0, 0])
    logits = torch.tensor([[30.0, 0.0, 0.0], [-90.0, 0.0, 0.0]])
    exact = torch.tensor([30 - torch.tensor(2.0).log(), -90 - torch.tensor(2.0).log()]).double()
    assert torch.allclose(confidence(logits, labels, Disclosure("logits")), exact)
    shown = confidence(as_shown(logits, Disclosure("probabilities")), labels, Disclosure("probabilities"))
    assert shown[0] == pytest.approx(float(exact[0]), abs=0.1)  # 1 - p would be nothing in float32
    assert shown.isfinite().all()
    rounded = confidence(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), labels, Disclosure("rounded", digits=2))
    assert rounded.tolist() == pytest.approx([5.2933, -5.2933], abs=1e-3)  # 0.995 against 0.005
    top = confidence(torch.tensor([[0.0, 0.6, 0.0], [0.6, 0.0, 0.0]]), labels, Disclosure("top-k", k=1))
    assert top.exp().tolist() == pytest.approx([0.2 / 0.8, 0.6 / 0.4])
    said = confidence(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), labels, Disclosure("labels"))
    assert said.exp().tolist() == pytest.approx([3.0, 1 / 3])
    never = confidence(torch.tensor([[-torch.inf, 0.0], [0.0, -torch.inf]]), labels, Disclosure("logits"))
    assert never.tolist() == [-1e4, 1e4]


def test_a_victim_that_ends_in_a_softmax_shows_logits_too() -> None:
    softmax = nn.Sequential(world.victim(), nn.Softmax(1))
    shown = Disclosure("logits")
    found = answers_to(Oracle(source_of(softmax), answers=shown), world.pool())
    plain = answers_to(oracle("logits"), world.pool())
    assert not torch.allclose(found, plain, atol=0.1)
    labels = world.pool().y
    assert torch.allclose(confidence(found, labels, shown), confidence(plain, labels, shown), atol=1e-3)


def test_what_shadow_models_show_is_what_the_victim_shows() -> None:
    logits = torch.randn(10, 4)
    assert as_shown(logits, Disclosure("logits")) is logits
    assert torch.allclose(as_shown(logits, Disclosure()).sum(-1), torch.ones(10))
    assert torch.equal(as_shown(logits, Disclosure("labels")).argmax(-1), logits.argmax(-1))
    assert as_shown(logits, Disclosure("top-k", k=2)).count_nonzero() == 20


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("releases", [1, 3])
def test_evidence_is_the_ratio_of_two_student_densities(releases: int, online: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    members, strength = halves(40, 8, seed=0), 5.0
    difficulty = 3 * torch.randn(1, 40, 1, generator=generator).double()
    values = torch.randn(8, 40, releases, generator=generator).double() + difficulty + members[..., None]
    phi = torch.randn(40, releases, generator=generator).double()
    found = log_ratio(phi, values, members, online=online, strength=strength, neighbours=40)

    def density(chosen: Tensor, seen: bool) -> np.ndarray:
        own = [values[chosen[:, c], c].numpy() for c in range(40)]  # four each
        means = np.stack([of.mean(0) for of in own])
        squares = np.stack([(of - of.mean(0)).T @ (of - of.mean(0)) for of in own])
        prior = means.mean(0)
        within = squares.sum(0) / (3 * 40)
        within = within + np.diag(1e-3 * np.diag(within) + 1e-9)
        between = ((means - prior) ** 2).mean(0) - np.diag(within) / 4
        worth, n = (np.diag(within) / between).mean(), 4 if seen else 0
        each = []
        for mean, square, value in zip(means, squares, phi.numpy(), strict=True):
            away = mean - prior
            psi = strength * within
            if seen:
                psi = psi + square + worth * n / (worth + n) * np.outer(away, away)
            dof = strength + n + 2
            shape = psi * (worth + n + 1) / ((worth + n) * dof)
            each.append(multivariate_t.logpdf(value, prior + n / (worth + n) * away, shape, df=dof))
        return np.array(each)

    np.testing.assert_allclose(found.numpy(), density(members, online) - density(~members, True), atol=1e-9)


def test_evidence_is_the_ratio_of_the_true_densities_where_models_are_many() -> None:
    generator = torch.Generator().manual_seed(0)
    members = halves(300, 200, seed=0)
    values = torch.randn(200, 300, 1, generator=generator).double() + 2.0 * members[..., None]
    phi = torch.linspace(-2, 4, 300).double()[:, None]
    found = log_ratio(phi, values, members, online=True, strength=16, neighbours=300)
    away = found - (2 * phi[:, 0] - 2)  # from that of N(2, 1) and N(0, 1)
    assert away.abs().mean() < 0.6
    assert away.mean().abs() < 0.2
    # Offline, the prior says what members would have looked like.
    offline = log_ratio(phi, values, members, online=False, strength=1000, neighbours=300)
    assert torch.corrcoef(torch.stack([offline, found]))[0, 1] > 0.98


def test_two_releases_say_what_their_difference_says() -> None:
    # Each release alone is noise; the noise is common to both, and members differ by what is left.
    generator = torch.Generator().manual_seed(0)
    members = halves(400, 16, seed=0)

    def releases(seen: Tensor) -> Tensor:
        common = 5 * torch.randn(seen.shape, generator=generator).double()
        own = 0.3 * torch.randn(*seen.shape, 2, generator=generator).double()
        return torch.stack([common, common + 1.0 * seen], -1) + own

    victim = halves(400, 2, seed=1)[0]
    values, phi = releases(members), releases(victim)
    single, both = (
        auc(log_ratio(phi[..., :d], values[..., :d], members, online=True, strength=16, neighbours=100), victim).value
        for d in (1, 2)
    )
    assert abs(single - 0.5) < 0.1
    assert both > 0.9


def test_answers_that_never_differ_are_no_evidence() -> None:
    members = halves(20, 4, seed=0)
    same = torch.zeros(4, 20, 1)
    assert torch.equal(
        log_ratio(torch.zeros(20, 1), same, members, online=True, strength=16, neighbours=5),
        torch.zeros(20, dtype=torch.float64),
    )


def test_kept_shadow_models_serve_all_attacks() -> None:
    folder = world.shadows().workers.folder
    assert folder is not None
    scores(LiRA(models=8))
    before = sorted(folder.iterdir())
    scores(RMIA(models=8))
    scores(BaVarIA(models=8))
    assert sorted(folder.iterdir()) == before
