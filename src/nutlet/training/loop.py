"""The training loop: fine-tuning, distillation and quantization-aware training all run through :func:`fit`.

It runs on Hugging Face Accelerate, in one process, on the GPU where there is one. An epoch's randomness
comes from the seed and its number alone: a run that was killed goes on from its last epoch and ends the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from nutlet.constraints.stack import expand_range
from nutlet.data.examples import Augment, Examples
from nutlet.errors import ConfigError, DataError, ModelError, StorageError
from nutlet.graph.training_path import training_path
from nutlet.progress import Progress
from nutlet.storage import write_atomic
from nutlet.tasks import CLASSIFICATION, Task, metric_text
from nutlet.tasks.inputs import Inputs
from nutlet.tasks.outputs import OutputKind, to_logits
from nutlet.tasks.predict import evaluate, let_go
from nutlet.tasks.targets import has_target
from nutlet.training.context import Context

__all__ = [
    "CHECKPOINT",
    "CHECKPOINTS",
    "BeforeStep",
    "LossTerm",
    "Training",
    "check_labelled",
    "cross_entropy",
    "fit",
    "supervised",
    "train_on",
]

CHECKPOINT = "training.pt"
"""Name of the checkpoint in a step's folder."""
CHECKPOINTS = "training*.pt"
"""Pattern of all checkpoints in a step's folder, those of methods that train several times included."""

LossTerm = Callable[[Any, Tensor, Tensor], Tensor]
"""``(inputs, outputs, labels) -> scalar``, the mean over the batch."""

BeforeStep = Callable[[int, int], object]
"""``(step, steps)``: what runs before each optimisation step, from 0 to ``steps - 1``, with the gradients in place.

It may change values and buffers. To go on from a checkpoint as if nothing had happened, it keeps what it must remember
in buffers of the model, and goes by the number of the step alone otherwise.
"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how a model is trained; part of every method that trains.

    Args:
        epochs: passes over the training data.
        lr: peak learning rate.
        batch_size: examples per step; what is left over after the last whole batch of an epoch waits for the next.
        optimizer: ``sgd`` (Nesterov momentum 0.9) or ``adamw``.
        schedule: ``one-cycle`` (linear up over the first 20 %, then to zero along a cosine) or ``cosine``.
        weight_decay: decoupled for AdamW, L2 for SGD; not applied to biases and norms.
        patience: stop after this many epochs without a better validation accuracy, and keep the best; none keeps the
            last epoch.
        precision: ``bf16`` or ``fp32``; ``auto`` takes bf16 where the processor computes in it.

    Raises:
        ConfigError: a value out of range.
    """

    epochs: int = 5
    lr: float = 0.02
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    weight_decay: float = 5e-4
    patience: int | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def check(self, owner: str) -> None:
        """Raise ConfigError, in the name of the method ``owner``, for a value out of range."""
        for option, least in (("epochs", 1), ("batch_size", 2)):
            if getattr(self, option) < least:
                raise ConfigError(f"{owner}.{option} is {getattr(self, option)}; expected {least} or more")
        if not 0 < self.lr < 100:
            raise ConfigError(f"{owner}.lr is {self.lr}; expected a learning rate above 0 and below 100")
        if not 0 <= self.weight_decay < 1:
            raise ConfigError(f"{owner}.weight_decay is {self.weight_decay}; expected 0 up to but not including 1")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"{owner}.patience is {self.patience}; expected 1 or more epochs")


def fit(
    model: nn.Module,
    context: Context,
    settings: Training,
    loss: LossTerm,
    *,
    along: nn.Module | None = None,
    title: str = "training",
    before_step: BeforeStep | None = None,
    checkpoint: str = CHECKPOINT,
) -> list[str]:
    """Train ``model`` as a method does: on the training split, watched on the validation split; see :func:`train_on`.

    Checkpoints go to ``context.workdir``, under the name ``checkpoint``: one that fits ``CHECKPOINTS``. The last one
    stays until the caller has kept the result.
    """
    return train_on(
        model,
        context.data.train,
        settings,
        loss,
        validation=context.data.validation,
        augment=context.data.augment,
        along=along,
        seed=context.seed,
        checkpoint=context.workdir / checkpoint if context.workdir else None,
        progress=context.progress,
        title=title,
        before_step=before_step,
        outputs=context.outputs,
    )


def train_on(
    model: nn.Module,
    examples: Examples,
    settings: Training,
    loss: LossTerm,
    *,
    validation: Examples | None = None,
    augment: Augment | None = None,
    along: nn.Module | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    title: str = "training",
    before_step: BeforeStep | None = None,
    outputs: OutputKind = "logits",
) -> list[str]:
    """Train ``model`` in place and return notes for the history.

    Args:
        model: changed in place; in evaluation mode afterwards.
        examples: what it is trained on.
        settings: how long and how.
        loss: sees inputs, outputs as logits, and labels of a batch. Where targets are no class indices, let the labels
            be the numbers of the examples and look the targets up.
        validation: told after each epoch; what ``settings.patience`` goes by.
        augment: applied to each batch.
        along: what the loss uses and is trained with the model, as a projection of its features is.
        seed: the only source of randomness.
        checkpoint: written after each epoch; a run found there is continued.
        progress: shows a bar.
        title: stands beside it.
        before_step: called before each optimisation step, see :data:`BeforeStep`.
        outputs: what the model's outputs hold; the loss sees logits.

    Raises:
        ModelError: the loss became NaN or infinite, or the model does not run in training mode.
        ConfigError: ``settings.patience`` without validation examples.
        StorageError: the checkpoint is of another training, or cannot be written. One that is damaged is made anew.
    """
    from accelerate import Accelerator

    if settings.patience and validation is None:
        raise ConfigError(f"patience is {settings.patience} without validation examples; expected some to go by")
    progress = progress or Progress(quiet=True)
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and _computes_in_bf16())
    # Accelerate's own mixed precision is one setting for the whole process, and stays in the model's forward.
    accelerator = Accelerator(mixed_precision="no")
    path = training_path(model, examples.batch(slice(0, 2))[0])
    batches = _Batches(examples, augment, seed, settings.batch_size, channels_last=path.channels_last)
    loader = DataLoader(batches, batch_sampler=batches.sampler, collate_fn=_as_is)
    if path.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    along = (along or nn.Module()).to(accelerator.device)
    optimizer = _optimizer(nn.ModuleList([model, along]), settings)
    steps = settings.epochs * len(batches.sampler)
    prepared, shared, loader = accelerator.prepare(model, optimizer, loader)
    if accelerator.num_processes > 1:  # alone, it would only look for packages on disk at each step
        optimizer = shared
    saved = _Checkpoint(checkpoint, model, along, optimizer)
    start, best = saved.resume()
    notes = [*path.notes]
    if start:
        notes.append(f"continued after epoch {start}, where an earlier run was stopped")
        progress.say(f"{title}: going on after epoch {start} of {settings.epochs}")
    trained, metric = start, ""
    with progress.task(title, total=steps) as task:
        task.advance(start * len(batches.sampler))
        for epoch in range(start, settings.epochs):
            # Asked before an epoch and not after one: a run killed in between stops at the same place.
            if settings.patience and epoch - 1 - best.epoch >= settings.patience:
                notes.append(f"stopped after epoch {epoch}, no better for {settings.patience}")
                break
            batches.begin(epoch)
            path.enter(prepared)
            average = 0.0
            for k, (x, y) in enumerate(loader):
                rate = _rate(settings, (epoch * len(batches.sampler) + k) / steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=bf16):
                    value = loss(x, to_logits(path.outputs(prepared(x)).float(), outputs), y)
                if not math.isfinite(value.item()):
                    raise ModelError(
                        f"{title}: the loss became {value.item()} in epoch {epoch + 1}; expected a finite number. "
                        "Lower `lr`, or look for extreme inputs"
                    )
                optimizer.zero_grad()
                accelerator.backward(value)
                if before_step is not None:
                    before_step(epoch * len(batches.sampler) + k, steps)
                optimizer.step()
                average += (value.item() - average) / (k + 1)
                task.advance(note=f"epoch {epoch + 1}/{settings.epochs} loss {average:.3f}{metric}")
            expand_range(model)
            if validation is not None:
                accuracy = evaluate(model, validation)
                metric = f" {validation.task.metric} {metric_text(validation.task, accuracy)}"
                task.advance(0, note=f"epoch {epoch + 1}/{settings.epochs} loss {average:.3f}{metric}")
                if best.state is None or accuracy > best.accuracy:
                    best = _Best(accuracy, epoch, copy.deepcopy(model.state_dict()) if settings.patience else {})
            trained = epoch + 1
            saved.save(trained, best)
    if settings.patience:
        model.load_state_dict(best.state)
        notes.append(f"kept epoch {best.epoch + 1} of {trained}, the best on validation")
    for parameter in model.parameters():
        parameter.grad = None
    # Sums round differently in another memory format: the model must not differ from the one that is saved and loaded.
    model.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    let_go(model.eval())
    return notes


def supervised(task: Task) -> LossTerm:
    """Return the loss of a task on its targets, which raises DataError where an example has none."""

    def loss(x: Inputs, outputs: Tensor, y: Tensor) -> Tensor:
        check_labelled(y, "training", "expected a label for each, or Distill(kd_weight=1.0), which needs none")
        return task.loss(outputs, y)

    return loss


cross_entropy = supervised(CLASSIFICATION)
"""The usual loss on class indices."""


def check_labelled(y: Tensor, who: str, remedy: str) -> None:
    """Raise DataError where one of the targets is that of an example without one."""
    if not bool((given := has_target(y)).all()):
        raise DataError(f"{who} needs labels, and {int((~given).sum())} of {len(y)} examples have none; {remedy}")


class _Batches(Dataset[tuple[Inputs, Tensor]]):
    """Serves whole batches, cut and augmented at once: far cheaper than one example at a time."""

    def __init__(
        self, examples: Examples, augment: Augment | None, seed: int, size: int, *, channels_last: bool = False
    ) -> None:
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.examples = examples
        self.augment = augment
        self.seed = seed
        self.generator = torch.Generator()
        # A last batch of one example would break batch norm.
        self.sampler = BatchSampler(_Shuffled(self), size, drop_last=len(examples) >= size)

    def begin(self, epoch: int) -> None:
        """Set all randomness of an epoch from the seed and its number."""
        seed = self.seed * 100_003 + epoch
        self.generator.manual_seed(seed)
        # torch.manual_seed writes a stack trace for each kind of device that is not there: much, for a short epoch.
        everywhere = torch if torch.accelerator.is_available() else torch.default_generator
        everywhere.manual_seed(seed)

    def __getitems__(self, indices: list[int]) -> tuple[Inputs, Tensor]:
        x, y = self.examples.batch(indices)
        if self.augment is not None:
            x = self.augment(x, self.generator)
        return x.contiguous(memory_format=self.layout), y

    def __len__(self) -> int:
        return len(self.examples)


def _as_is(batch: Any) -> Any:
    return batch


class _Shuffled(Sampler[int]):
    def __init__(self, batches: _Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(len(self.batches), generator=self.batches.generator).tolist())

    def __len__(self) -> int:
        return len(self.batches)


@dataclass
class _Best:
    accuracy: float = 0.0
    epoch: int = -1
    state: Any = None


@dataclass
class _Checkpoint:
    """The state after the last whole epoch, on disk; tensors and plain values only, read without unpickling code."""

    path: Path | None
    model: nn.Module
    along: nn.Module
    optimizer: Any

    def resume(self) -> tuple[int, _Best]:
        if self.path is None or not self.path.exists():
            return 0, _Best()
        try:
            saved = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception:  # a damaged file may raise anything; it is written anew after the first epoch
            return 0, _Best()
        try:
            self.model.load_state_dict(saved["model"])
            self.along.load_state_dict(saved["along"])
            self.optimizer.load_state_dict(saved["optimizer"])
            return saved["epoch"], _Best(**saved["best"])
        except Exception as error:  # whatever does not fit
            raise StorageError(
                f"{self.path} is no checkpoint of this training ({type(error).__name__}); expected what an interrupted "
                "run left there: delete it, and the training starts anew"
            ) from error

    def save(self, epoch: int, best: _Best) -> None:
        if self.path is None:
            return
        state = {
            "epoch": epoch,
            "model": self.model.state_dict(),
            "along": self.along.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": {"accuracy": best.accuracy, "epoch": best.epoch, "state": best.state},
        }

        def write(aside: Path) -> None:
            # Into an open file: given a path, torch hides what the system said about a full disk.
            with aside.open("wb") as file:
                torch.save(state, file)

        write_atomic(self.path, write)


def _optimizer(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True)


def _rate(settings: Training, progress: float) -> float:
    """Learning rate after ``progress`` (0 to 1) of all steps; one-cycle as in Smith 2018, arXiv:1803.09820."""
    warm = 0.2 if settings.schedule == "one-cycle" else 0.0
    if progress < warm:
        return settings.lr * (0.04 + 0.96 * progress / warm)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


def _computes_in_bf16() -> bool:
    """Whether the device has bf16 arithmetic; without it bf16 is emulated, and many times slower."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
