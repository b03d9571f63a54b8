"""Attacks on a victim that knows its training data by heart, and on one that knows nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nutlet.attack import Attack, Loot, Scene
from nutlet.attacks import RMIA, SAMIA, BaVarIA, LiRA, LossThreshold, ShadowClassifier, TwoVersion
from nutlet.attacks.evidence import log_ratio
from nutlet.attacks.signals import as_shown, confidence
from nutlet.data import Examples
from nutlet.errors import BudgetError, ConfigError
from nutlet.jobs import Workers
from nutlet.membership import auc
from nutlet.oracle import Answers, Oracle, source_of
from nutlet.shadows import Shadows, halves
from nutlet.train import Training, cross_entropy, train_on

CANDIDATES = 240
ATTACKS: list[Attack] = [
    LossThreshold(),
    ShadowClassifier(models=4, steps=60),
    SAMIA(models=4, steps=40),
    LiRA(models=8),
    LiRA(models=8, variance="fixed"),
    LiRA(models=8, mode="offline"),
    RMIA(models=4),
    RMIA(models=4, mode="offline"),
    BaVarIA(models=8, neighbours=60),
    BaVarIA(models=8, neighbours=60, mode="offline"),
    TwoVersion(models=8, neighbours=60),
]


def name_of(attack: Attack) -> str:
    return "-".join([type(attack).__name__, *(str(v) for v in attack.options().values() if isinstance(v, str))])


def coarser(model: nn.Module, members: Examples, seed: int) -> nn.Module:
    """Round weights to a few values, as quantization to very few bits would."""
    with torch.no_grad():
        for parameter in model.parameters():
            step = parameter.abs().max() / 15
            parameter.copy_((parameter / step).round() * step)
    return model


@dataclass(frozen=True)
class Target:
    scene: Scene
    members: Tensor
    victim: nn.Module
    compressed: nn.Module

    def oracle(self, shown: str = "probabilities", budget: int | None = None) -> Oracle:
        return Oracle(source_of(self.victim), answers=Answers.parse(shown), budget=budget)

    def run(self, attack: Attack, shown: str = "probabilities", seed: int = 0) -> Loot:
        scene, oracle = self.scene, self.oracle(shown, 3 * CANDIDATES)
        if "companions" in attack.needs:
            other = Oracle(source_of(self.compressed), answers=Answers.parse(shown))
            assert isinstance(scene.shadows, Shadows)
            altered = replace(scene.shadows, after=coarser)
            scene = replace(scene, companions=(other,), companion_shadows=(altered,))
        scene = replace(scene, seed=seed)
        assert attack.obstacle(oracle, scene) is None
        (loot,) = attack.run(oracle, scene, [10, 3 * CANDIDATES])
        assert loot.queries == oracle.queries == CANDIDATES * (3 if isinstance(attack, SAMIA) else 1)
        assert loot.scores is not None
        assert loot.scores.shape == (CANDIDATES,)
        return loot

    def auc(self, attack: Attack, shown: str = "probabilities") -> float:
        scores = self.run(attack, shown).scores
        assert scores is not None
        return auc(scores, self.members).value


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """Three classes that overlap, half of the labels wrong: what a model knows of those it knows by heart."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(CANDIDATES) % 3
    x = 1.5 * torch.eye(3, 12)[y] + torch.randn(CANDIDATES, 12, generator=generator)
    noisy = torch.rand(CANDIDATES, generator=generator) < 0.3
    y = torch.where(noisy, torch.randint(0, 3, (CANDIDATES,), generator=generator), y)
    torch.manual_seed(0)
    shadows = Shadows(
        pool=Examples(x, y),
        architecture=nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 3)),
        training=Training(epochs=25, batch_size=40, lr=0.02, optimizer="adamw", precision="fp32"),
        workers=Workers(folder=tmp_path_factory.mktemp("shadows")),
    )
    members = halves(CANDIDATES, 2, seed=99)[0]
    torch.manual_seed(1)
    victim = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 3))
    train_on(victim, shadows.pool.subset(members), shadows.training, cross_entropy, seed=5)
    rebuilt = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 3))
    rebuilt.load_state_dict(victim.state_dict())
    scene = Scene(classes=3, shape=(12,), pool=shadows.pool, shadows=shadows)
    return Target(scene, members, victim, coarser(rebuilt, shadows.pool, 0))


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_members_are_told_from_others(target: Target, attack: Attack) -> None:
    assert target.auc(attack) > 0.62


@pytest.mark.parametrize("attack", [one for one in ATTACKS if not isinstance(one, SAMIA)], ids=name_of)
@pytest.mark.parametrize("shown", ["labels", "top-1", "rounded-1", "logits"])
def test_whatever_is_shown_tells_something(target: Target, attack: Attack, shown: str) -> None:
    assert target.auc(attack, shown) > 0.58


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_a_victim_that_answers_at_random_gives_nothing_away(target: Target, attack: Attack) -> None:
    generator = torch.Generator().manual_seed(7)

    def noise(x: Tensor) -> Tensor:
        return 4 * torch.randn(len(x), 3, generator=generator)

    deaf = replace(target, victim=noise, compressed=noise)  # type: ignore[arg-type]
    assert abs(deaf.auc(attack) - 0.5) < 0.12  # three standard deviations are 0.11


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_the_seed_decides_everything(target: Target, attack: Attack) -> None:
    first = target.run(attack).scores
    torch.rand(5)
    again = target.run(attack).scores
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)


def test_more_shadow_models_tell_more_than_the_loss_alone(target: Target) -> None:
    loss = target.auc(LossThreshold())
    for attack in (RMIA(models=8), BaVarIA(models=8, neighbours=60), TwoVersion(models=8, neighbours=60)):
        assert target.auc(attack) > loss


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_a_budget_too_small_is_refused_before_anything_is_asked(target: Target, attack: Attack) -> None:
    oracle = target.oracle()
    with pytest.raises(BudgetError, match=f"largest budget is {CANDIDATES - 1} queries; expected at least"):
        next(attack.run(oracle, target.scene, [CANDIDATES - 1]))
    assert oracle.queries == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LiRA(models=2), "LiRA.models is 2; expected an even number of 4 or more.*RMIA takes two"),
        (lambda: BaVarIA(models=2), "expected an even number of 4 or more"),
        (lambda: BaVarIA(models=7), "come in pairs"),
        (lambda: RMIA(models=0), "expected an even number of 2 or more"),
        (lambda: TwoVersion(models=4), "expected an even number of 6 or more"),
        (lambda: ShadowClassifier(models=1), "expected an even number of 2 or more"),
        (lambda: SAMIA(models=5), "come in pairs"),
        (lambda: SAMIA(steps=0), "SAMIA.steps is 0"),
        (lambda: ShadowClassifier(steps=-1), "steps is -1"),
        (lambda: LiRA(mode="both"), "LiRA.mode is 'both'; expected one of online, offline"),  # type: ignore[arg-type]
        (lambda: LiRA(variance="none"), "expected one of per-example, fixed"),  # type: ignore[arg-type]
        (lambda: RMIA(mode="off"), "RMIA.mode"),  # type: ignore[arg-type]
        (lambda: RMIA(gamma=0.5), "gamma of 1 or more"),
        (lambda: RMIA(a=1.5), "a from 0 to 1"),
        (lambda: BaVarIA(strength=0), "strength=0, neighbours=100; expected above 0"),
        (lambda: BaVarIA(neighbours=1), "2 candidates or more"),
        (lambda: TwoVersion(strength=float("nan")), "expected above 0"),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], Attack], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_is_missing_is_named(target: Target) -> None:
    scene = target.scene
    assert LossThreshold().obstacle(target.oracle(), replace(scene, pool=None)) == (
        "needs candidates for membership, which was not given"
    )
    assert "needs shadow models" in str(LiRA().obstacle(target.oracle(), replace(scene, shadows=None)))
    assert "needs another release" in str(TwoVersion().obstacle(target.oracle(), scene))
    releases = replace(scene, companions=(target.oracle(),))
    assert "shadow models of the other releases" in str(TwoVersion().obstacle(target.oracle(), releases))
    assert "needs probabilities" in str(SAMIA().obstacle(target.oracle("labels"), scene))
    assert "sensitivity" in str(SAMIA().obstacle(target.oracle(), replace(scene, shadows=lambda count: scene)))  # type: ignore[arg-type, return-value]


def test_shadow_models_of_two_releases_must_fit_each_other(target: Target) -> None:
    shadows = target.scene.shadows
    assert isinstance(shadows, Shadows)
    attack, both = TwoVersion(models=6), (target.oracle(),)
    other = replace(target.scene, companions=both, companion_shadows=(replace(shadows, seed=1),))
    with pytest.raises(ConfigError, match="different halves"):
        next(attack.run(target.oracle(), other, [CANDIDATES]))
    missing = replace(target.scene, companions=both, companion_shadows=(shadows, shadows))
    with pytest.raises(ConfigError, match="shadow models of 3 releases; expected one kind for each of 2"):
        next(attack.run(target.oracle(), missing, [CANDIDATES]))


def test_a_release_that_is_the_same_file_adds_nothing(target: Target) -> None:
    alone = target.auc(BaVarIA(models=8, neighbours=60))
    shadows = target.scene.shadows
    assert isinstance(shadows, Shadows)
    scene = replace(target.scene, companions=(target.oracle(),), companion_shadows=(shadows,))
    (loot,) = TwoVersion(models=8, neighbours=60).run(target.oracle(), scene, [CANDIDATES])
    assert loot.scores is not None
    assert auc(loot.scores, target.members).value == pytest.approx(alone, abs=0.02)


def test_the_line_of_rmia_is_fitted_or_given(target: Target) -> None:
    fitted, given = RMIA(mode="offline"), RMIA(mode="offline", a=0.0)
    found, flat = target.run(fitted).scores, target.run(given).scores
    assert found is not None
    assert flat is not None
    assert not torch.equal(found, flat)
    # With a = 0 the guess is (p_out + 1) / 2 for each candidate.
    assert target.scene.shadows is not None
    logits, members = target.scene.shadows(4)
    labels = target.scene.pool.y  # type: ignore[union-attr]
    unseen = (logits.double().softmax(2)[:, torch.arange(CANDIDATES), labels] * ~members).sum(0) / 2
    victim = target.oracle().query(target.scene.pool.x).double()[torch.arange(CANDIDATES), labels]  # type: ignore[union-attr]
    ratio = victim / ((unseen + 1) / 2)
    assert torch.allclose(flat, (ratio[:, None] > ratio[None]).double().mean(1), atol=2 / CANDIDATES)


def test_gamma_makes_ties_and_changes_no_order(target: Target) -> None:
    one, two = target.run(RMIA()).scores, target.run(RMIA(gamma=1.2)).scores
    assert one is not None
    assert two is not None
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
    scene = Scene(classes=2, shape=(1,), pool=pool, shadows=lambda count: (logits(values), members))
    scores = LiRA(models=4).scores(logits(victim), Answers("logits"), scene)
    # Members N(5, 1) and N(4, 1), others N(0, 1) and N(0, 1): (5² - 0²) / 2 and (0² - 4²) / 2.
    assert torch.allclose(scores, torch.tensor([12.5, -8.0], dtype=torch.float64), atol=1e-4)
    offline = LiRA(models=4, mode="offline").scores(logits(victim), Answers("logits"), scene)
    assert torch.allclose(offline, torch.tensor([5.0, 0.0], dtype=torch.float64), atol=1e-4)
    fixed = LiRA(models=4, mode="offline", variance="fixed").scores(logits(victim), Answers("logits"), scene)
    assert torch.allclose(fixed, torch.tensor([5.0, 0.0], dtype=torch.float64) / 2**0.5, atol=1e-4)


def test_confidence_keeps_its_digits_and_what_is_hidden_is_spread() -> None:
    labels = torch.tensor([0, 0])
    logits = torch.tensor([[30.0, 0.0, 0.0], [-90.0, 0.0, 0.0]])
    exact = torch.tensor([30 - torch.tensor(2.0).log(), -90 - torch.tensor(2.0).log()]).double()
    assert torch.allclose(confidence(logits, labels, Answers("logits")), exact)
    shown = confidence(as_shown(logits, Answers("probabilities")), labels, Answers("probabilities"))
    assert shown[0] == pytest.approx(float(exact[0]), abs=0.1)  # 1 - p would be nothing in float32
    assert shown.isfinite().all()
    rounded = confidence(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), labels, Answers("rounded", digits=2))
    assert rounded.tolist() == pytest.approx([5.2933, -5.2933], abs=1e-3)  # 0.995 against 0.005
    top = confidence(torch.tensor([[0.0, 0.6, 0.0], [0.6, 0.0, 0.0]]), labels, Answers("top-k", k=1))
    assert top.exp().tolist() == pytest.approx([0.2 / 0.8, 0.6 / 0.4])
    said = confidence(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), labels, Answers("labels"))
    assert said.exp().tolist() == pytest.approx([3.0, 1 / 3])


def test_what_shadow_models_show_is_what_the_victim_shows() -> None:
    logits = torch.randn(2, 5, 4)
    assert as_shown(logits, Answers("logits")) is logits
    assert torch.allclose(as_shown(logits, Answers()).sum(-1), torch.ones(2, 5))
    assert torch.equal(as_shown(logits, Answers("labels")).argmax(-1), logits.argmax(-1))
    assert as_shown(logits, Answers("top-k", k=2)).count_nonzero() == 20


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


def test_kept_shadow_models_serve_all_attacks(target: Target) -> None:
    assert isinstance(target.scene.shadows, Shadows)
    folder = target.scene.shadows.workers.folder
    assert folder is not None
    target.run(LiRA(models=8))
    before = sorted(Path(folder).iterdir())
    target.run(RMIA(models=8))
    target.run(BaVarIA(models=8))
    assert sorted(Path(folder).iterdir()) == before
