"""The thief's own model: what he trains on the answers he got, from nothing or from a start he has."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.data.examples import Augment, Examples
from nutlet.errors import ConfigError, DataError
from nutlet.graph.reinit import reinit_modules
from nutlet.options import LearningRate, Positive, Range, Validated
from nutlet.progress import Progress
from nutlet.training.loop import Training, train_on

__all__ = ["Surrogate", "architecture_for", "fresh", "soft_cross_entropy"]

Size = Literal["smaller", "unknown", "larger"]
_WIDTHS = {"smaller": 0.5, "unknown": 1.0, "larger": 2.0}


@dataclass(frozen=True, eq=False, kw_only=True)
class Surrogate(Validated):
    """Who copies the victim: his architecture, where it starts, and how long he trains.

    The recipe is the one that won most agreement in our trials: AdamW, one-cycle, soft targets.

    Args:
        architecture: a module ``(B, ...) -> (B, classes)``; it is copied, never trained itself.
        start: ``scratch`` draws new weights from the seed, ``given`` begins with those of ``architecture``.
        augment: applied to each batch of queries; answers stay those of the plain inputs.
        effort: scales the number of training steps, see :meth:`steps`.
        batch_size: answers per step.
        lr: peak learning rate.
        temperature: answers and outputs are compared at: ``CE(softmax(outputs / T), answers^(1 / T) normalised)``, so
            that the small probabilities teach too (Hinton et al. 2015). One-hot answers stay as they are.

    Raises:
        ConfigError: a value out of range.
    """

    architecture: nn.Module
    start: Literal["scratch", "given"] = "scratch"
    augment: Augment | None = None
    effort: Annotated[float, Range(0, left_open=True, noun="a finite number", note="1 is a full audit")] = 1.0
    batch_size: Annotated[int, Range(2)] = 64
    lr: LearningRate = 3e-3
    temperature: Positive = 1.0

    def steps(self, examples: int) -> int:
        """Return how many training steps so many answers are worth: more answers, more steps, as their root.

        >>> thief = Surrogate(architecture=nn.Linear(2, 2))
        >>> [thief.steps(n) for n in (250, 1_000, 4_000, 10_000)]
        [979, 1359, 2118, 3000]
        """
        return max(1, round(self.effort * (600 + 24 * math.sqrt(examples))))

    def train(
        self,
        examples: Examples,
        answers: Tensor,
        *,
        seed: int,
        steps: int | None = None,
        start: nn.Module | None = None,
        weights: Tensor | None = None,
        progress: Progress | None = None,
    ) -> nn.Module:
        """Return a clone trained on what the victim answered.

        Args:
            examples: the queries; their labels are not looked at.
            answers: ``(N, classes)``, one row per query: probabilities, or ones and zeros.
            seed: the only source of randomness.
            steps: training steps; :meth:`steps` by default.
            start: go on from this clone instead; it is copied.
            weights: of each example in the loss, ``(N,)``.
            progress: shows a bar.

        Raises:
            DataError: not one row of answers per example.
        """
        if answers.ndim != 2 or len(answers) != len(examples):
            raise DataError(
                f"found answers of shape {tuple(answers.shape)} to {len(examples)} queries; expected (N, C)"
            )
        model = copy.deepcopy(start) if start is not None else self.model(seed)
        steps = steps or self.steps(len(examples))
        size = min(self.batch_size, max(2, len(examples)))
        per_epoch = max(1, len(examples) // size)
        settings = Training(
            epochs=math.ceil(steps / per_epoch), lr=self.lr, batch_size=size, optimizer="adamw", weight_decay=0.01
        )
        # Labels are the numbers of the examples: the loss looks the answers up.
        numbered = replace(examples, y=torch.arange(len(examples)))
        softened = answers ** (1 / self.temperature)
        softened = softened / softened.sum(1, keepdim=True)

        def loss(x: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
            wanted = softened.to(outputs.device)[y]
            shares = None if weights is None else weights.to(outputs.device)[y]
            return soft_cross_entropy(outputs / self.temperature, wanted, shares)

        train_on(
            model,
            numbered,
            settings,
            loss,
            augment=self.augment,
            seed=seed,
            progress=progress,
            title="training a clone",
        )
        return model

    def model(self, seed: int) -> nn.Module:
        """Return the model before training: new weights from the seed, or those he starts with."""
        return copy.deepcopy(self.architecture) if self.start == "given" else fresh(self.architecture, seed)


def soft_cross_entropy(outputs: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean of ``-sum_c wanted_c log softmax(outputs)_c``, in nats.

    Args:
        outputs: logits ``(B, C)``.
        wanted: targets ``(B, C)``.
        weights: of each row, ``(B,)``.
    """
    each = -(wanted * F.log_softmax(outputs, 1)).sum(1)
    return each.mean() if weights is None else (each * weights).sum() / weights.sum().clamp_min(1e-12)


def fresh(architecture: nn.Module, seed: int) -> nn.Module:
    """Return a copy with new weights drawn from ``seed``, by each module's own reset.

    >>> a, b = fresh(nn.Linear(3, 2), 1), fresh(nn.Linear(3, 2), 1)
    >>> torch.equal(a.weight, b.weight)
    True
    """
    model = copy.deepcopy(architecture)
    reinit_modules(model, seed)
    return model.requires_grad_(True).train()


def architecture_for(shape: tuple[int, ...], classes: int, size: Size = "unknown") -> nn.Module:
    """Return the architecture of a thief who does not know the victim's.

    Images get a convnet with batch norm that halves their side by strides down to 4 pixels or a little more (at most
    four times); anything else a network of two hidden layers.

    Args:
        shape: of one input, ``(C, H, W)`` or ``(F,)``.
        classes: number of outputs.
        size: ``smaller`` and ``larger`` have half and twice the width of ``unknown``.

    Raises:
        ConfigError: an unknown size.
    """
    if size not in _WIDTHS:
        raise ConfigError(f"the thief's size is {size!r}; expected one of {', '.join(_WIDTHS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if len(shape) == 3:
            return _convnet(shape, classes, _WIDTHS[size])
        features, hidden = math.prod(shape), int(256 * _WIDTHS[size])
        return nn.Sequential(
            nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, classes),
        )  # fmt: skip


def _convnet(shape: tuple[int, ...], classes: int, width: float) -> nn.Module:
    side, channels = min(shape[1:]), shape[0]
    stages = max(1, min(4, int(math.log2(max(side, 8) / 4))))
    layers: list[nn.Module] = []
    for stage in range(stages + 1):
        out = int(width * min(16 * 2**stage, 64))
        # Strides and not pools: half the time for nearly the accuracy, and a thief trains many times.
        stride = 2 if stage < stages else 1
        layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    height, wide = (-(-edge // 2**stages) for edge in shape[1:])
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * wide, classes))
