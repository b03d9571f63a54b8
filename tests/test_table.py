from __future__ import annotations

import pytest

from nutlet.errors import ConfigError
from nutlet.table import Table

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
