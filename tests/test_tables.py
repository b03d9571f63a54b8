from __future__ import annotations

import io

import pytest
from rich.console import Console

from nutlet.errors import ConfigError
from nutlet.tables import Table

TABLE = Table("A <title>", ("name", "value"), (("[red]a|b", "<script>"), ("c", "1")), ("Read & trust.",))


def test_terminal_shows_text_as_it_is() -> None:
    for part in ("A <title>", "[red]a|b", "<script>", "Read & trust."):
        assert part in str(TABLE)


def test_html_is_escaped() -> None:
    page = TABLE._repr_html_()
    assert "<script>" not in page
    assert "A &lt;title&gt;" in page
    assert "Read &amp; trust." in page


def test_markdown_keeps_its_columns() -> None:
    lines = TABLE.to_markdown().splitlines()
    assert lines[2:6] == ["| name | value |", "|:--|--:|", "| [red]a\\|b | <script> |", "| c | 1 |"]


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 1 cells; expected 2"):
        Table("t", ("a", "b"), (("x",),))


def test_no_figure_is_cut_in_a_narrow_terminal() -> None:
    figures = ("1,234,567,890", "98.7654321", "12,345.678", "1,111,222", "3.14159265")
    out = io.StringIO()
    Console(file=out, width=40).print(Table("Sizes", ("file", *"abcde"), (("model.onnx", *figures),)))
    assert "…" not in out.getvalue()
    cells = [line.split("│")[1:-1] for line in out.getvalue().splitlines() if line.startswith("│")]
    assert ["".join(part.strip() for part in column) for column in zip(*cells, strict=True)] == ["model.onnx", *figures]
