"""The thief's own model: what he trains on the answers he got, from nothing or from a start he has."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.data.examples import Augment, Examples
from nutlet.errors import ConfigError, DataError
from nutlet.graph.reinit import reinit_modules
from nutlet.options import LearningRate, Positive, Range, Validated
from nutlet.progress import Progress
from nutlet.tasks import Task, is_classifier
from nutlet.tasks.forward import adapt
from nutlet.training.loop import LossTerm, Training, check_labelled, supervised, train_on

__all__ = ["Surrogate", "architecture_for", "fresh", "likeness_loss", "soft_cross_entropy"]

Size = Literal["smaller", "unknown", "larger"]
_WIDTHS = {"smaller": 0.5, "unknown": 1.0, "larger": 2.0}


@dataclass(frozen=True, eq=False, kw_only=True)
class Surrogate(Validated):
    """Who copies the victim: his architecture, where it starts, and how long he trains.

    The recipe is the one that won most agreement in our trials: AdamW, one-cycle, soft targets.

    Args:
        architecture: a module with the victim's inputs and outputs; it is copied, never trained itself.
        start: ``scratch`` draws new weights from the seed, ``given`` begins with those of ``architecture``.
        augment: applied to each batch of queries; answers stay those of the plain inputs.
        effort: scales the number of training steps, see :meth:`steps`.
        batch_size: answers per step.
        lr: peak learning rate.
        temperature: answers and outputs are compared at: ``CE(softmax(outputs / T), answers^(1 / T) normalised)``, so
            that the small probabilities teach too (Hinton et al. 2015). One-hot answers stay as they are. Where no
            answer is a probability it does not matter.

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
        task: Task | None = None,
        seed: int,
        steps: int | None = None,
        start: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> nn.Module:
        """Return a clone trained on what the victim answered.

        Args:
            examples: the queries; their targets are not looked at.
            answers: one row per query, as :func:`nutlet.attacks.extraction.queries.ask` returns them: of a classifier
                probabilities, or ones and zeros, ``(N, classes)``; of other tasks outputs.
            task: what the answers mean, where it is not what the examples are for.
            seed: the only source of randomness.
            steps: training steps; :meth:`steps` by default.
            start: go on from this clone instead; it is copied.
            progress: shows a bar.

        Raises:
            DataError: not one row of answers per example.
        """
        task = task or examples.task
        if len(answers) != len(examples) or (is_classifier(task) and answers.ndim != 2):
            raise DataError(
                f"found answers of shape {tuple(answers.shape)} to {len(examples)} queries; expected (N, C)"
            )

        def loss(x: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
            return likeness_loss(task, outputs, answers.to(outputs.device)[y], self.temperature)

        # Targets are the numbers of the examples: the loss looks the answers up.
        numbered = examples.with_targets(torch.arange(len(examples)))
        return self._fitted(numbered, loss, seed, steps, start, progress)

    def train_on_targets(
        self,
        examples: Examples,
        classes: int,
        *,
        task: Task | None = None,
        seed: int,
        steps: int | None = None,
        progress: Progress | None = None,
    ) -> nn.Module:
        """Return a model trained on targets of the thief's own, without an answer of the victim.

        Args:
            examples: with their targets.
            classes: outputs of a classifier, which may be more than the labels that were seen.
            task: what the targets mean, where it is not what the examples are for.
            seed: the only source of randomness.
            steps: training steps; :meth:`steps` by default.
            progress: shows a bar.

        Raises:
            DataError: an example has no target.
        """
        task = task or examples.task
        if not is_classifier(task):
            return self._fitted(examples, supervised(task), seed, steps, None, progress)
        check_labelled(examples.y, "a thief without the victim", "expected a label for each")
        answers = F.one_hot(examples.y, classes).float()
        return self.train(examples, answers, task=task, seed=seed, steps=steps, progress=progress)

    def _fitted(
        self,
        examples: Examples,
        loss: LossTerm,
        seed: int,
        steps: int | None,
        start: nn.Module | None,
        progress: Progress | None,
    ) -> nn.Module:
        model = copy.deepcopy(start) if start is not None else self.model(seed)
        adapt(model, examples.batch(slice(0, 1))[0], examples.task.output)
        steps = steps or self.steps(len(examples))
        size = min(self.batch_size, max(2, len(examples)))
        per_epoch = max(1, len(examples) // size)
        settings = Training(
            epochs=math.ceil(steps / per_epoch), lr=self.lr, batch_size=size, optimizer="adamw", weight_decay=0.01
        )
        train_on(
            model, examples, settings, loss,
            augment=self.augment, seed=seed, progress=progress, title="training a clone",
        )  # fmt: skip
        return model

    def model(self, seed: int) -> nn.Module:
        """Return the model before training: new weights from the seed, or those he starts with."""
        return copy.deepcopy(self.architecture) if self.start == "given" else fresh(self.architecture, seed)


def likeness_loss(task: Task, outputs: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """Return how far outputs are from what the victim answered, the mean over the batch.

    Args:
        task: what they mean.
        outputs: of a clone.
        answers: as :meth:`Surrogate.train` takes them.
        temperature: see :class:`Surrogate`.
    """
    if is_classifier(task):
        softened = answers ** (1 / temperature)
        return soft_cross_entropy(outputs / temperature, softened / softened.sum(1, keepdim=True))
    soft = temperature if "probabilities" in task.disclosures else 1.0
    return task.divergence(outputs / soft, answers / soft)


def soft_cross_entropy(outputs: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean of ``-sum_c wanted_c log softmax(outputs)_c``, in nats.

    Args:
        outputs: logits ``(B, C)``.
        wanted: targets ``(B, C)``.
    """
    return -(wanted * F.log_softmax(outputs, 1)).sum(1).mean()


def fresh(architecture: nn.Module, seed: int) -> nn.Module:
    """Return a copy with new weights drawn from ``seed``, by each module's own reset.

    >>> a, b = fresh(nn.Linear(3, 2), 1), fresh(nn.Linear(3, 2), 1)
    >>> torch.equal(a.weight, b.weight)
    True
    """
    model = copy.deepcopy(architecture)
    reinit_modules(model, seed)
    return model.requires_grad_(True).train()


def architecture_for(
    shape: tuple[int, ...], outputs: int | tuple[int, ...], size: Size = "unknown", *, tokens: int = 0
) -> nn.Module:
    """Return the architecture of a thief who does not know the victim's.

    Images get a convnet with batch norm that halves their side by strides down to 4 pixels or a little more (at most
    four times), or for one answer per pixel one that keeps the side; tokens an embedding and a GRU, which sees only
    what came before; anything else a network of two hidden layers.

    Args:
        shape: of one input, ``(C, H, W)``, ``(F,)``, or ``(T,)`` of tokens.
        outputs: numbers in one answer, or its shape: ``(C, H, W)`` for one answer per pixel, ``(T, V)`` per token.
        size: ``smaller`` and ``larger`` have half and twice the width of ``unknown``.
        tokens: how many different ones the inputs hold; 0 where they are no tokens.

    Raises:
        ConfigError: an unknown size, or inputs and outputs of other shapes.
    """
    if size not in _WIDTHS:
        raise ConfigError(f"the thief's size is {size!r}; expected one of {', '.join(_WIDTHS)}")
    answer, width = (outputs,) if isinstance(outputs, int) else tuple(outputs), _WIDTHS[size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if tokens and len(shape) == 1 and (len(answer) == 1 or answer[:-1] == shape):
            return _TokenNet(tokens, int(64 * width), answer[-1], at_each=len(answer) == 2)
        if not tokens and len(shape) == 3 and answer[1:] == shape[1:]:
            return _pixelnet(shape[0], answer[0], int(32 * width))
        if not tokens and len(shape) == 3 and len(answer) == 1:
            return _convnet(shape, answer[0], width)
        if not tokens and len(answer) == 1:
            features, hidden = math.prod(shape), int(256 * width)
            return nn.Sequential(
                nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                nn.Linear(hidden, answer[0]),
            )  # fmt: skip
    raise ConfigError(
        f"there is no architecture of ours for {'tokens' if tokens else 'inputs'} of shape {shape} and answers of "
        f"shape {answer}; expected images, tokens or rows: give the thief one, surrogate=Surrogate(architecture=...)"
    )


class _TokenNet(nn.Module):
    """Tokens ``(B, T)`` to outputs ``(B, T, V)`` at each place, or to ``(B, V)`` after the last."""

    def __init__(self, tokens: int, width: int, outputs: int, *, at_each: bool) -> None:
        super().__init__()
        self.at_each = at_each
        self.embed = nn.Embedding(tokens, width)
        self.body = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        states, _ = self.body(self.embed(x))
        outputs: Tensor = self.head(states if self.at_each else states[:, -1])
        return outputs


def _pixelnet(channels: int, classes: int, width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for dilation in (1, 2, 4, 1):  # 17 pixels seen around each
        layers += [nn.Conv2d(channels, width, 3, 1, dilation, dilation, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(width, classes, 1))


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
