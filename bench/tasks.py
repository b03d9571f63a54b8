"""Every task on real data through recipes of three families: what the file loses, how small it is, what it answers, and
how well it is copied from ``QUERIES`` answers by a thief who has the architecture.

``python bench/tasks.py [TASK/RECIPE ...]``; one core, a minute or less for each net.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nutlet as nl
from nutlet.measurement.parity import parity
from nutlet.methods.base import Method
from nutlet.tasks import as_task
from nutlet.tasks.forward import adapted
from nutlet.training.loop import Training, supervised, train_on
from rows import DATA, Rows

Made = tuple[nn.Module, nl.Examples, nl.Examples, Training]
"""An untrained net, training and test examples, and how it is trained."""

HELD_OUT = 1000
QUERIES = 500
STOLEN = nl.Protocol(queries=(QUERIES,), seeds=2, effort=0.5, attacks=("Knockoff", "LossThreshold", "FileLeaks"))
RECOVERY = {"epochs": 2, "batch_size": 64, "optimizer": "adamw", "lr": 1e-3}
RECIPES: dict[str, list[Method]] = {
    "quantize": [nl.Quantize()],
    "prune": [nl.PruneChannels(ratio=0.3), nl.FineTune(**RECOVERY)],  # type: ignore[arg-type]
    "factorize": [nl.Factorize(energy=0.9), nl.Distill(**RECOVERY)],  # type: ignore[arg-type]
}


def training(epochs: int, lr: float = 2e-3) -> Training:
    return Training(epochs=epochs, lr=lr, batch_size=64, optimizer="adamw", weight_decay=0.01)


def parted(x: Tensor | dict[str, Tensor], y: Tensor, task: nl.Task | str) -> tuple[nl.Examples, nl.Examples]:
    examples = nl.Examples.from_arrays(x, y, task=task)
    return examples.subset(slice(HELD_OUT, None)), examples.subset(slice(0, HELD_OUT))


class Table(nn.Module):
    """Numbers and categories of a table; one embedding for each category."""

    def __init__(self, numbers: int, sizes: list[int], outputs: int) -> None:
        super().__init__()
        self.kinds = nn.ModuleList(nn.Embedding(size, 8) for size in sizes)
        width = numbers + 8 * len(sizes)
        self.net = nn.Sequential(
            nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, outputs)
        )

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        embedded = [kind(categories[:, k]) for k, kind in enumerate(self.kinds)]
        return self.net(torch.cat([numbers, *embedded], 1))  # type: ignore[no-any-return]


def adult(target: str) -> Made:
    arrays = np.load(DATA / "adult.npz")
    order = np.random.default_rng(0).permutation(len(arrays["y"]))[:12_000]
    x, columns, categorical = arrays["x"][order].astype(np.float32), arrays["columns"], arrays["categorical"]
    kept = ~categorical & (columns != target)
    numbers = torch.from_numpy((x[:, kept] - x[:, kept].mean(0)) / (x[:, kept].std(0) + 1e-6))
    categories = torch.from_numpy(x[:, categorical]).long()
    sizes = [int(size) + 1 for size in categories.amax(0)]
    inputs = {"numbers": numbers, "categories": categories}
    if target == "income":
        y, task, outputs = torch.from_numpy(arrays["y"][order]), as_task("classification"), 2
    else:
        y = torch.from_numpy(x[:, list(columns).index(target)])
        task, outputs = nl.Regression(scale=round(float(y.std()), 1), unit="hours"), 1
    return Table(int(kept.sum()), sizes, outputs), *parted(inputs, y, task), training(12)


def images(name: str, count: int) -> tuple[Tensor, Tensor]:
    arrays = np.load(DATA / f"{name}.npz")
    x, y = (arrays[key][:count] for key in ("x_train", "y_train"))
    return torch.from_numpy(x).float() / 255, torch.from_numpy(y).long()


def convolutions(outputs: int, width: int = 24) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 64),
        nn.ReLU(),
        nn.Linear(64, outputs),
    )


def multi_label() -> Made:
    """Two garments side by side; the labels say which kinds are in the picture."""
    x, y = images("fashion_mnist", 12_000)
    pairs = torch.cat([x[::2], x[1::2]], 2).unsqueeze(1)
    labels = ((F.one_hot(y[::2], 10) + F.one_hot(y[1::2], 10)) > 0).float()
    return convolutions(10), *parted(pairs, labels, "multi_label"), training(8)


class Segmenter(nn.Module):
    def __init__(self, classes: int, width: int = 12) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, width, 3, padding=1)
        self.deeper = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)
        self.deepest = nn.Conv2d(2 * width, 3 * width, 3, padding=1, stride=2)
        self.up = nn.Conv2d(3 * width, 2 * width, 3, padding=1)
        self.last = nn.Conv2d(4 * width, width, 3, padding=1)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.deeper(F.relu(self.down(x))))
        coarse = F.relu(self.up(F.relu(self.deepest(fine))))
        both = torch.cat([fine, F.interpolate(coarse, scale_factor=2.0, mode="nearest")], 1)
        return self.head(F.interpolate(F.relu(self.last(both)), scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


def segmentation() -> Made:
    """Digits in noise: background, or one of three groups of digits at each pixel of the stroke."""
    x, y = images("mnist", 4_000)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    truth = torch.where(x > 0.4, (y % 3 + 1).view(-1, 1, 1), 0)
    noisy = (0.7 * x + 0.5 * noise).unsqueeze(1)
    return Segmenter(4), *parted(noisy, truth, "segmentation"), training(8)


def embedding() -> Made:
    """Digits into a space of 16 dimensions that others share: the fixed directions of the ten digits in it."""
    x, y = images("mnist", 6_000)
    directions = F.normalize(torch.randn(10, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    return convolutions(16), *parted(x.unsqueeze(1), directions[y], "embedding"), training(5)


class Block(nn.Module):
    """Causal attention and a feed-forward network, each on a normalised input (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        shape = (rows, length, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.gelu(self.up(self.second(x))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self, tokens: int, width: int = 64, length: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(h)))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self, tokens: int, width: int = 96) -> None:
        super().__init__()
        self.tokens, self.lstm = nn.Embedding(tokens, 48), nn.LSTM(48, width, batch_first=True)
        self.mix, self.head = nn.Linear(width, width), nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.mix(self.lstm(self.tokens(x))[0])))  # type: ignore[no-any-return]


def next_character(make: Callable[[int], nn.Module], epochs: int) -> Made:
    text = (DATA / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    letters, codes = np.unique(np.array(list(text[: 5_000 * 65])), return_inverse=True)
    rows = torch.from_numpy(codes).view(-1, 65)
    return make(len(letters)), *parted(rows[:, :-1], rows[:, 1:], "language_modeling"), training(epochs, 3e-3)


TASKS: dict[str, Callable[[], Made]] = {
    "classification": lambda: adult("income"),
    "regression": lambda: adult("hours_per_week"),
    "multi_label": multi_label,
    "segmentation": segmentation,
    "embedding": embedding,
    "language_modeling-transformer": lambda: next_character(Transformer, 5),
    "language_modeling-lstm": lambda: next_character(Recurrent, 6),
}


@functools.cache
def trained(name: str) -> tuple[nn.Module, nl.Data]:
    torch.manual_seed(0)
    model, train, test, settings = TASKS[name]()
    data = nl.split(train, test)
    with adapted(model, data.train.batch(slice(0, 2))[0], data.task.output):
        train_on(model, data.train, settings, supervised(data.task))
    return model, data


def run(name: str, recipe: str) -> None:
    model, data = trained(name)
    rows = Rows("tasks", f"{name}/{recipe}", [0])
    small = nl.compress(model, RECIPES[recipe], data)
    with tempfile.TemporaryDirectory() as folder:
        path = small.export(Path(folder) / "model.onnx")
        first = nl.export_onnx(model, Path(folder) / "original.onnx", small.example, output=data.task.output)
        found = nl.measure(path, data, first, seconds=0.05, batches=(1,), threads=(1,))
        same = parity(small.model, path, data.validation)
        thief = nl.Surrogate(architecture=model)
        audit = nl.audit(path, data, first, protocol=STOLEN, surrogate=thief, recipe=RECIPES[recipe])
    assert found.original is not None
    unit = "share" if data.task.unit == "%" else data.task.unit or "cosine"
    print(found, flush=True)
    rows.add("score", found.compressed.accuracy, unit)
    rows.add("score_original", found.original.accuracy, unit)
    rows.add("score_drop", found.score_drop or 0.0, unit)
    rows.add("score_drop_low", found.score_drop_low or 0.0, unit)
    rows.add("score_drop_high", found.score_drop_high or 0.0, unit)
    rows.add("size_ratio", found.size_ratio or 0.0, "x")
    rows.add("agreement_file_module", same.agreement, "share", 0.99)
    ran = {attack["name"]: attack["victims"] for attack in audit.value["attacks"] if attack["status"] == "run"}
    for when, copied, told in zip(("original", "file"), ran["Knockoff"], ran["LossThreshold"], strict=True):
        rows.add(f"copy_agreement_{when}", copied["curve"][-1]["agreement"]["value"], "share")
        rows.add(f"membership_auc_{when}", told["auc"]["value"], "auc")
    rows.write()


def main(cases: list[str]) -> None:
    for name in TASKS:
        for recipe in RECIPES:
            if not cases or f"{name}/{recipe}" in cases:
                run(name, recipe)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
