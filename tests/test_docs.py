"""What the pages show is run: Python blocks, files, commands; and their figures are those of bench/results.

A page is one small program. Its blocks run in order in an empty folder:

- ``python`` is executed, all blocks of a page in one namespace; with the word ``notest`` behind, it is only parsed;
- a block whose first line is ``# some/file.py`` (or ``.yaml``) is written to that file instead;
- of ``bash``, lines that start with ``nutlet`` are run, or only parsed where the block says ``notest``; targets of
  ``make`` must exist; other lines are left alone.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from nutlet.attacks import base as attack
from nutlet.attacks import known_attacks
from nutlet.cli import app
from nutlet.methods import base as method
from nutlet.methods import known_methods
from nutlet.tasks import base as task
from nutlet.tasks import known_tasks

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    language: str
    words: tuple[str, ...]
    text: str
    line: int

    @property
    def run(self) -> bool:
        return "notest" not in self.words


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[1], tuple(found[2].split()), found[3], text[: found.start()].count("\n") + 1)
        for found in FENCE.finditer(text)
    ]


def pages() -> Iterator[Path]:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        relative = page.relative_to(ROOT)
        if "_build" not in relative.parts and blocks(page):
            yield relative


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module to run a page in: an empty folder is the current one, and what it registers is forgotten after."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NUTLET_CACHE", str(tmp_path / "cache"))
    registries = (method.REGISTRY, attack.REGISTRY, task.REGISTRY)
    known_methods(), known_attacks(), known_tasks()  # ours are among them from now on
    before = [set(registry.kinds) for registry in registries]
    yield module
    for registry, names in zip(registries, before, strict=True):
        for name in set(registry.kinds) - names:
            del registry.kinds[name]
    for name, loaded in list(sys.modules.items()):
        if str(getattr(loaded, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", list(pages()), ids=str)
def test_page_runs(page: Path, namespace: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks(ROOT / page):
        place = f"{page}:{block.line}"
        file = FILE.match(block.text)
        if file and block.language in ("python", "yaml"):
            Path(file[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(file[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            # As many lines before as on the page, so that a traceback names its line.
            code = compile("\n" * block.line + block.text, str(page), "exec")
            if block.run:
                monkeypatch.delitem(sys.modules, "net", raising=False)  # the reader's, not that of another page or test
                exec(code, vars(namespace))
        elif block.language == "bash":
            for words in commands(block.text):
                check_command(words, place, run=block.run, monkeypatch=monkeypatch)


def commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        yield from filter(None, [shlex.split(line, comments=True)])


def check_command(words: list[str], place: str, *, run: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), f"{place}: no such target of make"
    elif words[0] == "nutlet" and run:
        monkeypatch.setattr(sys, "argv", words)
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{place}: {shlex.join(words)}\n{result.output}"
    elif words[0] == "nutlet":
        parse(words, place)


def parse(words: list[str], place: str) -> None:
    group: Any = typer.main.get_command(app)
    assert words[1] in group.commands, f"{place}: there is no command {words[1]!r}"
    group.commands[words[1]].make_context(words[1], words[2:])  # raises UsageError for what it does not know


def test_few_blocks_are_not_run() -> None:
    left_out = [f"{page}:{b.line}" for page in pages() for b in blocks(ROOT / page) if not b.run]
    # `nutlet demo` and the format of one file (they have tests of their own), and commands on files of the user.
    assert len(left_out) <= 7, left_out


def test_figures_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = program(ROOT / "bench" / "tables.py", monkeypatch)
    assert ROOT / "README.md" in tables.pages()
    assert tables.stale() == {}, "run python bench/tables.py"


def test_reference_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = program(ROOT / "docs" / "generate.py", monkeypatch)
    assert {page.name for page in generate.pages()} == {
        "choose.md", "api.md", "attacks.md", "cli.md", "methods.md", "report.md",
    }  # fmt: skip
    assert list(generate.stale()) == [], "run python docs/generate.py"


def test_docstrings_become_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    markdown = program(ROOT / "docs" / "docstrings.py", monkeypatch).markdown
    doc = """See :meth:`~nutlet.Method.plan` where ``a < b``, a <tag> and :math:`p`:

    ==  ====
    a   first
        row|
    ==  ====

    So::

        x = 1

    .. math:: a + b

    Args:
        x: of ``y``,
            for long.

    >>> 1  # doctest: +SKIP
    1
    """
    wanted = """See `plan` where `a < b`, a &lt;tag> and $p$:

| | |
| --- | --- |
| a | first row\\| |

So:

```text
x = 1
```

```math
a + b
```

**Args**

- `x`: of `y`,
  for long.

```pycon
>>> 1
1
```
"""
    assert "\n".join(markdown(doc)).replace("|  |  |", "| | |") == wanted
    assert "Args" not in "\n".join(markdown(doc, without=("Args",)))


def program(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_between_pages_lead_somewhere() -> None:
    everything = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in everything:
        if "_build" in page.parts:
            continue
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target and not target.startswith("mailto:"):
                found = page.parent / target
                assert found.exists(), f"{page.relative_to(ROOT)} links to {target}"
