"""When accuracy collapses: which step did it, in which layer, and what to do."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from nutlet.compression.compressed import Compressed
from nutlet.compression.gate import ready_copy
from nutlet.compression.order_rules import advise
from nutlet.compression.pipeline import compress
from nutlet.compression.teacher import Teacher
from nutlet.compression.won_back import StepAccuracy, accounts, recovery, trains
from nutlet.data.examples import Data, Examples
from nutlet.errors import ConfigError, first_line, nearest
from nutlet.graph.diff import SiteError, activation_errors, bare, changed_places, with_places
from nutlet.graph.trace import InstrumentedModel
from nutlet.measurement.results import ACCURACY, Metric
from nutlet.methods import method_from_dict
from nutlet.methods.base import Method
from nutlet.methods.sensitivity import sensitivities
from nutlet.progress import Progress
from nutlet.tables import Table, Tabled
from nutlet.tasks import Task
from nutlet.tasks.base import Scores
from nutlet.tasks.predict import answered, evaluate

__all__ = ["Diagnosis", "LayerLoss", "diagnose"]

BROKEN, BROKEN_LOSS = -1e6, 1e6
"""Score, where it is no share, and loss of outputs that are no numbers."""
WATCHED = 32
"""Examples on which results inside the model are compared; they are all held at once."""


@dataclass(frozen=True)
class LayerLoss:
    """What one layer's change costs alone, on the model before the step.

    Args:
        name: module path.
        accuracy: with this change alone, 0 to 1.
        loss: cross entropy in nats, likewise.
    """

    name: str
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Diagnosis(Tabled):
    """Which step lost accuracy, and where in the model.

    Args:
        step: number of the step that was looked into; 0 is the original.
        method: its name.
        accuracies: validation accuracy after every step, from the history, and what of each loss was won back.
        examples: validation examples that layers were measured on.
        before: accuracy on them before the step, without activation quantizers.
        loss: cross entropy before the step, likewise.
        after: accuracy on them after the step.
        unquantized: accuracy after the step without its activation quantizers; None where it has none.
        layers: what the change of each layer costs alone, the costliest first.
        sites: how far results inside the model have moved, along the depth.
        words: what it comes to, and what to do.
        notes: what could not be told, and what it cost to find out.
        metric: what the figures are, which are mean scores: of classes accuracies.
    """

    step: int
    method: str
    accuracies: tuple[StepAccuracy, ...]
    examples: int
    before: float
    loss: float
    after: float
    unquantized: float | None
    layers: tuple[LayerLoss, ...]
    sites: tuple[SiteError, ...]
    words: tuple[str, ...]
    notes: tuple[str, ...]
    metric: Metric = ACCURACY

    @property
    def activations_do_it(self) -> bool:
        """Whether half of what was lost, or more, comes back with activations in floating point."""
        return self.unquantized is not None and self.unquantized - self.after >= self._half

    @property
    def ruinous(self) -> tuple[LayerLoss, ...]:
        """The layers of which each alone costs half of what was lost, or more."""
        return tuple(layer for layer in self.layers if self.before - layer.accuracy >= self._half)

    @property
    def culprit(self) -> str:
        """The layer that does it, as the words say; empty where activations do, several layers do, or none alone."""
        return "" if self.activations_do_it or len(self.ruinous) != 1 else self.ruinous[0].name

    @property
    def _half(self) -> float:
        return max(self.before - self.after, 1e-9) / 2

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def table(self) -> Table:
        """Return the layers as a table, with the words below."""
        rows = tuple(
            (
                layer.name,
                self.metric.text(layer.accuracy, 2),
                self.metric.signed(layer.accuracy - self.before),
                f"{layer.loss:.3f}",
                f"{layer.loss - self.loss:+.3f}",
            )
            for layer in self.layers
        )
        columns = ("this layer's change alone", self.metric.name, "points", "loss", "change")
        before, after = self.metric.text(self.before, 2), self.metric.text(self.after, 2)
        title = f"Step {self.step}, {self.method}: {before} before, {after} after"
        return Table(title, columns, rows, (*self.words, *recovery(self.accuracies, self.metric), *self.notes))


def diagnose(
    compressed: Compressed | Path | str,
    original: nn.Module,
    data: Data,
    *,
    step: int | str | None = None,
    examples: int = 1000,
    teacher: Teacher | None = None,
    workdir: Path | str | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Find out which step of a chain lost accuracy, and which layer of the model did it.

    The history says which step. Then each layer's change is put alone onto the model before that step and measured:
    one pass over ``examples`` for each changed layer. Models in between are read from ``workdir``; what is not there
    is computed again from the recipe, the data and the seed, training included.

    Args:
        compressed: what :func:`nutlet.compress` returned, or the folder it was saved in.
        original: the model it started from.
        data: the data of that run.
        step: number or name of the step to look into; by default the one of whose loss most is left, after what later
            training won back.
        examples: validation examples to measure layers on, at most.
        teacher: that of the run, where it had one.
        workdir: that of the run.
        progress: shows a bar.

    Raises:
        ConfigError: there is no such step, no example to measure on, or ``original`` on the validation examples is not
            what the run began with.
        StorageError: the folder does not hold a compressed form of ``original``.
    """
    progress = progress or Progress(quiet=True)
    original, _ = ready_copy(original, data)
    if not isinstance(compressed, Compressed):
        compressed = Compressed.load(compressed, original)
    history = accounts(compressed.steps)
    number = _number(history, step)
    if examples < 1:
        raise ConfigError(f"examples is {examples}; expected 1 or more")
    notes: list[str] = []
    _check_same(compressed, original, data)
    with _models(compressed, original, data, number, teacher, workdir, progress, notes) as (before, after):
        measured = data.validation.subset(slice(0, examples))
        plain, changed = bare(before), bare(after)
        scores, loss = _measure(plain, measured)
        effects = sensitivities(
            dict(_changes(plain, changed, compressed, number, notes)),
            lambda model: _measure(model, measured),
            progress,
            "one layer's change at a time",
            lambda name, error: notes.append(_untold(name, error)),
        )
        layers = [LayerLoss(name, float(alone.mean()), cost) for name, (alone, cost) in effects.items()]
        sites: list[SiteError] = []
        try:
            sites = activation_errors(before, after, data.calibration.batch(slice(0, WATCHED))[0])
        except Exception as error:  # a forward of free Python may take another path after the step
            notes.append(_untold("results inside the model", error))
        final = _measure(after, measured)[0]
        quantized = isinstance(after, InstrumentedModel)
        unquantized = float(_measure(changed, measured)[0].mean()) if quantized else None
    layers.sort(key=lambda layer: (layer.accuracy, -layer.loss))
    notes.append(f"Measured with {len(layers) + 3} passes over {len(measured):,} validation examples.")
    found = Diagnosis(
        step=number,
        method=compressed.steps[number].name,
        accuracies=history,
        examples=len(measured),
        before=float(scores.mean()),
        loss=loss,
        after=float(final.mean()),
        unquantized=unquantized,
        layers=tuple(layers),
        sites=tuple(sites),
        words=(),
        notes=tuple(notes),
        metric=Metric.of(data.task),
    )
    counted = len(data.validation)
    chance = _chance(compressed.steps[number - 1].accuracy, counted, data.task, scores, final)
    return replace(found, words=tuple(_words(found, compressed, counted, chance)))


def _number(steps: tuple[StepAccuracy, ...], step: int | str | None) -> int:
    named = [k for k in range(1, len(steps)) if step is None or step in (k, steps[k].name)]
    if not named:
        names = [f"{k} {steps[k].name}" for k in range(1, len(steps))]
        hint = nearest(str(step), names) if names else "the chain has no step but the original"
        raise ConfigError(f"there is no step {step!r}; expected the number or the name of one: {hint}")
    # Where all came back, or nothing was lost, the step that moved down most, or up least.
    return max(named, key=lambda k: (steps[k].left, steps[k].lost, steps[k - 1].accuracy - steps[k].accuracy))


def _differ(found: float, then: float, data: Data) -> bool:
    """Whether two accuracies differ by more than another machine does, where sums round differently."""
    scale = 1.0 if data.task.unit == "%" else max(abs(then), 1e-12)
    return abs(found - then) > max(0.005, 1.5 / len(data.validation)) * scale


def _check_same(compressed: Compressed, original: nn.Module, data: Data) -> None:
    """Raise ConfigError where the original does not answer as that of the run did."""
    if not data.validation.labelled:
        return
    found, then = evaluate(original, data.validation), compressed.steps[0].accuracy
    if _differ(found, then, data):
        raise ConfigError(
            f"the original has {_named(found, data)} on these validation examples, the run began with "
            f"{_named(then, data)}; expected its model and weights, its data, and the same options of these (seed, "
            "validation, mean, std)"
        )


def _named(score: float, data: Data) -> str:
    metric = Metric.of(data.task)
    return f"{'an ' if metric.name[0] in 'aeiou' else 'a '}{metric.name} of {metric.text(score, 2)}"


@contextlib.contextmanager
def _models(
    compressed: Compressed,
    original: nn.Module,
    data: Data,
    number: int,
    teacher: Teacher | None,
    workdir: Path | str | None,
    progress: Progress,
    notes: list[str],
) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Give the models before and after a step, from the folder of the run or made again."""
    recipe = compressed.recipe
    with contextlib.ExitStack() as stack:
        folder = Path(workdir or stack.enter_context(tempfile.TemporaryDirectory()))

        def at(step: int) -> nn.Module:
            if step in (0, len(recipe)):
                return compressed.model if step else original
            seconds = sum(done.seconds for done in compressed.steps[: step + 1])
            progress.say(
                f"steps 1 to {step}: read from the folder of the run, or made again, which took {seconds:.0f} s"
            )
            made = compress(
                original, recipe[:step], data, teacher=teacher, seed=compressed.seed, workdir=folder, progress=progress
            )
            found, then = made.steps[-1].accuracy, compressed.steps[step].accuracy
            if _differ(found, then, data):
                notes.append(
                    f"After step {step} {_named(found, data)}, and {_named(then, data)} in the run: what is said here "
                    "is of another training. Was there a teacher? Then give it here too."
                )
            return made.model

        # The one before is a step of the way to the one after.
        yield at(number - 1), at(number)


def _changes(
    before: nn.Module, after: nn.Module, compressed: Compressed, number: int, notes: list[str]
) -> Iterator[tuple[str, AbstractContextManager[nn.Module]]]:
    """Yield each changed layer with a context that gives the model before the step with its change alone."""
    step, example = compressed.steps[number], compressed.example
    kind = type(method_from_dict(step.method))
    names = {name for name, _ in before.named_modules()}
    places = {} if kind.effect == "width" else changed_places(before, after, example)
    for name, together in places.items():
        yield name, _made(with_places, before, after, together)
    if places:
        return
    # Layers that became thinner fit nowhere alone, but their part of the plan can be carried out alone.
    parts = [(key, part) for key, value in step.plan.items() if isinstance(value, dict) and names >= set(value)
             for part in value]  # fmt: skip
    for key, part in parts:
        plan = {**step.plan, key: {part: step.plan[key][part]}}
        yield part, _made(lambda plan=plan: bare(kind.apply(copy.deepcopy(before), plan, example)))
    if not parts:
        notes.append("no layer's change could be told from the others: the step changes the model as a whole")


@contextlib.contextmanager
def _made(make: Callable[..., nn.Module], *parts: Any) -> Iterator[nn.Module]:
    """Give a model that is made only when it is its turn."""
    yield make(*parts)


def _untold(what: str, error: Exception) -> str:
    return f"{what}: could not be told ({type(error).__name__}: {first_line(error)})"


def _measure(model: nn.Module, examples: Examples) -> tuple[Scores, float]:
    """Return the scores and the mean loss of the task, outputs that are no numbers as bad as can be."""
    task = examples.task
    scores, loss = [], 0.0
    for outputs, targets in answered(model, examples, 256):
        broken = ~outputs.isfinite().flatten(1).all(1)
        found = task.score(outputs.nan_to_num(0.0, 0.0, 0.0), targets)
        scores.append(np.where(broken.numpy(), 0.0 if task.unit == "%" else BROKEN, found))
        mean = BROKEN_LOSS if bool(broken.all()) else float(task.loss(outputs[~broken], targets[~broken]))
        loss += mean * int((~broken).sum()) + BROKEN_LOSS * int(broken.sum())
    return np.concatenate(scores), loss / len(examples)


def _chance(before: float, counted: int, task: Task, first: Scores, second: Scores) -> float:
    """Return what chance alone moves: two standard errors, of a share or of the paired differences."""
    if task.zero_one:
        return 2 * math.sqrt(max(before * (1 - before), 0.25 / counted) / counted)
    return 2 * float((first - second).std()) / math.sqrt(counted)


def _words(found: Diagnosis, compressed: Compressed, counted: int, chance: float) -> Iterator[str]:
    step, previous = compressed.steps[found.step], compressed.steps[found.step - 1]
    method = method_from_dict(step.method)
    lost = previous.accuracy - step.accuracy
    metric = found.metric
    change = f"validation {metric.name} {metric.text(previous.accuracy)} → {metric.text(step.accuracy)}"
    if lost <= chance:
        yield f"With {counted:,} examples this may be chance; step {found.step}, {step.name}: {change}."
        return
    yield f"Step {found.step}, {step.name}, lost {metric.amount(lost)}: {change}."
    if found.activations_do_it:
        yield (
            f"The quantized activations do it: with the same weights and activations in floating point "
            f"{metric.name} is {metric.text(found.unquantized or 0.0)}."
        )
    elif found.layers:
        worst = found.layers[0]
        cost = f"its change alone takes {metric.text(found.before)} to {metric.text(worst.accuracy)}"
        if found.culprit:
            mend = "" if method.effect == "student" else f" Leave it out: `exclude: [{worst.name}]`."
            yield f"The layer {worst.name} does it: {cost}.{mend}"
        elif found.ruinous:
            names = ", ".join(layer.name for layer in found.ruinous)
            yield f"Each of {len(found.ruinous)} layers does it alone: {names}. The worst is {worst.name}: {cost}."
        else:
            yield f"No layer does it alone; the worst is {worst.name}: {cost}. The losses of all layers add up."
    milder = method.milder()
    if milder is not None and milder != method:
        yield f"Or a milder setting: `{_recipe_line(milder)}`."
    elif method.effect == "training":
        yield "Training made it worse: a lower `lr`, or `patience`, which keeps the best epoch."
    following = compressed.recipe[found.step :]
    if method.recoverable and not any(trains(other) for other in following):
        yield f"No training follows it: `recover: Distill` wins back what {step.name} loses."
    for advice in advise(compressed.recipe):
        if advice.step == found.step:
            yield f"The order: {advice.text}."


def _recipe_line(method: Method) -> str:
    ((name, options),) = method.to_dict().items()
    return f"{name}: {{{', '.join(f'{key}: {json.dumps(value)}' for key, value in options.items())}}}"
