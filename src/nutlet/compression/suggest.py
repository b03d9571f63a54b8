"""``suggest``: several recipes that share their steps, measured beside one original, and the best that meets a goal."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nutlet.compression.compressed import MANIFEST, Compressed
from nutlet.compression.gate import Admitted, admit
from nutlet.compression.pipeline import compress, step_folders
from nutlet.compression.recipe import Recipe, dump_recipe, read_steps
from nutlet.compression.sanity import look
from nutlet.compression.ship import export_into, export_original, refuse_other, write_figures
from nutlet.compression.stock import Propose, in_turn, stock_recipes
from nutlet.compression.time_estimate import Stopwatch
from nutlet.data.examples import Data
from nutlet.errors import ConfigError, NutletError, StorageError
from nutlet.locks import locked
from nutlet.measurement import Goal, Measurement
from nutlet.measurement.goal import GoalVerdict, goal_sentence, judged
from nutlet.measurement.parity import Parity
from nutlet.measurement.shipped import measure_all
from nutlet.methods.base import Method
from nutlet.options import Positive, check_value
from nutlet.progress import Progress
from nutlet.report.comparison import COLUMNS, cells
from nutlet.storage import write_json, write_text
from nutlet.tables import Table, Tabled

__all__ = ["Candidate", "Suggestion", "suggest"]

STEPS = "steps"
"""Folder of the finished steps, which all recipes share."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}")
_SETTINGS = 4
"""Latency settings: two batch sizes, one thread and all."""
_PER_FILE = 3.0
"""Seconds that export, opening and the measurement of memory take for a small file."""


@dataclass(frozen=True)
class Candidate:
    """One recipe that was tried.

    Args:
        name: of the recipe, and of its folder.
        recipe: its steps.
        folder: with the file, its report and ``recipe.yaml``.
        command: what makes it anew, alone.
        measurement: of its file; None where it was left out.
        left_out: why it was; empty where it was measured.
    """

    name: str
    recipe: tuple[Method, ...]
    folder: Path
    command: str
    measurement: Measurement | None
    left_out: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "name": self.name,
            "recipe": [step.to_dict() for step in self.recipe],
            "folder": str(self.folder),
            "command": self.command,
            "measurement": None if self.measurement is None else self.measurement.to_dict(),
            "left_out": self.left_out,
        }


@dataclass(frozen=True)
class Suggestion(Tabled):
    """What was tried for a goal.

    Args:
        goal: what the file has to reach.
        candidates: in the order in which they were tried.
    """

    goal: Goal
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate | None:
        """The smallest file that is shown to meet the whole goal; None where none is."""
        met = [(c.measurement.compressed.bytes, c) for c in self._measured if _verdict(c) is GoalVerdict.MET]
        return min(met, key=lambda pair: pair[0])[1] if met else None

    @property
    def verdict(self) -> GoalVerdict:
        """Met where one file meets the goal, missed where all miss it, else not shown."""
        verdicts = {_verdict(candidate) for candidate in self._measured}
        for verdict in (GoalVerdict.MET, GoalVerdict.NOT_SHOWN):
            if verdict in verdicts:
                return verdict
        return GoalVerdict.MISSED

    @property
    def sentence(self) -> str:
        """What came of it."""
        best = self.best
        if best is not None and best.measurement is not None:
            tried = len(self._measured)
            chosen = (
                f" It is the smallest of {tried} that were judged on the same examples, which flatters the best: "
                "measure it on others before you promise anything."
            )
            return f"Best: {best.name}. {goal_sentence(best.measurement.goal)}{chosen * (tried > 1)}"
        if self.verdict is GoalVerdict.MISSED:
            return "No recipe meets the goal, and each is shown to miss it: a milder goal, or a recipe of your own."
        open_ = ", ".join(c.name for c in self._measured if _verdict(c) is GoalVerdict.NOT_SHOWN)
        return (
            f"No recipe is shown to meet the goal; these examples and timings cannot tell for {open_}: "
            "more test examples, or longer --seconds, decide it."
        )

    @property
    def _measured(self) -> list[Any]:
        return [candidate for candidate in self.candidates if candidate.measurement is not None]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        best = self.best
        return {
            "goal": dataclasses.asdict(self.goal),
            "verdict": str(self.verdict),
            "best": None if best is None else best.name,
            "sentence": self.sentence,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }

    def table(self) -> Table:
        """Return one line for each recipe that was measured; what was left out stands below."""
        rows = tuple((c.name, *cells(c.measurement.to_dict())) for c in self._measured)
        notes = [f"left out: {c.name}, {c.left_out}" for c in self.candidates if c.measurement is None]
        notes.append("Brackets: 95 % interval; faster: at the smallest batch and the fewest threads.")
        notes.append(self.sentence)
        return Table("Recipes for the goal", ("recipe", *COLUMNS), rows, tuple(notes))


def suggest(
    model: nn.Module,
    data: Data,
    goal: Goal,
    folder: Path | str,
    *,
    minutes: float = 20.0,
    recipes: Mapping[str, Any] | Propose | None = None,
    epochs: int = 5,
    seconds: float = 1.0,
    seed: int = 0,
    names: tuple[str, str] = ("", ""),
    command: Callable[[Path], str] | None = None,
    packed: bool = True,
    replace: bool = False,
    progress: Progress | None = None,
) -> Suggestion:
    """Try several recipes for a goal, and name the smallest file that is shown to meet it.

    Steps that recipes have in common are computed once; the original is exported and timed once, in turn with all
    files. After a kill the same call goes on from the steps that are finished.

    Args:
        model: what is to be compressed; it is not changed.
        data: files are judged on its test split, or on validation where there is none.
        goal: what the file has to reach.
        folder: gets ``original.onnx``, ``suggest.json``, the shared ``steps``, and for each recipe a folder with the
            file, its report and ``recipe.yaml``.
        minutes: what all may take. A recipe that would not fit any more, by timings on this machine, is left out.
        recipes: steps by name, or a function that proposes the next; stock recipes by default.
        epochs: of each training in the stock recipes.
        seconds: time for each latency setting and each two files.
        seed: the only source of randomness.
        names: how the user named model and data, for the reports.
        command: returns the command that makes a recipe alone, for its folder.
        packed: as for :func:`nutlet.ship`.
        replace: whether results of other recipes in ``folder`` may be replaced.
        progress: shows bars; silent by default.

    Raises:
        ConfigError: an option is out of range, ``folder`` holds something else, or no recipe fits into the time.
        DataError, ModelError: model and data do not fit.
        StorageError: ``folder`` cannot be written, or another run is writing there.
    """
    check_value("minutes", minutes, Positive)
    if not isinstance(goal, Goal):
        raise ConfigError(f"goal is {type(goal).__name__}; expected nutlet.Goal(max_loss=1.0), say")
    began = time.monotonic()
    folder, progress = Path(folder), progress or Progress(quiet=True)
    if (folder / "report.json").exists():
        raise ConfigError(f"{folder} holds the result of `nutlet compress`; expected a folder of its own for suggest")
    if recipes is None:
        recipes = stock_recipes(model, epochs)
    propose = recipes if callable(recipes) else in_turn({name: read_steps(steps) for name, steps in recipes.items()})
    with locked(folder, progress):
        trial = _Trial(model, data, folder, 60 * minutes, began, seconds, seed, progress)
        tried: dict[str, Compressed | None] = {}
        made: list[tuple[Candidate, Compressed | None, Path | None, Parity | None]] = []
        while (proposal := propose(tried)) is not None:
            name, steps = proposal
            _check_name(name, tried)
            place = folder / name
            if not replace:
                refuse_other(place, steps)
            candidate = Candidate(name, tuple(steps), place, "" if command is None else command(place), None, "")
            result, left_out = trial.run(name, steps, files=sum(c is not None for c in tried.values()) + 1)
            tried[name] = result
            shipped = check = None
            if result is not None:
                try:
                    shipped, check = export_into(result, data, place, packed=packed)
                    write_text(place / "recipe.yaml", dump_recipe(steps))
                except NutletError as error:
                    if isinstance(error, StorageError):
                        raise
                    left_out = f"which could not be exported: {error}"
            if left_out:
                progress.say(f"left out: {name}, {left_out}")
            made.append((dataclasses.replace(candidate, left_out=left_out), result, shipped, check))
        files = [shipped for _, _, shipped, _ in made if shipped is not None]
        if not files:
            why = "; ".join(f"{candidate.name}, {candidate.left_out}" for candidate, *_ in made)
            raise ConfigError(f"no recipe was left to measure ({why}); expected one: give more --minutes, or a recipe")
        original = export_original(model, data, folder, trial.example)
        figures = iter(measure_all(files, data, original, seconds=seconds, goal=goal, progress=progress))
        doubts = look(model, data)
        candidates = []
        for candidate, result, shipped, check in made:
            if result is not None and shipped is not None and check is not None:
                candidate = dataclasses.replace(candidate, measurement=(found := next(figures)))
                write_figures(
                    result, doubts, data, check, found, candidate.folder, command=candidate.command, names=names
                )
            candidates.append(candidate)
        suggestion = Suggestion(goal, tuple(candidates))
        write_json(folder / "suggest.json", suggestion.to_dict())
    return suggestion


class _Trial:
    """Makes one recipe after the other, as long as the time lasts."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        folder: Path,
        limit: float,
        began: float,
        seconds: float,
        seed: int,
        progress: Progress,
    ) -> None:
        self.model, self.data, self.folder, self.seed, self.progress = model, data, folder, seed, progress
        self.limit, self.began, self.seconds = limit, began, seconds
        self.admitted: Admitted = admit(model, data)
        self.example = data.calibration.batch(slice(0, 2))[0]
        self.watch = Stopwatch(self.admitted.model, data, self.admitted.outputs)
        self.known: dict[tuple[str, bool], float] = {}
        self.planned = self.spent = 0.0

    def run(self, name: str, steps: Recipe, files: int) -> tuple[Compressed | None, str]:
        """Return the result, or None and why there is none.

        Args:
            name: of the recipe.
            steps: its steps.
            files: how many files are to be measured with this one.
        """
        try:
            planned = self._planned(steps)
            left = self.limit - (time.monotonic() - self.began) - self._measuring(files)
            # Timings are of the original, and at their most; the first recipes tell how far off they are.
            expected = planned * (self.spent / self.planned if self.planned else 1.0)
            if expected > left:
                return None, f"for it needs about {_time(expected)} more, and {_time(max(left, 0))} are left for it"
            self.progress.say(f"recipe {name}")
            start = time.monotonic()
            result = compress(
                self.model,
                list(steps),
                self.data,
                seed=self.seed,
                workdir=self.folder / STEPS,
                progress=self.progress,
            )
        except NutletError as error:
            if isinstance(error, StorageError):
                raise
            return None, f"which does not work here: {error}"
        if planned:
            self.planned += planned
            self.spent += time.monotonic() - start
        return result, ""

    def _planned(self, steps: Recipe) -> float:
        """Return the most seconds that the steps take which are not finished yet."""
        places = step_folders(self.admitted.model, self.data, steps, self.folder / STEPS, seed=self.seed)
        done = max((n for n, place in enumerate(places) if (place / MANIFEST).exists()), default=0)
        total, smaller = 0.0, False
        for number, step in enumerate(steps, 1):
            if number > done:
                total += self._most(step, smaller)
            smaller = smaller or step.effect in ("width", "depth", "rank")
        return total

    def _most(self, step: Method, smaller: bool) -> float:
        key = json.dumps(step.to_dict(), sort_keys=True), smaller
        if key not in self.known:
            self.known[key] = self.watch.estimate(type(step).__name__, step, smaller=smaller).high
        return self.known[key]

    def _measuring(self, files: int) -> float:
        """Return the seconds that the measurement of so many files and of the original takes."""
        judged_on = self.data.validation if self.data.test is None else self.data.test
        timing = _SETTINGS * self.seconds * (files + 1) / 2
        return timing + (files + 1) * (_PER_FILE + self.watch.passing(judged_on)[1])


def _verdict(candidate: Candidate) -> GoalVerdict:
    return judged(candidate.measurement.goal) if candidate.measurement is not None else GoalVerdict.NOT_SHOWN


def _check_name(name: str, tried: Mapping[str, object]) -> None:
    if not _NAME.fullmatch(name) or name in tried or name == STEPS:
        raise ConfigError(
            f"a recipe is called {name!r}; expected a name of letters, digits, - and _ that no other one has"
        )


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
