"""A tiny net of every task, with data on which it is overfitted a little: for audits that take seconds."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nutlet.data.examples import Data, Examples
from nutlet.tasks import (
    CLASSIFICATION,
    Embedding,
    LanguageModeling,
    MultiLabel,
    Regression,
    Segmentation,
    Task,
)
from nutlet.tasks.inputs import NamedInputs

TOKENS, LENGTH = 13, 8


class TinyLSTM(nn.Module):
    """Tokens ``(B, T)`` to logits of the next one, ``(B, T, 13)``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 12)
        self.body = nn.LSTM(12, 12, batch_first=True)
        self.head = nn.Linear(12, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.body(self.embed(x))
        return self.head(states)


class World(NamedTuple):
    """A trained net and the data it was trained on."""

    model: nn.Module
    data: Data


def rows(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, outputs))


def pixels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))


TASKS: dict[str, Task] = {
    "classification": CLASSIFICATION,
    "multi_label": MultiLabel(),
    "regression": Regression(scale=2.0, unit="h"),
    "embedding": Embedding(),
    "segmentation": Segmentation(),
    "language_modeling": LanguageModeling(),
}
"""Every task of ours, by its name."""


def drawn(name: str, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return inputs and targets: a fixed function of the inputs, and noise."""
    if name == "language_modeling":
        # Steps of one to four round a ring of tokens.
        steps = torch.randint(1, 5, (count, LENGTH + 1), generator=random)
        tokens = steps.cumsum(1) % TOKENS
        return tokens[:, :-1], tokens[:, 1:]
    if name == "segmentation":
        x = torch.randn(count, 3, 8, 8, generator=random)
        return x, x.argmax(1)
    x = torch.randn(count, 10, generator=random)
    rule = torch.randn(10, 4, generator=torch.Generator().manual_seed(7))
    y = x @ rule + 0.5 * torch.randn(count, 4, generator=random)
    return x, {
        "classification": y.argmax(1),
        "multi_label": (y > 0).float(),
        "regression": y[:, :2],
        "embedding": y,
    }[name]


@cache
def world(name: str) -> World:
    """Return the net of a task, trained for a fraction of a second."""
    task, random = TASKS[name], torch.Generator().manual_seed(0)

    def examples(count: int) -> Examples:
        return Examples(*drawn(name, count, random), task=task)

    train = examples(64)
    data = Data(train=train, validation=examples(32), calibration=train.subset(slice(0, 32)), test=examples(64))
    outputs = {"regression": 2}.get(name, 4)
    model = {"segmentation": pixels, "language_modeling": TinyLSTM}.get(name, lambda: rows(outputs))
    torch.manual_seed(0)
    return World(trained(model(), train, 60), data)


def trained(model: nn.Module, examples: Examples, steps: int) -> nn.Module:
    """Return ``model`` after so many steps on all examples at once."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    x, y = examples.batch(slice(None))
    for _ in range(steps):
        optimizer.zero_grad()
        examples.task.loss(model(x), y).backward()
        optimizer.step()
    return model.eval()


class TwoTowers(nn.Module):
    """Rows ``a`` and tokens ``b``, both by name, to several outputs, of which ``scores`` is the task's."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(10, 16)
        self.tokens = nn.Embedding(TOKENS, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        hidden = (self.rows(a) + self.tokens(b).mean(1)).relu()
        return {"hidden": hidden, "scores": self.head(hidden)}


@cache
def named_world() -> World:
    """Return a regression of two inputs by name; its model gives two outputs."""
    task, random = Regression(scale=2.0, output="scores"), torch.Generator().manual_seed(0)

    def examples(count: int) -> Examples:
        a, b = (drawn(name, count, random)[0] for name in ("regression", "language_modeling"))
        return Examples(NamedInputs({"a": a, "b": b}), a[:, :2] + b[:, :1] / TOKENS, task=task)

    train = examples(64)
    torch.manual_seed(0)
    data = Data(train=train, validation=examples(32), calibration=train.subset(slice(0, 32)), test=examples(64))
    return World(TwoTowers().eval(), data)


class TinyTransformer(nn.Module):
    """Tokens ``(B, 8)`` to logits of the next one, ``(B, 8, 13)``, each seeing what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 12)
        self.body = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(12, TOKENS)
        self.register_buffer("mask", torch.triu(torch.full((LENGTH, LENGTH), -torch.inf), 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x), src_mask=self.mask))
