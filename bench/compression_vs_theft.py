"""Compression against theft: one original and its compressed files, each audited on the shipped file.

    python bench/compression_vs_theft.py [ARTIFACT ...]

The victim is a small convnet trained on the first half of Fashion-MNIST; a thief asks with the other half. Controls
at the accuracy of compressed files tell apart what compression does and what lost accuracy does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import nutlet as nl
from extraction import BUDGETS, fashion
from nutlet.attacks import BaVarIA, Knockoff, Reuse
from nutlet.attacks.base import AttackerKnowledge
from nutlet.attacks.extraction.surrogate import Surrogate, architecture_for, fresh
from nutlet.attacks.membership.shadow_models import Shadows
from nutlet.auditing.jobs import clone_alone, run_attack
from nutlet.auditing.scoring import clone_hits, paired_difference, queries_to
from nutlet.data.examples import Data, Examples
from nutlet.formats.onnx.reader import load_onnx
from nutlet.jobs import Workers
from nutlet.measurement import Runtime
from nutlet.measurement.roc import auc, tpr_at
from nutlet.oracle import Disclosure, FileSource, Oracle, as_probabilities
from nutlet.storage import packed_size
from nutlet.training.loop import Training, cross_entropy, train_on
from pieces import Piece, piece, seconds_of
from rows import WORK, Rows

Array = npt.NDArray[np.float32]
FOLDER = WORK / "compression_vs_theft"
SHAPE = (1, 28, 28)
FLIP = nl.flip_and_crop(2)
SEEDS = [0, 1, 2, 3, 4]
ALONE = SEEDS[:4]
"""Of these, for which the thief was trained without the victim too."""
REUSED = 2
"""Of these, for which the file is put to another use."""


def data() -> Data:
    """The victim's half, of which it is trained on all but a validation set; test examples judge."""
    return nl.split(fashion("train").subset(slice(0, 30_000)), fashion("test"), validation=0.05, augment=FLIP)


def trained(architecture: nn.Module, epochs: int, seed: int = 100) -> nn.Module:
    """Train on labels alone."""
    model = fresh(architecture, seed)
    settings = Training(epochs=epochs, lr=0.003, optimizer="adamw", weight_decay=0.01)
    train_on(model, data().train, settings, cross_entropy, augment=FLIP, seed=seed)
    return model


def kept(name: str, make: Callable[[], nn.Module], architecture: nn.Module) -> nn.Module:
    """Return a trained control, made once."""
    path = FOLDER / f"{name}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(make().state_dict(), path)
    architecture.load_state_dict(torch.load(path, weights_only=True))
    return architecture.eval()


def original() -> nn.Module:
    return kept("original", lambda: trained(architecture_for(SHAPE, 10), 10), architecture_for(SHAPE, 10))


def distill(epochs: int) -> nl.Method:
    return nl.Distill(epochs=epochs, lr=0.003, optimizer="adamw", weight_decay=0.01)


def tune(epochs: int) -> nl.Method:
    return nl.FineTune(epochs=epochs, lr=0.002, optimizer="adamw", weight_decay=0.01)


@dataclass(frozen=True)
class Made:
    """How one file came about.

    Args:
        recipe: from the original; empty for a control.
        control: how a control was trained; None for the original and what is made from it.
        retrained: whether the training data were used again.
    """

    recipe: tuple[nl.Method, ...] = ()
    control: Callable[[], nn.Module] | None = None
    retrained: bool = False


def quarter() -> nn.Module:
    return architecture_for(SHAPE, 10, "smaller")


ARTIFACTS: dict[str, Made] = {
    "original": Made(),
    "int8": Made((nl.Quantize(),)),
    "pruned60-no-training": Made((nl.PruneWeights(sparsity=0.6),)),
    "pruned90-finetuned": Made((nl.PruneWeights(sparsity=0.9), tune(4)), retrained=True),
    "pruned90-distilled": Made((nl.PruneWeights(sparsity=0.9), distill(4)), retrained=True),
    "channels50-distilled": Made((nl.PruneChannels(ratio=0.5), distill(4)), retrained=True),
    "channels75-distilled": Made((nl.PruneChannels(ratio=0.75), distill(6)), retrained=True),
    "lowrank-distilled": Made((nl.Factorize(energy=0.6), distill(4)), retrained=True),
    "channels50-pruned80-int8": Made(
        (nl.PruneChannels(ratio=0.5), nl.PruneWeights(sparsity=0.8), distill(4), nl.Quantize()), retrained=True
    ),
    "control-half-width-labels": Made(
        control=lambda: kept("half", lambda: trained(quarter(), 10), quarter()), retrained=True
    ),
    "control-stopped-early": Made(
        control=lambda: kept("early", lambda: trained(architecture_for(SHAPE, 10), 2), architecture_for(SHAPE, 10)),
        retrained=True,
    ),
    "control-tuned-longer": Made((tune(10),), retrained=True),
}


def shipped(name: str) -> Path:
    """Return the ONNX file of an artifact, made once."""
    path = FOLDER / f"{name}.onnx"
    if path.exists():
        return path
    made, splits = ARTIFACTS[name], data()
    example = splits.calibration.batch(slice(0, 2))[0]
    if made.control is not None:
        return nl.export_onnx(made.control(), path, example)
    if not made.recipe:
        return nl.export_onnx(original(), path, example)
    result = nl.compress(original(), made.recipe, splits, seed=0, workdir=FOLDER / "steps")
    return result.export(path)


def surrogate() -> Surrogate:
    """The thief of the table: the victim's architecture, trained half as long as in a full audit."""
    return Surrogate(architecture=architecture_for(SHAPE, 10), augment=nl.flip_and_crop(padding=1), effort=0.5)


def stolen(name: str, seed: int, answers: str = "probabilities") -> Piece:
    """Copy one artifact with one seed; the clone's outputs on the test images at every budget."""

    def make() -> Piece:
        others = fashion("train").subset(slice(30_000, 60_000))
        knowledge = AttackerKnowledge(classes=10, shape=SHAPE, seed=seed, transfer=others, surrogate=surrogate())
        return run_attack(
            Knockoff(), FileSource(shipped(name)), Disclosure(answers), knowledge, BUDGETS, fashion("test")
        )

    label = name if answers == "probabilities" else f"{name}-{answers}"
    return piece(FOLDER / "stolen" / f"{label}-seed{seed}.npz", make)


def alone(seed: int) -> Piece:
    """The same thief with his own labels and no victim."""

    def make() -> Piece:
        others = fashion("train").subset(slice(30_000, 60_000))
        return clone_alone(surrogate(), others, BUDGETS, seed, fashion("test"))

    return piece(FOLDER / "stolen" / f"no-victim-seed{seed}.npz", make)


def answers_of(name: str) -> Array:
    """The shipped file's answers to the test images."""
    return Runtime(shipped(name), threads=1).predict(fashion("test"))


def extraction_rows(name: str, seeds: list[int], rows: Rows, answers: str = "probabilities") -> None:
    """Add the agreements of the clones of one artifact, beside those of the original's with the same seeds."""
    labels = fashion("test").y
    file, original = torch.from_numpy(answers_of(name)), torch.from_numpy(answers_of("original"))
    thefts = [stolen(name, seed, answers) for seed in seeds]
    rows.seconds += seconds_of(thefts)
    without = np.stack([alone(seed)["outputs"].argmax(2) == file.argmax(1).numpy() for seed in seeds if seed in ALONE])
    curves = []
    for place, budget in enumerate(BUDGETS):
        clones, firsts = (
            torch.from_numpy(np.stack([theft["outputs"][place] for theft in each]))
            for each in (thefts, [stolen("original", seed) for seed in seeds])
        )
        hits = clone_hits(clones, file, labels, original)
        first = clone_hits(firsts, original, labels, original)
        assert hits.original is not None
        gap = paired_difference(first.file, hits.file)
        for seed in range(len(seeds)):
            rows.add(f"agreement@{budget}", 100 * hits.file[seed].mean(), "%")
            rows.add(f"agreement_original@{budget}", 100 * hits.original[seed].mean(), "%")
            rows.add(f"agreement_where_wrong@{budget}", 100 * hits.where_wrong[seed].mean(), "%")
            rows.add(f"clone_accuracy@{budget}", 100 * hits.score[seed].mean(), "%")
        for hit in without[:, place]:
            rows.add(f"no_query_agreement@{budget}", 100 * hit.mean(), "%")
        found = gap.estimate
        for part, value in (("", found.value), ("_low", found.low), ("_high", found.high)):
            rows.add(f"difference{part}@{budget}", 100 * value, "pp")
        # 1: easier to copy than the original, -1: harder, 0: neither is clear.
        rows.add(f"verdict@{budget}", float(np.sign(gap.value)) if found.clear else 0.0, "sign")
        curves.append(hits.file.mean(1))
    for seed in range(len(seeds)):
        reached = queries_to(0.9, BUDGETS, [float(curve[seed]) for curve in curves])
        if reached is not None:
            rows.add("queries_to_90pct", reached, "queries")


def file_rows(name: str, rows: Rows) -> None:
    content = shipped(name).read_bytes()
    labels, answers = fashion("test").y.numpy(), answers_of(name)
    rows.add("accuracy", 100 * float((answers.argmax(1) == labels).mean()), "%")
    rows.add("bytes", len(content), "B")
    rows.add("bytes_zstd", packed_size(content), "B")
    confidence = as_probabilities(torch.from_numpy(answers)).max(1).values
    rows.add("mean_confidence", 100 * float(confidence.mean()), "%")
    rows.add("retrained", float(ARTIFACTS[name].retrained), "yes=1")


def candidates() -> tuple[Examples, npt.NDArray[np.bool_]]:
    """2,000 examples the victim was trained on, and 2,000 that it was not."""
    members, others = data().train.subset(slice(0, 2_000)), fashion("test").subset(slice(0, 2_000))
    pool = replace(members, x=torch.cat([members.x, others.x]), y=torch.cat([members.y, others.y]))
    return pool, np.arange(4_000) < 2_000


def privacy_rows(name: str, rows: Rows) -> None:
    """Add what BaVarIA finds with eight shadow models trained as the original was, on half of the candidates."""
    pool, members = candidates()
    training = Training(epochs=10, lr=0.003, batch_size=64, optimizer="adamw", weight_decay=0.01)
    architecture = architecture_for(SHAPE, 10)
    workers = Workers(folder=FOLDER / "shadows")
    shadows = Shadows(pool=pool, architecture=architecture, training=training, augment=FLIP, workers=workers)
    knowledge = AttackerKnowledge(classes=10, shape=SHAPE, pool=pool, shadows=shadows)
    (loot,) = BaVarIA(models=8).run(Oracle(FileSource(shipped(name))), knowledge, [len(pool)])
    assert loot.scores is not None
    scores = loot.scores.numpy()
    for metric, estimate in (("auc", auc(scores, members)), ("tpr_at_1pct_fpr", tpr_at(scores, members, 0.01))):
        rows.add(metric, estimate.value, "share")
        rows.add(f"{metric}_low", estimate.low, "share")
        rows.add(f"{metric}_high", estimate.high, "share")


def reused(name: str, seed: int, start: Literal["stolen", "random"] = "stolen") -> float:
    """Accuracy on two groups of classes with 100 labels, starting from the file, in per cent."""

    def make() -> Piece:
        others = fashion("train").subset(slice(30_000, 60_000))
        path = shipped(name)
        knowledge = AttackerKnowledge(
            classes=10,
            shape=SHAPE,
            seed=seed,
            transfer=others,
            surrogate=surrogate(),
            file=path,
            white_box=load_onnx(path),
        )
        return run_attack(Reuse(start=start), FileSource(path), Disclosure(), knowledge, [100], fashion("test"))

    made = piece(FOLDER / "reused" / f"{name}-{start}-seed{seed}.npz", make)
    wanted = np.array(made["facts"][-1]["groups"])[fashion("test").y.numpy()]
    return 100 * float((made["outputs"][-1].argmax(1) == wanted).mean())


def table(name: str, label: str, answers: str = "probabilities") -> None:
    seeds = SEEDS[:3] if name.startswith("control") or answers == "labels" else SEEDS
    rows = Rows("compression_vs_theft", label, seeds)
    file_rows(name, rows)
    extraction_rows(name, seeds, rows, answers)
    privacy_rows(name, rows)
    for seed in seeds[:REUSED]:
        rows.add("reuse_accuracy", reused(name, seed), "%")
        if name == "original":  # what any of them is to be held against
            rows.add("reuse_accuracy_from_nothing", reused(name, seed, "random"), "%")
    rows.write()


if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or list(ARTIFACTS)
    for artifact in wanted:
        table(artifact, artifact)
    if not sys.argv[1:]:
        table("original", "original-labels-only", "labels")
