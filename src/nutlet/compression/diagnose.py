"""When accuracy collapses: which step did it, in which layer, and what to do."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn import functional as F

from nutlet.compression.compressed import Compressed
from nutlet.compression.history import Step
from nutlet.compression.order_rules import advise
from nutlet.compression.pipeline import compress
from nutlet.compression.teacher import Teacher
from nutlet.data.examples import Data, Examples
from nutlet.errors import ConfigError, first_line, nearest
from nutlet.graph.diff import SiteError, activation_errors, bare, changed_places, with_places
from nutlet.graph.trace import InstrumentedModel
from nutlet.loading.copies import clean_copy
from nutlet.methods import method_from_dict
from nutlet.methods.base import Method
from nutlet.progress import Progress
from nutlet.tables import Table, Tabled
from nutlet.tasks.inputs import Inputs
from nutlet.tasks.predict import evaluate, predict

__all__ = ["Diagnosis", "LayerLoss", "StepAccuracy", "diagnose"]

WATCHED = 32
"""Examples on which results inside the model are compared; they are all held at once."""


@dataclass(frozen=True)
class StepAccuracy:
    """What the history says of one step.

    Args:
        name: name of the method, or ``original``.
        accuracy: top-1 on the validation examples, 0 to 1.
    """

    name: str
    accuracy: float


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
        accuracies: validation accuracy after every step, from the history.
        examples: validation examples that layers were measured on.
        before: accuracy on them before the step, without activation quantizers.
        loss: cross entropy before the step, likewise.
        after: accuracy on them after the step.
        unquantized: accuracy after the step without its activation quantizers; None where it has none.
        layers: what the change of each layer costs alone, the costliest first.
        sites: how far results inside the model have moved, along the depth.
        words: what it comes to, and what to do.
        notes: what could not be told, and what it cost to find out.
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
                f"{layer.accuracy:.2%}",
                f"{100 * (layer.accuracy - self.before):+.2f}",
                f"{layer.loss:.3f}",
                f"{layer.loss - self.loss:+.3f}",
            )
            for layer in self.layers
        )
        columns = ("this layer's change alone", "accuracy", "points", "loss", "change")
        title = f"Step {self.step}, {self.method}: {self.before:.2%} before, {self.after:.2%} after"
        return Table(title, columns, rows, (*self.words, *self.notes))


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
        step: number or name of the step to look into; by default the one that lost most.
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
    original, _ = clean_copy(original, data.calibration.batch(slice(0, 2))[0])
    if not isinstance(compressed, Compressed):
        compressed = Compressed.load(compressed, original)
    number = _number(compressed.steps, step)
    if examples < 1:
        raise ConfigError(f"examples is {examples}; expected 1 or more")
    notes: list[str] = []
    _check_same(compressed, original, data)
    with _models(compressed, original, data, number, teacher, workdir, progress, notes) as (before, after):
        measured = data.validation.subset(slice(0, examples))
        plain, changed = bare(before), bare(after)
        accuracy, loss = _measure(plain, measured)
        trials = dict(_trials(plain, changed, compressed, number, notes))
        layers = []
        with progress.task("one layer's change at a time", total=len(trials)) as task:
            for name, trial in trials.items():
                task.advance(note=name)
                with _told(notes, name):
                    layers.append(LayerLoss(name, *_measure(trial(), measured)))
        sites: list[SiteError] = []
        with _told(notes, "results inside the model"):
            sites = activation_errors(before, after, data.calibration.batch(slice(0, WATCHED))[0])
        final = _measure(after, measured)[0]
        unquantized = _measure(changed, measured)[0] if isinstance(after, InstrumentedModel) else None
    layers.sort(key=lambda layer: (layer.accuracy, -layer.loss))
    notes.append(f"Measured with {len(layers) + 3} passes over {len(measured):,} validation examples.")
    found = Diagnosis(
        step=number,
        method=compressed.steps[number].name,
        accuracies=tuple(StepAccuracy(step.name, step.accuracy) for step in compressed.steps),
        examples=len(measured),
        before=accuracy,
        loss=loss,
        after=final,
        unquantized=unquantized,
        layers=tuple(layers),
        sites=tuple(sites),
        words=(),
        notes=tuple(notes),
    )
    return replace(found, words=tuple(_words(found, compressed, len(data.validation))))


def _number(steps: tuple[Step, ...], step: int | str | None) -> int:
    lost = {k: steps[k - 1].accuracy - steps[k].accuracy for k in range(1, len(steps))}
    named = [k for k in lost if step is None or step in (k, steps[k].name)]
    if not named:
        names = [f"{k} {steps[k].name}" for k in lost]
        hint = nearest(str(step), names) if names else "the chain has no step but the original"
        raise ConfigError(f"there is no step {step!r}; expected the number or the name of one: {hint}")
    return max(named, key=lambda k: lost[k])


def _differ(found: float, then: float, data: Data) -> bool:
    """Whether two accuracies differ by more than another machine does, where sums round differently."""
    return abs(found - then) > max(0.005, 1.5 / len(data.validation))


def _check_same(compressed: Compressed, original: nn.Module, data: Data) -> None:
    """Raise ConfigError where the original does not answer as that of the run did."""
    if not data.validation.labelled:
        return
    found, then = evaluate(original, data.validation), compressed.steps[0].accuracy
    if _differ(found, then, data):
        raise ConfigError(
            f"the original has an accuracy of {found:.2%} on these validation examples, the run began with {then:.2%}; "
            "expected its model and weights, its data, and the same options of these (seed, validation, mean, std)"
        )


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
                    f"After step {step} accuracy is {found:.2%}, and was {then:.2%} in the run: what is said here is "
                    "of another training. Was there a teacher? Then give it here too."
                )
            return made.model

        # The one before is a step of the way to the one after.
        yield at(number - 1), at(number)


def _trials(
    before: nn.Module, after: nn.Module, compressed: Compressed, number: int, notes: list[str]
) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield each changed layer with what makes the model before the step with its change alone."""
    step, example = compressed.steps[number], compressed.example
    kind = type(method_from_dict(step.method))
    names = {name for name, _ in before.named_modules()}
    places = {} if kind.effect == "width" else changed_places(before, after, example)
    for name, together in places.items():
        yield name, partial(with_places, before, after, together)
    if places:
        return
    # Layers that became thinner fit nowhere alone, but their part of the plan can be carried out alone.
    parts = [(key, part) for key, value in step.plan.items() if isinstance(value, dict) and names >= set(value)
             for part in value]  # fmt: skip
    for key, part in parts:
        plan = {**step.plan, key: {part: step.plan[key][part]}}
        yield part, partial(_carried_out, kind, before, plan, example)
    if not parts:
        notes.append("no layer's change could be told from the others: the step changes the model as a whole")


def _carried_out(kind: type[Method], model: nn.Module, plan: dict[str, Any], example: Inputs) -> nn.Module:
    return bare(kind.apply(copy.deepcopy(model), plan, example))


@contextlib.contextmanager
def _told(notes: list[str], what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a forward of free Python may fail in any way with one part exchanged
        notes.append(f"{what}: could not be told ({type(error).__name__}: {first_line(error)})")


def _measure(model: nn.Module, examples: Examples) -> tuple[float, float]:
    """Return accuracy and cross entropy in nats, both of outputs that are no numbers as bad as can be."""
    outputs = predict(model, examples)
    broken = ~outputs.isfinite().all(1)
    right = (outputs.argmax(1) == examples.y) & ~broken
    loss = F.cross_entropy(outputs.nan_to_num(0.0, 0.0, 0.0), examples.y, reduction="none").masked_fill(broken, 1e6)
    return float(right.float().mean()), float(loss.mean())


def _words(found: Diagnosis, compressed: Compressed, counted: int) -> Iterator[str]:
    step, previous = compressed.steps[found.step], compressed.steps[found.step - 1]
    method = method_from_dict(step.method)
    lost = previous.accuracy - step.accuracy
    # What chance alone moves: two standard errors of a share.
    chance = 2 * math.sqrt(max(previous.accuracy * (1 - previous.accuracy), 0.25 / counted) / counted)
    change = f"validation accuracy {previous.accuracy:.1%} → {step.accuracy:.1%}"
    if lost <= chance:
        yield f"With {counted:,} examples this may be chance; step {found.step}, {step.name}: {change}."
        return
    yield f"Step {found.step}, {step.name}, lost {100 * lost:.1f} points: {change}."
    if found.activations_do_it:
        yield (
            f"The quantized activations do it: with the same weights and activations in floating point accuracy is "
            f"{found.unquantized:.1%}."
        )
    elif found.layers:
        worst = found.layers[0]
        cost = f"its change alone takes {found.before:.1%} to {worst.accuracy:.1%}"
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
    following = compressed.recipe[found.step : found.step + 1]
    if method.recoverable and not any(type(other).train is not Method.train for other in following):
        yield f"No training follows it: `recover: Distill` wins back what {step.name} loses."
    for advice in advise(compressed.recipe):
        if advice.step == found.step:
            yield f"The order: {advice.text}."


def _recipe_line(method: Method) -> str:
    ((name, options),) = method.to_dict().items()
    return f"{name}: {{{', '.join(f'{key}: {json.dumps(value)}' for key, value in options.items())}}}"
