"""What can be known of a run before its hours are spent: layers, methods, time, and what would go wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from nutlet.compression.gate import Admitted, examine, ready_copy
from nutlet.compression.order_rules import advise
from nutlet.compression.recipe import read_steps, read_yaml
from nutlet.compression.sanity import look
from nutlet.compression.size import size_of
from nutlet.compression.teacher import Teacher, teacher_of
from nutlet.compression.time_estimate import Estimate, Stopwatch
from nutlet.constraints.stack import PLAIN_WEIGHT
from nutlet.data.examples import Data
from nutlet.errors import ConfigError, NutletError
from nutlet.findings import Finding
from nutlet.formats import DEFAULT
from nutlet.graph.skip_reasons import MADE_ELSEWHERE, layers_with_values
from nutlet.loading.models import check_kinds
from nutlet.methods import known_methods, method_from_dict
from nutlet.methods.base import Method
from nutlet.progress import Progress
from nutlet.storage import prepare_folder
from nutlet.tables import Table, Tabled
from nutlet.tasks.inputs import Inputs

__all__ = ["LayerCheck", "Preflight", "check"]

_RENAMES = ("depth", "rank", "student")
"""Effects after which layers have other names than in the original."""
_SHRINKS = (*_RENAMES, "width")
"""Effects after which there is less to compute."""


@dataclass(frozen=True)
class LayerCheck:
    """One layer of the model.

    Args:
        name: module path.
        kind: class name.
        shape: shape of its weight.
        parameters: number of its values.
        macs: multiply-accumulates for one example.
        share: its share of the multiply-accumulates of the model, 0 to 1.
        left_alone: why a method would leave it alone, by the name of the method; no entry where nothing is against it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    share: float
    left_alone: dict[str, str]


@dataclass(frozen=True)
class Preflight(Tabled):
    """What a run would meet.

    Args:
        layers: every layer with values, norms included.
        methods: the methods that were asked: those of the recipe, or all.
        steps: how long each step takes, a range.
        problems: what would end the run, or make its result worthless.
        advice: where another order of steps is better.
        notes: what a reader must know to trust the figures.
        findings: what is probably wrong with how model or data are used.
    """

    layers: tuple[LayerCheck, ...]
    methods: tuple[str, ...]
    steps: tuple[Estimate, ...]
    problems: tuple[str, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    @property
    def seconds(self) -> tuple[float, float]:
        """The least and the most seconds that all steps take."""
        return sum(step.low for step in self.steps), sum(step.high for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {"ok": self.ok, "seconds": list(self.seconds), **asdict(self)}

    def table(self) -> Table:
        """Return the layers as a table; problems, advice and times stand below it."""
        rows = tuple(
            (
                layer.name,
                layer.kind,
                " x ".join(map(str, layer.shape)),
                f"{layer.parameters:,}",
                f"{layer.macs:,}",
                f"{layer.share:.1%}",
                self._left_alone(layer),
            )
            for layer in self.layers
        )
        columns = ("layer", "kind", "weight", "parameters", "MACs", "share of MACs", "left alone by")
        times = [str(step) for step in self.steps]
        if len(self.steps) > 1:
            times.append(str(Estimate("all steps", *self.seconds)))
        verdict = [f"PROBLEM: {problem}" for problem in self.problems] or (
            [] if self.findings else ["no problem found"]
        )
        verdict += [f"WARNING: {finding}" for finding in self.findings]
        advice = [f"order: {text}" for text in self.advice]
        return Table("Before the run", columns, rows, (*verdict, *advice, *times, *self.notes))

    def _left_alone(self, layer: LayerCheck) -> str:
        if not layer.left_alone:
            return ""
        by_reason: dict[str, list[str]] = {}
        for method, reason in layer.left_alone.items():
            by_reason.setdefault(reason, []).append(method)
        return "; ".join(f"{_names(names, self.methods)} ({reason})" for reason, names in by_reason.items())


def check(
    model: nn.Module,
    data: Data,
    recipe: Method | Sequence[Method | dict[str, Any] | str] | Path | str | None = None,
    *,
    recover: Method | dict[str, Any] | str | None = None,
    teacher: Teacher | None = None,
    workdir: Path | str | None = None,
    expect: float | None = None,
    progress: Progress | None = None,
) -> Preflight:
    """Say what a run of ``recipe`` would meet, in seconds; nothing is changed and nothing is kept.

    Args:
        model: what is to be compressed.
        data: what it is to be compressed on.
        recipe: as for :func:`nutlet.compress`; without one, every known method is asked about the layers.
        recover: as for :func:`nutlet.compress`.
        teacher: as for :func:`nutlet.compress`; it is asked about two examples, and its classes are compared.
        workdir: where intermediates are to be kept; it is tried to write there.
        expect: what you know the metric of the model to be, in its unit (93.1 per cent): said where it is not.
        progress: shows a bar.

    Raises:
        ConfigError, ModelError: ``data`` or ``model`` is nothing that can be asked about.

    >>> from nutlet.data.examples import Examples, split
    >>> import torch
    >>> data = split(Examples(torch.rand(40, 4), torch.arange(40) % 3), calibration=10)
    >>> found = check(nn.Linear(4, 2), data)
    >>> found.ok, found.problems[0][:55]
    (False, 'the data have labels up to 2, the model has 2 outputs (')
    """
    check_kinds(model, data)
    ready, notes = ready_copy(model, data)
    asking = _Asking(ready, data, progress or Progress(quiet=True), notes=notes)
    steps = [] if recipe is None else asking.steps(recipe, recover)
    runs = asking.runs(teacher, steps)
    found = look(ready, data, expect=expect) if runs else data.findings
    if workdir is not None:
        with asking.noting():
            prepare_folder(Path(workdir))
    if runs:  # a model that does not run tells nothing more
        asking.ask(steps if recipe is not None else asking.samples(), recipe is None)
    return Preflight(
        layers=asking.layers(),
        methods=tuple(asking.reasons),
        steps=tuple(asking.estimates),
        problems=tuple(dict.fromkeys(asking.problems)),
        advice=tuple(advice.text for advice in advise(steps)),
        notes=tuple(dict.fromkeys(asking.notes)),
        findings=found,
    )


@dataclass(eq=False)
class _Asking:
    """One check under way."""

    model: nn.Module
    data: Data
    progress: Progress
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)
    reasons: dict[str, dict[str, str]] = field(default_factory=dict)
    admitted: Admitted | None = None

    @property
    def example(self) -> Inputs:
        x: Inputs = self.data.calibration.batch(slice(0, 2))[0]
        return x

    @contextmanager
    def noting(self, who: str = "") -> Iterator[None]:
        """Note an error as a problem, and go on."""
        try:
            yield
        except NutletError as error:
            self.problems.append(f"{who}: {error}" if who else str(error))

    def steps(self, recipe: Any, recover: Any) -> list[Method]:
        """Return the steps that can be read; of several bad ones each is told."""
        try:
            return read_steps(recipe, recover)
        except ConfigError as error:
            whole = str(error)
        good: list[Method] = []
        before = len(self.problems)
        with self.noting():
            for number, spec in enumerate(_specs(recipe), 1):
                with self.noting(f"step {number}"):
                    good.append(spec if isinstance(spec, Method) else method_from_dict(spec))
        if len(self.problems) == before:
            self.problems.append(whole)
        return good

    def samples(self) -> list[Method]:
        """Return every known method with the options of its sample."""
        found = []
        for name, kind in known_methods().items():
            try:
                found.append(method_from_dict({name: kind.sample}))
            except NutletError as error:  # one of an installed package, without a sample of its options
                self.notes.append(f"{name} could not be asked: {error}")
        return found

    def runs(self, teacher: Teacher | None, steps: Sequence[Method]) -> bool:
        """Try the model on the data and the export, and the teacher beside it."""
        with self.noting():
            self.admitted = examine(self.model, self.data, steps)
            self.notes += self.admitted.notes
        if self.admitted is not None:
            problem = DEFAULT.export_problem(self.model, self.example)
            self.problems += [f"the result could not be exported: {problem}"] if problem else []
        if teacher is not None:
            classes = self.data.classes if self.admitted is None else self.admitted.classes
            with self.noting(), tempfile.TemporaryDirectory() as answers:
                teacher_of(teacher, Path(answers), self.data, classes)
        return self.admitted is not None

    def ask(self, methods: Sequence[Method], every: bool) -> None:
        """Ask each method about the layers and how long it takes."""
        watch = None if every or self.admitted is None else Stopwatch(self.model, self.data, self.admitted.outputs)
        renamed = smaller = False
        with self.progress.task("asking the methods", total=len(methods)) as task:
            for number, method in enumerate(methods, 1):
                name = type(method).__name__
                task.advance(note=name)
                found = self._about_layers(method, f"step {number}", every, renamed)
                known = self.reasons.get(name)
                # Of a method that comes twice, a layer is left alone where both leave it.
                self.reasons[name] = found if known is None else {k: v and found.get(k, "") for k, v in known.items()}
                if watch is not None and found:
                    with self.noting(f"step {number}"):
                        self.estimates.append(watch.estimate(f"{number} {name}", method, smaller=smaller))
                smaller = smaller or method.effect in _SHRINKS
                renamed = renamed or method.effect in _RENAMES
        if self.estimates:
            self.notes.append(
                "Times are for this machine, from a few timed steps on the original model. What a method computes "
                "beside passes over data (decompositions, solving for weights) is not in them."
            )

    def _about_layers(self, method: Method, step: str, every: bool, renamed: bool) -> dict[str, str]:
        layers = layers_with_values(self.model)
        try:
            found = method.skip_reasons(self.model, self.example)
        except NutletError as error:
            reason = str(error).partition(";")[0].removeprefix(f"{type(method).__name__} ")
            if renamed:
                self.notes.append(f"{step}, told of the original, whose layers change before it: {error}")
            elif not every:
                self.problems.append(f"{step}: {error}")
            return dict.fromkeys(layers, reason) if every else {}
        made = [name for name, reason in found.items() if reason == MADE_ELSEWHERE]
        if made and not every:
            self.problems.append(
                f"{step}: something else makes the weight of {', '.join(made)} (weight_norm, say); {PLAIN_WEIGHT}, or "
                f"leave it out with exclude={made!r}"
            )
        if found and all(found.values()) and not every and not renamed:
            why = "; ".join(sorted(set(found.values())))
            self.problems.append(f"{step}: {type(method).__name__} would leave every layer alone ({why})")
        return found

    def layers(self) -> tuple[LayerCheck, ...]:
        """Return the layers with what was found of them."""
        modules = dict(self.model.named_modules())
        try:
            size = size_of(self.model, self.example)
        except Exception:  # a model that does not run; what is wrong with it is a problem noted already
            return ()
        return tuple(
            LayerCheck(
                name=layer.name,
                kind=layer.kind,
                shape=layer.shape,
                parameters=sum(p.numel() for p in modules[layer.name].parameters(recurse=False)),
                macs=layer.macs,
                share=layer.macs / max(size.macs, 1),
                left_alone={method: said[layer.name] for method, said in self.reasons.items() if said.get(layer.name)},
            )
            for layer in size.layers
        )


def _specs(recipe: Any) -> list[Any]:
    """Return the steps of a recipe as they stand there."""
    content = read_yaml(recipe) if isinstance(recipe, (str, Path)) else recipe
    content = content.get("steps") if isinstance(content, Mapping) else content
    return list(content) if isinstance(content, Sequence) else []


def _names(some: Sequence[str], every: Sequence[str]) -> str:
    return "all" if len(some) == len(every) > 1 else ", ".join(some)
