"""Who was in the training data: what membership attacks find, what they cost, and what two releases add.

    python bench/membership.py [CASE ...]

Every shadow model is a victim in turn: one of each pair, against models of the other pairs alone. The other half of its
own pair is left out because it saw just what the victim did not. ``seeds`` of a row are the pairs that were victims.
``seconds`` of an attack are processor time on one thread, training its shadow models and scoring. Models stay under
NUTLET_BENCH_WORK, so that a second run only scores.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rich
import torch
from torch import Tensor, nn

import nutlet as nl
from nutlet.attacks import RMIA, SAMIA, BaVarIA, LiRA, LossThreshold, TwoVersion
from nutlet.attacks.base import Attack, AttackerKnowledge, ShadowModels
from nutlet.attacks.membership.shadow_models import Shadows, halves
from nutlet.compression.recompress import Recompress
from nutlet.data.examples import Examples
from nutlet.formats.onnx.export import export_onnx
from nutlet.jobs import Workers
from nutlet.measurement.roc import auc, blind_scores, sequential, settled, tpr_at
from nutlet.oracle import Disclosure, FileSource, Oracle
from nutlet.storage import write_json
from nutlet.training.loop import Training
from rows import DATA, WORK, Rows

MODELS = 66
"""64 against each victim, and its own pair."""
VICTIMS = range(8)
RELEASED = range(3)
"""Victims that are compressed."""
VERSIONS = 16
"""Shadow models of each release."""
LOGITS = Disclosure("logits")


def fashion() -> tuple[Examples, nn.Module]:
    arrays = np.load(DATA / "fashion_mnist.npz")
    pool = Examples.from_arrays(arrays["x_train"][:6000], arrays["y_train"][:6000], mean=(0.286,), std=(0.353,))
    return pool, nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def adult() -> tuple[Examples, nn.Module]:
    """4,000 rows: numbers standardised (those of money as logarithms), categories as ones and zeros."""
    arrays = np.load(DATA / "adult.npz")
    chosen = np.random.default_rng(0).permutation(len(arrays["y"]))[:4000]
    columns = []
    for column, name, categorical in zip(arrays["x"].T, arrays["columns"], arrays["categorical"], strict=True):
        if categorical:
            columns.append(np.eye(column.max() + 1)[column])
        else:
            values = np.log1p(column) if name.startswith("capital") else column
            columns.append(((values - values.mean()) / values.std())[:, None])
    x = np.concatenate(columns, 1)[chosen].astype("float32")
    pool = Examples.from_arrays(x, arrays["y"][chosen].astype("int64"))
    return pool, nn.Sequential(nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))


def training(epochs: int, lr: float, batch_size: int) -> Training:
    return Training(epochs=epochs, lr=lr, batch_size=batch_size, optimizer="adamw", weight_decay=1e-4, precision="fp32")


def shadow_models(name: str) -> Shadows:
    torch.manual_seed(0)
    pool, architecture = {"fashion": fashion, "adult": adult}[name]()
    return Shadows(
        pool=pool,
        architecture=architecture,
        # Long enough to fit its half nearly by heart.
        training=training(20, 3e-3, {"fashion": 128, "adult": 64}[name]),
        workers=Workers(folder=WORK / "membership" / name),
    )


def seconds_of(name: str, work: Callable[[], object]) -> float:
    """Do the work and return its processor time; where it was done by an earlier run, the time it took then."""
    path = WORK / "membership" / "seconds.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    start = time.process_time()
    work()
    if name not in known:
        known[name] = time.process_time() - start
        write_json(path, known)
    return float(known[name])


@dataclass(frozen=True)
class Others:
    """Shadow models without one pair."""

    models: ShadowModels
    pair: int

    def __call__(self, count: int) -> tuple[Tensor, Tensor]:
        logits, members = self.models(count + 2)
        kept = torch.arange(count + 2) // 2 != self.pair
        return logits[kept], members[kept]


@dataclass(frozen=True)
class Fixed:
    """Answers of shadow models that are at hand already."""

    logits: Tensor
    members: Tensor

    def __call__(self, count: int) -> tuple[Tensor, Tensor]:
        return self.logits[:count], self.members[:count]


def figures(
    rows: Rows, scores: Tensor | np.ndarray, members: Tensor, prefix: str = "", bar: float | None = None
) -> float:
    """Add the area and two true positive rates of one victim; return the area."""
    area = auc(scores, members).value
    rows.add(prefix + "auc", area, "share", bar)
    rows.add(prefix + "tpr_at_1pct_fpr", tpr_at(scores, members, 0.01).value, "share")
    rows.add(prefix + "tpr_at_0.1pct_fpr", tpr_at(scores, members, 0.001).value, "share")
    return area


def plain_lira(
    logits: np.ndarray, members: np.ndarray, victim: np.ndarray, labels: np.ndarray, online: bool
) -> np.ndarray:
    """LiRA as its paper has it, with nothing of nutlet in it: medians, and a standard deviation for each candidate."""

    def scaled(scores: np.ndarray) -> np.ndarray:
        scores = scores.astype("float64") - scores.max(-1, keepdims=True)
        shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        own = np.take_along_axis(shares, np.broadcast_to(labels, scores.shape[:-1])[..., None], -1)[..., 0]
        np.put_along_axis(shares, np.broadcast_to(labels, scores.shape[:-1])[..., None], 0, -1)
        return np.log(own + 1e-45) - np.log(shares.sum(-1) + 1e-45)

    values, phi = scaled(logits), scaled(victim)

    def normal(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        only = np.where(chosen, values, np.nan)
        return np.nanmedian(only, 0), np.nanstd(only, 0) + 1e-30

    mean, deviation = normal(~members)
    if not online:
        return (phi - mean) / deviation
    seen_mean, seen_deviation = normal(members)
    return (((phi - mean) / deviation) ** 2 - ((phi - seen_mean) / seen_deviation) ** 2) / 2 + np.log(
        deviation / seen_deviation
    )


def victims(models: Shadows) -> Iterator[tuple[AttackerKnowledge, Tensor, Tensor, Fixed]]:
    """Yield for each victim the scene against it, its logits, its members, and its shadow models."""
    logits, members = models(MODELS)
    for pair in VICTIMS:
        others = Fixed(*Others(Fixed(logits, members), pair)(MODELS - 2))
        knowledge = AttackerKnowledge(
            classes=logits.shape[2], shape=tuple(models.pool.x.shape[1:]), pool=models.pool, shadows=others
        )
        yield knowledge, logits[2 * pair], members[2 * pair], others


def lira(name: str, case: str) -> None:
    models = shadow_models(name)
    trained = seconds_of(name, lambda: models(MODELS)) / MODELS
    rows = Rows("membership", case, list(VICTIMS), seconds=trained * MODELS)
    for knowledge, answers, members, others in victims(models):
        figures(rows, LossThreshold().scores(answers, LOGITS, knowledge), members, "loss_threshold_")
        for mode in ("offline", "online"):
            attack = LiRA(mode=mode, models=64)
            start = time.process_time()
            ours = attack.scores(answers, LOGITS, knowledge)
            seconds = 64 * trained + time.process_time() - start
            prefix = "" if mode == "offline" else "online_"
            theirs = plain_lira(
                others.logits.numpy(), others.members.numpy(), answers.numpy(), models.pool.y.numpy(), mode == "online"
            )
            reference = figures(rows, theirs, members, prefix + "reference_")
            area = figures(rows, ours, members, prefix)
            rows.add(prefix + "auc_over_reference", area - reference, "share", -0.005)
            rows.add(prefix + "seconds", seconds, "s")
        right = answers.argmax(1) == models.pool.y
        rows.add("victim_accuracy_on_members", float(right[members].float().mean()), "share")
        rows.add("victim_accuracy_on_others", float(right[~members].float().mean()), "share")
        # The control: no model at all.
        rows.add("blind_auc", auc(blind_scores(models.pool, members), members).value, "share")
    rows.write()


def cheap(attack: RMIA | BaVarIA, name: str, case: str) -> None:
    """Few shadow models, beside offline LiRA with 64."""
    models = shadow_models(name)
    trained = seconds_of(name, lambda: models(MODELS)) / MODELS
    rows = Rows("membership", case, list(VICTIMS), seconds=trained * MODELS)
    for knowledge, answers, members, _ in victims(models):
        start = time.process_time()
        dear = auc(LiRA(mode="offline", models=64).scores(answers, LOGITS, knowledge), members).value
        dear_seconds = 64 * trained + time.process_time() - start
        dear_online = auc(LiRA(models=64).scores(answers, LOGITS, knowledge), members).value
        start = time.process_time()
        scores = attack.scores(answers, LOGITS, knowledge)
        seconds = attack.models * trained + time.process_time() - start
        area = figures(rows, scores, members)
        rows.add("models", attack.models, "models")
        rows.add("seconds", seconds, "s")
        rows.add("speedup", dear_seconds / seconds, "x", 4.0)
        rows.add("auc_over_lira_offline_64", area - dear, "share", 0.0)
        rows.add("auc_over_lira_online_64", area - dear_online, "share")
        offline = replace(attack, mode="offline").scores(answers, LOGITS, knowledge)
        rows.add("offline_auc_over_lira_offline_64", figures(rows, offline, members, "offline_") - dear, "share")
        figures(rows, replace(attack, models=64).scores(answers, LOGITS, knowledge), members, "with_64_")

        def with_models(count: int, knowledge: AttackerKnowledge = knowledge, answers: Tensor = answers) -> Tensor:
            return replace(attack, models=count).scores(answers, LOGITS, knowledge)

        counts = (2, 4, 8, 16, 32, 64) if isinstance(attack, RMIA) else (4, 8, 16, 32, 64)
        scores, count = sequential(with_models, settled(members), counts)
        figures(rows, scores, members, "sequential_")
        rows.add("sequential_models", count, "models")
    rows.write()


def recipes() -> dict[str, tuple[nl.Method, ...]]:
    again = nl.FineTune(epochs=6, lr=1e-3, batch_size=128, optimizer="adamw", weight_decay=1e-4, precision="fp32")
    return {
        "int8": (nl.Quantize(),),
        "pruned": (nl.PruneWeights(sparsity=0.9), again),
        "lowrank": (nl.Factorize(rank=16), again),
    }


@dataclass(frozen=True)
class Releases:
    """The originals of some victims and their compressed files, with shadow models of each kind."""

    models: Shadows

    def kind(self, release: str) -> Shadows:
        """Return the shadow models of a release."""
        return (
            self.models if release == "original" else replace(self.models, after=Recompress(recipe=recipes()[release]))
        )

    def file(self, release: str, pair: int) -> Path:
        """Return the file of a victim, as it ships; it is made once."""
        path = WORK / "membership" / f"victim{pair}" / f"{release}.onnx"
        if not path.exists():
            model = self.models.models(2 * pair + 2)[2 * pair]
            members = self.members(pair)
            if release != "original":
                model = Recompress(recipe=recipes()[release])(model, self.models.pool.subset(members), seed=pair)
            path.parent.mkdir(parents=True, exist_ok=True)
            export_onnx(model, path, self.models.pool.batch(slice(0, 2))[0])
        return path

    def members(self, pair: int) -> Tensor:
        return halves(len(self.models.pool), 2 * pair + 2, self.models.seed)[2 * pair]

    def oracle(self, release: str, pair: int) -> Oracle:
        return Oracle(FileSource(self.file(release, pair)), budget=3 * len(self.models.pool), client=release)

    def run(
        self,
        attack: Attack,
        pair: int,
        victim: str,
        companions: tuple[str, ...] = (),
        shadows: ShadowModels | None = None,
    ) -> Tensor:
        """Return the scores of an attack on a shipped file that answers with probabilities."""
        knowledge = AttackerKnowledge(
            classes=10,
            shape=(1, 28, 28),
            seed=pair,
            pool=self.models.pool,
            shadows=shadows or Others(self.kind(victim), pair),
            companions=tuple(self.oracle(release, pair) for release in companions),
            companion_shadows=tuple(Others(self.kind(release), pair) for release in companions),
        )
        oracle = self.oracle(victim, pair)
        problem = attack.obstacle(oracle, knowledge)
        assert problem is None, problem
        (loot,) = attack.run(oracle, knowledge, [3 * len(self.models.pool)])
        assert loot.scores is not None
        return loot.scores


def two_versions(release: str) -> None:
    """The compressed file alone, the original alone, and both."""
    releases = Releases(shadow_models("fashion"))
    pool = releases.models.pool
    alone, both = BaVarIA(models=VERSIONS), TwoVersion(models=VERSIONS)
    rows = Rows("membership", f"two-version-{release}", list(RELEASED))
    for pair in RELEASED:
        members = releases.members(pair)
        right = torch.cat(
            [releases.oracle(release, pair).evaluate_uncounted(x).argmax(1) == y for x, y in pool.batches()]
        )
        rows.add("victim_accuracy_on_members", float(right[members].float().mean()), "share")
        rows.add("victim_accuracy_on_others", float(right[~members].float().mean()), "share")
        compressed = figures(rows, releases.run(alone, pair, release), members, "compressed_alone_")
        original = figures(rows, releases.run(alone, pair, "original"), members, "original_alone_")
        together = figures(rows, releases.run(both, pair, release, ("original",)), members, "two_version_")
        # An attacker who does not know how it was compressed, and one who learns a classifier on compressed models.
        plain = releases.run(alone, pair, release, shadows=Others(releases.models, pair))
        figures(rows, plain, members, "compressed_by_plain_shadows_")
        own = replace(releases.kind(release), seed=1)
        figures(rows, releases.run(SAMIA(), pair, release, shadows=own), members, "compressed_by_samia_")
        rows.add("auc_gained_over_compressed", together - compressed, "share", 0.0)
        rows.add("auc_gained_over_better", together - max(compressed, original), "share", 0.0)
    rows.write()


def all_versions() -> None:
    """Several compressed files of one model: without the original, and with it."""
    releases = Releases(shadow_models("fashion"))
    names = tuple(recipes())
    rows = Rows("membership", "two-version-several", list(RELEASED))
    for pair in RELEASED:
        members = releases.members(pair)
        single = [
            auc(releases.run(BaVarIA(models=VERSIONS), pair, name), members).value for name in ("original", *names)
        ]
        several = TwoVersion(models=VERSIONS)
        compressed = figures(rows, releases.run(several, pair, names[0], names[1:]), members, "compressed_only_")
        every = figures(
            rows, releases.run(several, pair, names[0], ("original", *names[1:])), members, "with_original_"
        )
        rows.add("auc_gained_over_best_compressed", compressed - max(single[1:]), "share", 0.0)
        rows.add("auc_gained_over_best", every - max(single), "share", 0.0)
    rows.write()


CASES: dict[str, Callable[[], None]] = {
    "lira": lambda: lira("fashion", "lira"),
    "rmia": lambda: cheap(RMIA(), "fashion", "rmia"),
    "bavaria": lambda: cheap(BaVarIA(), "fashion", "bavaria"),
    "lira-adult": lambda: lira("adult", "lira-adult"),
    "rmia-adult": lambda: cheap(RMIA(), "adult", "rmia-adult"),
    "bavaria-adult": lambda: cheap(BaVarIA(), "adult", "bavaria-adult"),
    "two-version-int8": lambda: two_versions("int8"),
    "two-version-pruned": lambda: two_versions("pruned"),
    "two-version-lowrank": lambda: two_versions("lowrank"),
    "two-version-several": all_versions,
}


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        rich.print(name)
        CASES[name]()
