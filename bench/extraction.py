"""Our extraction attacks beside those of the Adversarial Robustness Toolbox (ART), same victim, transfer set and thief.

    python bench/extraction.py [CASE ...]

The victim is the shipped ONNX file in ONNX Runtime, which shows probabilities; both sides ask through the same counting
oracle. ART (KnockoffNets with random sampling, CopycatCNN) trains its clone with Adam at 1e-3 for its usual 20 epochs,
and once more for as many steps as our attack. Every piece is kept under NUTLET_BENCH_WORK and done once.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nutlet as nl
from nutlet.attack import Attack, Scene
from nutlet.attacks import Knockoff, SemiSupervised
from nutlet.audit.trials import attack_job
from nutlet.data import Examples
from nutlet.inputs import load_data, load_model
from nutlet.jobs import Job, Result, Workers
from nutlet.measurement import cores
from nutlet.oracle import Answers, FileSource, Oracle
from nutlet.predict import evaluate, predict
from nutlet.thief import Thief, architecture_for, fresh
from nutlet.train import Training, cross_entropy, train_on
from rows import DATA, WORK, Rows

BUDGETS = (250, 1_000, 4_000, 10_000)
FOLDER = WORK / "extraction"
SEEDS = [0, 1, 2]
OURS: dict[str, Attack] = {"knockoff": Knockoff(), "best": SemiSupervised()}


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
    "fmnist-out": Case(fashion_victim, digits, lambda: fashion("test"), "unknown", nl.flip_and_crop(padding=2), SEEDS),
    # The pretrained victim saw these images: they are the best that a thief could hold.
    "cifar10-in": Case(cifar_victim, lambda: cifar10().train, cifar_test, "larger", nl.flip_and_crop(4), SEEDS[:2]),
    "cifar10-out": Case(cifar_victim, cifar100_views, cifar_test, "larger", nl.flip_and_crop(4), SEEDS[:2]),
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
    thief = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), shape, 10, torch.optim.Adam(model.parameters(), 1e-3), device_type="cpu"
    )
    torch.manual_seed(seed)
    np.random.seed(seed)
    common = {"batch_size_fit": 64, "batch_size_query": 256, "nb_epochs": epochs, "nb_stolen": budget}
    if name == "KnockoffNets":
        attack = KnockoffNets(victim, sampling_strategy="random", use_probability=True, verbose=False, **common)
    else:
        attack = CopycatCNN(victim, use_probability=True, **common)
    stolen = attack.extract(x, thieved_classifier=thief)
    return {"outputs": predict(stolen.model.eval(), evaluation).numpy(), "sent": oracle.queries}


def steps_of(attack: Attack, thief: Thief, budget: int, pool: int) -> int:
    """Return how many training steps of 64 examples ``attack`` takes at ``budget``."""
    return attack.steps(thief, budget, pool) if isinstance(attack, SemiSupervised) else thief.steps(budget)


def run(name: str) -> None:
    case = CASES[name]
    transfer, evaluation, source = case.transfer(), case.evaluation(), FileSource(case.victim())
    shape = tuple(transfer.x.shape[1:])
    thief = Thief(architecture=architecture_for(shape, 10, case.size), augment=case.augment)
    truth = Oracle(source).judge(torch.cat([x for x, _ in evaluation.batches()])).argmax(1).numpy()
    workers = Workers(
        processes=int(os.environ.get("NUTLET_BENCH_PROCESSES", cores())),
        folder=FOLDER / "jobs",
        progress=nl.Progress(quiet=False),
    )
    jobs: dict[tuple[str, int, int], Job] = {}
    for seed in case.seeds:
        scene = Scene(classes=10, shape=shape, seed=seed, transfer=transfer, thief=thief)
        for label, attack in OURS.items():
            title = f"{label}, seed {seed}"
            jobs[label, 0, seed] = attack_job(attack, source, Answers(), scene, BUDGETS, evaluation, title)
        for budget in BUDGETS:
            equal = math.ceil(steps_of(OURS["best"], thief, budget, len(transfer)) / math.ceil(budget / 64))
            for label, peer, epochs in (
                ("art", "KnockoffNets", 20),
                ("copycat", "CopycatCNN", 20),
                ("art_equal_steps", "KnockoffNets", equal),
            ):
                arguments = {
                    "name": peer, "source": source, "transfer": transfer, "architecture": thief.architecture,
                    "budget": budget, "epochs": epochs, "seed": seed, "evaluation": evaluation,
                }  # fmt: skip
                title = f"{label}, {budget} queries, seed {seed}"
                jobs[label, budget, seed] = Job(art_attack, arguments, title, cost=epochs * budget / 64_000)
    results = dict(zip(jobs, workers.run(list(jobs.values()), name), strict=True))
    rows = Rows("extraction", name, case.seeds)
    for seed in case.seeds:
        lead: dict[str, list[float]] = {}
        for place, budget in enumerate(BUDGETS):
            shares = {label: results[label, 0, seed]["outputs"][place] for label in OURS}
            shares |= {key[0]: results[key]["outputs"] for key in jobs if key[1:] == (budget, seed)}
            agreed = {label: 100 * float((outputs.argmax(1) == truth).mean()) for label, outputs in shares.items()}
            strongest = max(agreed["art"], agreed["copycat"])
            rows.add(f"agreement@{budget}", agreed["best"], "%", None)
            rows.add(f"knockoff_agreement@{budget}", agreed["knockoff"], "%")
            rows.add(f"art_agreement@{budget}", agreed["art"], "%")
            rows.add(f"copycat_agreement@{budget}", agreed["copycat"], "%")
            rows.add(f"art_equal_steps_agreement@{budget}", agreed["art_equal_steps"], "%")
            right = 100 * float((shares["best"].argmax(1) == evaluation.y.numpy()).mean())
            rows.add(f"clone_accuracy@{budget}", right, "%")
            lead.setdefault("gain_over_art_pp", []).append(agreed["best"] - strongest)
            lead.setdefault("gain_over_art_equal_steps_pp", []).append(agreed["best"] - agreed["art_equal_steps"])
        rows.add("gain_over_art_pp", sum(lead["gain_over_art_pp"]) / len(BUDGETS), "pp", 3.0)
        equal_lead = lead["gain_over_art_equal_steps_pp"]
        rows.add("gain_over_art_equal_steps_pp", sum(equal_lead) / len(BUDGETS), "pp", 1.0)
        rows.add("least_gain_over_art_pp", min(lead["gain_over_art_pp"]), "pp", 0.0)
    rows.write()


if __name__ == "__main__":
    for case_name in sys.argv[1:] or CASES:
        run(case_name)
