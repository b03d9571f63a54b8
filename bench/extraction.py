"""Our extraction attacks beside those of the Adversarial Robustness Toolbox (ART), same victim, transfer set and thief.

    python bench/extraction.py [CASE ...]

The victim is the shipped ONNX file in ONNX Runtime, which shows probabilities; both sides ask through the same counting
oracle. ART (KnockoffNets with random sampling, CopycatCNN) trains its clone with Adam at 1e-3 for its usual 20 epochs,
and once more for as many steps as our attack. Every piece is kept under NUTLET_BENCH_WORK and done once.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nutlet as nl
from nutlet.attacks import Knockoff
from nutlet.attacks.base import AttackerKnowledge
from nutlet.attacks.extraction.surrogate import Surrogate, architecture_for, fresh
from nutlet.auditing.jobs import run_attack
from nutlet.data.examples import Examples
from nutlet.jobs import Result
from nutlet.loading import load_data, load_model
from nutlet.oracle import Disclosure, FileSource, Oracle
from nutlet.tasks.predict import evaluate, predict
from nutlet.training.loop import Training, cross_entropy, train_on
from pieces import Piece, piece
from rows import DATA, WORK, Rows

BUDGETS = (250, 1_000, 4_000, 10_000)
FOLDER = WORK / "extraction"
SEEDS = [0, 1, 2]
USUAL_EPOCHS = 20
OURS = {"knockoff": 1.0, "knockoff_t4": 4.0}
"""Knockoff at the temperatures at which a clone is held against the answers."""


@dataclass(frozen=True)
class Case:
    victim: Callable[[], Path]
    transfer: Callable[[], Examples]
    evaluation: Callable[[], Examples]
    size: str
    augment: nl.flip_and_crop
    seeds: list[int]


def fashion(split: str) -> Examples:
    with np.load(DATA / "fashion_mnist.npz") as arrays:
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
    return Examples.from_arrays(x, y, mean=(0.286,), std=(0.353,))


def digits() -> Examples:
    with np.load(DATA / "mnist.npz") as arrays:
        return Examples.from_arrays(arrays["x_train"], arrays["y_train"], mean=(0.286,), std=(0.353,))


def cifar10() -> nl.Data:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return load_data(str(DATA / "cifar10"), mean=mean, std=std)


def cifar100_views() -> Examples:
    """2,500 images of other classes, each as it is and in three random crops and mirrorings: each view is a query."""
    with np.load(DATA / "cifar100_2500.npz") as arrays:
        names = arrays.files
        x = arrays["x" if "x" in names else names[0]]
    plain = Examples.from_arrays(x, np.zeros(len(x), "int64"), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    generator = torch.Generator().manual_seed(0)
    # On the bytes, so that views are stored as images are.
    views = [plain.x, *(nl.flip_and_crop(4)(plain.x.float(), generator).round().byte() for _ in range(3))]
    return replace(plain, x=torch.cat(views), y=torch.zeros(4 * len(x), dtype=torch.long))


def fashion_victim() -> Path:
    """A small convnet trained on the first half of the training set, exported."""
    path = FOLDER / "fmnist_victim.onnx"
    if not path.exists():
        half = fashion("train").subset(slice(0, 30_000))
        model = fresh(architecture_for((1, 28, 28), 10), 100)
        settings = Training(epochs=8, lr=0.003, optimizer="adamw", weight_decay=0.01)
        train_on(model, half, settings, cross_entropy, augment=nl.flip_and_crop(2), seed=100)
        print(f"Fashion-MNIST victim: {evaluate(model, fashion('test')):.2%} on the test set")
        nl.export_onnx(model, path, half.batch(slice(0, 2))[0])
    return path


def cifar_victim() -> Path:
    path = FOLDER / "cifar10_victim.onnx"
    if not path.exists():
        model = load_model(f"{DATA / 'models' / 'arch.py'}:CifarResNet(20)", DATA / "models" / "resnet20_cifar10.pt")
        nl.export_onnx(model, path, cifar10().train.batch(slice(0, 2))[0])
    return path


def cifar_test() -> Examples:
    test = cifar10().test
    assert test is not None
    return test


CASES = {
    "fmnist-in": Case(
        fashion_victim,
        lambda: fashion("train").subset(slice(30_000, 60_000)),
        lambda: fashion("test"),
        "unknown",
        nl.flip_and_crop(padding=2),
        SEEDS,
    ),
    "fmnist-out": Case(
        fashion_victim, digits, lambda: fashion("test"), "unknown", nl.flip_and_crop(padding=2), SEEDS[:1]
    ),
    # The pretrained victim saw these images: they are the best that a thief could hold.
    "cifar10-in": Case(cifar_victim, lambda: cifar10().train, cifar_test, "larger", nl.flip_and_crop(4), SEEDS[:1]),
    "cifar10-out": Case(cifar_victim, cifar100_views, cifar_test, "larger", nl.flip_and_crop(4), SEEDS[:1]),
}


def art_attack(
    name: str, source: FileSource, transfer: Examples, architecture: nn.Module, budget: int, epochs: int, seed: int,
    evaluation: Examples,
) -> Result:  # fmt: skip
    """One attack of ART at one budget, asking through our oracle; returns its clone's outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks.extraction import CopycatCNN, KnockoffNets
        from art.estimators.classification import BlackBoxClassifier, PyTorchClassifier
    x = torch.cat([part for part, _ in transfer.batches()]).numpy()
    shape = x.shape[1:]
    oracle = Oracle(source, budget=budget)
    victim = BlackBoxClassifier(lambda rows: oracle.query(torch.from_numpy(rows)).numpy(), shape, 10)
    model = fresh(architecture, seed).to(memory_format=torch.channels_last)
    surrogate = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), shape, 10, torch.optim.Adam(model.parameters(), 1e-3), device_type="cpu"
    )
    torch.manual_seed(seed)
    np.random.seed(seed)
    common = {"batch_size_fit": 64, "batch_size_query": 256, "nb_epochs": epochs, "nb_stolen": budget}
    if name == "KnockoffNets":
        attack = KnockoffNets(victim, sampling_strategy="random", use_probability=True, verbose=False, **common)
    else:
        attack = CopycatCNN(victim, use_probability=True, **common)
    stolen = attack.extract(x, thieved_classifier=surrogate)
    return {"outputs": predict(stolen.model.eval(), evaluation).numpy(), "sent": oracle.queries}


def ours(source: FileSource, knowledge: AttackerKnowledge, evaluation: Examples) -> Result:
    """Our attack at all budgets; returns the outputs of its clones."""
    return run_attack(Knockoff(), source, Disclosure(), knowledge, BUDGETS, evaluation)


def agreements(name: str, seed: int) -> tuple[dict[str, list[float]], list[float]]:
    """Return the agreement of every attack with the shipped file at each budget, in per cent, and its seconds."""
    case = CASES[name]
    transfer, evaluation, source = case.transfer(), case.evaluation(), FileSource(case.victim())
    shape = tuple(transfer.x.shape[1:])
    surrogate = Surrogate(architecture=architecture_for(shape, 10, case.size), augment=case.augment)
    truth = Oracle(source).evaluate_uncounted(torch.cat([x for x, _ in evaluation.batches()])).argmax(1).numpy()
    knowledge = AttackerKnowledge(classes=10, shape=shape, seed=seed, transfer=transfer, surrogate=surrogate)
    made: list[Piece] = []
    found: dict[str, list[float]] = {}

    def share(outputs: np.ndarray) -> float:
        return 100 * float((outputs.argmax(1) == truth).mean())

    for label, temperature in OURS.items():
        asking = replace(knowledge, surrogate=replace(surrogate, temperature=temperature))
        made.append(piece(FOLDER / name / f"{label}-seed{seed}.npz", partial(ours, source, asking, evaluation)))
        found[label] = [share(outputs) for outputs in made[-1]["outputs"]]
        assert made[-1]["sent"] == BUDGETS[-1]
    for budget in BUDGETS:
        equal = math.ceil(surrogate.steps(budget) / math.ceil(budget / 64))
        peers = [("art", "KnockoffNets", USUAL_EPOCHS), ("art_equal_steps", "KnockoffNets", equal)]
        if seed == case.seeds[0]:  # the same clone as KnockoffNets by random sampling: shown once
            peers.append(("copycat", "CopycatCNN", USUAL_EPOCHS))
        for label, peer, epochs in peers:
            shared = label == "art_equal_steps" and epochs == USUAL_EPOCHS  # the same clone
            path = FOLDER / name / f"{'art' if shared else label}-{budget}-seed{seed}.npz"
            arguments = (peer, source, transfer, surrogate.architecture, budget, epochs, seed, evaluation)
            made.append(piece(path, partial(art_attack, *arguments)))
            assert made[-1]["sent"] == budget
            found.setdefault(label, []).append(share(made[-1]["outputs"]))
    return found, [float(part["seconds"]) for part in made]


def run(name: str) -> None:
    case = CASES[name]
    rows = Rows("extraction", name, case.seeds)
    found = {}
    for seed in case.seeds:
        found[seed], seconds = agreements(name, seed)
        rows.seconds += sum(seconds)
    best = max(OURS, key=lambda label: sum(sum(found[seed][label]) for seed in case.seeds))
    print(f"{name}: our best attack is {best}")
    for seed in case.seeds:
        leads: dict[str, list[float]] = {"art": [], "art_equal_steps": []}
        for place, budget in enumerate(BUDGETS):
            ours_best = found[seed][best][place]
            rows.add(f"agreement@{budget}", ours_best, "%")
            for label, values in found[seed].items():
                rows.add(f"{label}_agreement@{budget}", values[place], "%")
            strongest = max(values[place] for label, values in found[seed].items() if label in ("art", "copycat"))
            leads["art"].append(ours_best - strongest)
            leads["art_equal_steps"].append(ours_best - found[seed]["art_equal_steps"][place])
        rows.add("gain_over_art_pp", sum(leads["art"]) / len(BUDGETS), "pp", 3.0)
        rows.add("gain_over_art_equal_steps_pp", sum(leads["art_equal_steps"]) / len(BUDGETS), "pp", 1.0)
        rows.add("least_gain_over_art_pp", min(leads["art"]), "pp", 0.0)
    rows.write()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case_name in sys.argv[1:] or CASES:
        run(case_name)
