"""Progress of long work, as the user sees it: a bar with the time left, or silence."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress", "Task"]


@dataclass
class Task:
    """One running bar; ``advance`` moves it and may change the text beside it."""

    _bar: object = None
    _id: object = None

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar by ``steps`` and show ``note`` beside it."""
        if self._bar is not None:
            self._bar.update(self._id, advance=steps, note=note)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Progress:
    """Shows progress bars on standard error where that is a terminal; ``quiet`` shows nothing at all.

    >>> with Progress(quiet=True).task("training", total=3) as task:
    ...     task.advance()
    """

    quiet: bool = False

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
        """Show a bar of ``total`` steps while the block runs; one within another is a line below it."""
        # In a log a bar would leave nothing but blank lines.
        if self.quiet or not self._console.is_terminal:
            yield Task()
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Bars(*columns, console=self._console, transient=True) as bars:
            yield Task(bars, bars.add_task(title, total=total, note=""))

    @functools.cached_property
    def _console(self) -> Console:
        """One for all that is shown: only bars of one console know of each other, and of what is said meanwhile."""
        from rich.console import Console

        return Console(stderr=True)

    def say(self, text: str) -> None:
        """Print one line on standard error, unless quiet."""
        if not self.quiet:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
