"""A tiny trained net and its data for each task, with the shapes that the task is about."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nutlet as nl
from nutlet.data.examples import Data, Examples
from nutlet.tasks import Task, as_task
from nutlet.tasks.forward import adapted
from nutlet.training.loop import Training, supervised, train_on

N, TEST = 192, 96


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if mask is not None:
            causal = causal & mask.bool().unsqueeze(1)
        weights = scores.masked_fill(~causal, -1e4).softmax(-1)
        return self.out(weights @ v)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A causal transformer with several inputs and several outputs."""

    def __init__(self, tokens: int = 12, width: int = 16, length: int = 8) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.norm, self.attention = nn.LayerNorm(width), Attention(width)
        self.up, self.down = nn.Linear(width, 32), nn.Linear(32, width)
        self.head = nn.Linear(width, tokens)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.tokens(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        x = x + self.attention(self.norm(x), attention_mask)
        x = x + self.down(F.relu(self.up(x)))
        return {"hidden": x, "logits": self.head(x)}


class Recurrent(nn.Module):
    def __init__(self, tokens: int = 12, width: int = 16) -> None:
        super().__init__()
        self.tokens, self.lstm = nn.Embedding(tokens, width), nn.LSTM(width, 24, batch_first=True)
        self.mix, self.head = nn.Linear(24, 24), nn.Linear(24, tokens)

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        return (self.head(F.relu(self.mix(self.lstm(self.tokens(ids))[0]))),)


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1, stride=2)
        self.third, self.head = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        x = F.interpolate(F.relu(self.third(x)), scale_factor=2.0, mode="nearest")
        return self.head(x)  # type: ignore[no-any-return]


class TwoInputs(nn.Module):
    """Numbers beside a category, as tables have them."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.first = nn.Embedding(4, 6), nn.Linear(12, 24)
        self.second, self.last = nn.Linear(24, 16), nn.Linear(16, 1)

    def forward(self, numbers: Tensor, category: Tensor) -> Tensor:
        x = torch.cat([numbers, self.kind(category[:, 0])], 1)
        return self.last(F.relu(self.second(F.relu(self.first(x)))))  # type: ignore[no-any-return]


def dense(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, outputs))


def sequences() -> tuple[Tensor, Tensor]:
    """Return tokens that follow a rule, the next ones, and padding at the end of some."""
    start = torch.randint(0, 12, (N + TEST, 1), generator=torch.Generator().manual_seed(1))
    step = torch.randint(1, 4, (N + TEST, 1), generator=torch.Generator().manual_seed(2))
    tokens = (start + step * torch.arange(9)) % 12
    return tokens[:, :-1], tokens[:, 1:]


def _classification() -> tuple[nn.Module, Tensor, Tensor, Task]:
    x = random(N + TEST, 10)
    return dense(3), x, (x[:, 0] + 2 * x[:, 1] > 0).long() + (x[:, 2] > 0.5).long(), as_task("classification")


def _multi_label() -> tuple[nn.Module, Tensor, Tensor, Task]:
    x = random(N + TEST, 10)
    return dense(4), x, (x[:, :4] + x[:, 4:8] > 0).float(), as_task("multi_label")


def _regression() -> tuple[nn.Module, dict[str, Tensor], Tensor, Task]:
    numbers = random(N + TEST, 6)
    kind = torch.arange(N + TEST) % 4
    y = 20 + 5 * numbers[:, 0] - 3 * numbers[:, 1] * (kind - 1.5)
    return TwoInputs(), {"numbers": numbers, "category": kind.view(-1, 1)}, y, nl.Regression(scale=6.0, unit="hours")


def _embedding() -> tuple[nn.Module, Tensor, Tensor, Task]:
    x = random(N + TEST, 10)
    return dense(5), x, torch.tanh(x[:, :5] - x[:, 5:]), as_task("embedding")


def _segmentation() -> tuple[nn.Module, Tensor, Tensor, Task]:
    maps = F.avg_pool2d(random(N + TEST, 1, 12, 12), 5, 1, 2)
    y = (maps[:, 0] > 0.1).long() + (maps[:, 0] > -0.1).long()
    return Segmenter(), maps + 0.02 * random(N + TEST, 1, 12, 12, seed=3), y, as_task("segmentation")


def _transformer() -> tuple[nn.Module, dict[str, Tensor], Tensor, Task]:
    x, y = sequences()
    mask = torch.ones_like(x)
    mask[::4, 6:] = 0
    return (
        Transformer(),
        {"input_ids": x, "attention_mask": mask},
        y.masked_fill(mask == 0, -1),
        nl.LanguageModeling(output="logits"),
    )


def _recurrent() -> tuple[nn.Module, Tensor, Tensor, Task]:
    x, y = sequences()
    return Recurrent(), x, y, as_task("language_modeling")


NETS: dict[str, Callable[[], tuple[nn.Module, Tensor | dict[str, Tensor], Tensor, Task]]] = {
    "classification": _classification,
    "multi_label": _multi_label,
    "regression": _regression,
    "embedding": _embedding,
    "segmentation": _segmentation,
    "language_modeling": _transformer,
    "language_modeling-lstm": _recurrent,
}


@functools.cache
def trained(name: str) -> tuple[nn.Module, Data]:
    """Return the net of a task after a short training, and its data."""
    torch.manual_seed(0)
    model, x, y, task = NETS[name]()
    examples = Examples.from_arrays(x, y, task=task)
    data = nl.split(examples.subset(slice(0, N)), examples.subset(slice(N, None)), calibration=64, validation=0.25)
    settings = Training(epochs=40, lr=0.01, batch_size=48, optimizer="adamw")
    with adapted(model, data.train.batch(slice(0, 2))[0], task.output):
        train_on(model, data.train, settings, supervised(task))
    return model, data
