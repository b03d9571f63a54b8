"""One small table that reads well in a terminal, in a notebook and in a Markdown file."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nutlet.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["Table", "Tabled"]


@dataclass(frozen=True)
class Table:
    r"""Rows of text under column heads: the one source of every printed form.

    Args:
        title: one line above.
        columns: heads; the first column is set left, the others right.
        rows: cells, one per column.
        notes: sentences below, what a reader must know to trust the numbers.

    Raises:
        ConfigError: a row has more or fewer cells than there are columns.

    >>> print(Table("Sizes", ("file", "bytes"), (("a|b", "1,024"),)).to_markdown())
    **Sizes**
    <BLANKLINE>
    | file | bytes |
    |:--|--:|
    | a\|b | 1,024 |
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that every row fits the columns."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ConfigError(f"the row {row!r} has {len(row)} cells; expected {len(self.columns)}, one per column")

    def __rich__(self) -> Group:
        """Return what ``rich`` prints in a terminal."""
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        # Text, not str: a file name such as "[red]" must be shown and not obeyed.
        table = RichTable(title=Text(self.title), title_justify="left")
        for place, column in enumerate(self.columns):
            # Where there is little room, a figure goes on in the next line: cut, it would be another figure.
            table.add_column(Text(column), justify="right" if place else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return Group(table, *map(Text, self.notes))

    def __str__(self) -> str:
        """Return the table as plain text, for ``print`` and log files."""
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=140, color_system=None, force_jupyter=False, force_terminal=False).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())

    def _repr_html_(self) -> str:
        """Return what a notebook shows; all text is escaped."""
        cell = '<{tag} style="text-align:{side}">{text}</{tag}>'

        def line(tag: str, cells: tuple[str, ...]) -> str:
            made = (
                cell.format(tag=tag, side="right" if place else "left", text=html.escape(text))
                for place, text in enumerate(cells)
            )
            return f"<tr>{''.join(made)}</tr>"

        body = "".join(line("td", row) for row in self.rows)
        notes = "".join(f"<p><small>{html.escape(note)}</small></p>" for note in self.notes)
        return (
            f"<table><caption>{html.escape(self.title)}</caption><thead>{line('th', self.columns)}</thead>"
            f"<tbody>{body}</tbody></table>{notes}"
        )

    def to_markdown(self) -> str:
        """Return a Markdown table with its title above and its notes below."""

        def line(cells: tuple[str, ...]) -> str:
            made = (text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for text in cells)
            return f"| {' | '.join(made)} |"

        rule = "|:--|" + "--:|" * (len(self.columns) - 1)
        parts = [f"**{self.title}**", "", line(self.columns), rule, *map(line, self.rows)]
        for note in self.notes:
            parts += ["", note]
        return "\n".join(parts)


class Tabled:
    """What prints as a table, in a terminal, in a log and in a notebook; a subclass says which."""

    def table(self) -> Table:
        """Return the table."""
        raise NotImplementedError

    def __rich__(self) -> Group:
        return self.table().__rich__()

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()
