"""The rules of the house: layers, public names, quick imports, documentation beside every option."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
import time
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import nutlet
from nutlet.methods import known_methods
from nutlet.methods.base import Method

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
FILES = sorted(SOURCE.rglob("*.py"))

FOLDERS = (
    "tasks",
    "data",
    "constraints",
    "graph",
    "training",
    "formats",
    "measurement",
    "report",
    "loading",
    "jobs",
    "oracle",
    "methods",
    "compression",
    "attacks",
    "auditing",
    "cli",
)
"""The folders of nutlet, lowest first. Each may import what lies below it; what lies beside them is the ground."""
ABOVE = {"nutlet", "nutlet.__main__"}
"""What stands above all folders."""
PROGRAMS = {"nutlet.__main__", "nutlet.formats.onnx.attempt", "nutlet.measurement.probe"}
"""Modules that are run and not imported: they have no public names."""
LONG: dict[str, str] = {}
"""Files of more than 400 lines, and why they are not split."""
PAGES = "\n".join(
    re.sub(r"(?s)<!-- generated: .*?<!-- end -->", "", page.read_text())
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
)
"""What people wrote; what is made from docstrings names everything anyway."""


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of nutlet that a file imports, inside functions too, but not for type checkers alone."""
    names = {module_name(file) for file in FILES}
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            if node.module and node.module.partition(".")[0] == "nutlet":
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & names
                yield from inner or {node.module}
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "nutlet")
        todo += ast.iter_child_nodes(node)


IMPORTS = {module_name(path): sorted(set(imports(path))) for path in FILES}


def height(module: str) -> int:
    if module in ABOVE:
        return len(FOLDERS)
    folder = module.split(".")[1]
    return FOLDERS.index(folder) if folder in FOLDERS else -1


def test_every_folder_has_its_place() -> None:
    assert {path.relative_to(SOURCE).parts[1] for path in FILES if len(path.relative_to(SOURCE).parts) > 2} == set(
        FOLDERS
    )


def test_modules_import_only_from_lower_folders() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, wanted in IMPORTS.items()
        for other in wanted
        if height(other) > height(module)
    ]
    assert wrong == []


def test_folders_are_at_most_two_levels_deep() -> None:
    assert max(len(path.relative_to(SOURCE).parts) for path in FILES) == 4  # nutlet/folder/folder/module.py


def test_contributors_are_told_the_order_of_the_folders() -> None:
    assert f"`{' < '.join(FOLDERS)}`" in " ".join((ROOT / "CONTRIBUTING.md").read_text().split())


def test_no_import_cycle() -> None:
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the modules


def test_every_public_name_is_documented_and_typed() -> None:
    for name in nutlet.__all__:
        value = getattr(nutlet, name)
        assert inspect.getdoc(value), f"nutlet.{name} has no docstring"
        if inspect.isfunction(value):
            check_typed(value)
        else:
            for attribute, member in vars(value).items():
                member = getattr(member, "__func__", member)
                if inspect.isfunction(member) and not attribute.startswith("_"):
                    assert inspect.getdoc(getattr(value, attribute)), f"{name}.{attribute} has no docstring"
                    check_typed(member)
    # As the linter sorts: names in capitals alone first.
    assert sorted(nutlet.__all__, key=lambda name: (not name.isupper(), name)) == nutlet.__all__
    assert set(nutlet.__all__) == set(nutlet._HOME)


def test_no_public_name_is_hidden_by_a_module() -> None:
    # Importing nutlet.x sets the attribute x of nutlet, and a name loaded on demand is then never loaded.
    assert set(nutlet.__all__) & {name.split(".")[1] for name in IMPORTS if name.count(".") == 1} == set()


def check_typed(function: typing.Any) -> None:
    hints = typing.get_type_hints(function)
    wanted = {*inspect.signature(function).parameters, "return"} - {"self", "cls"}
    assert wanted <= set(hints), f"{function.__qualname__} has no type for {wanted - set(hints)}"


def test_every_documented_example_uses_a_public_name() -> None:
    used = set(re.findall(r"\bnl\.([A-Za-z_]+)", PAGES))
    assert used <= set(nutlet.__all__), used - set(nutlet.__all__)


def test_every_module_says_what_is_public() -> None:
    for name in IMPORTS:
        if name in PROGRAMS:
            continue
        module = importlib.import_module(name)
        assert module.__doc__, f"{name} has no docstring"
        # A package that only holds modules has nothing to list.
        path = Path(module.__file__ or "")
        if path.name == "__init__.py" and not IMPORTS[name]:
            continue
        public = getattr(module, "__all__", None)
        assert public is not None, f"{name} has no __all__"
        for entry in public:
            assert hasattr(module, entry), f"{name}.__all__ names {entry!r}, which is not there"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)


def test_importing_nutlet_is_quick() -> None:
    code = "import sys, time; s = time.process_time(); import nutlet; print(time.process_time() - s, *sys.modules)"
    seconds, *modules = run(code).stdout.split()
    assert {"torch", "numpy", "onnxruntime", "rich", "typer"} & set(modules) == set()
    assert float(seconds) < 1


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = """
import sys, time
sys.argv = ["nutlet", "--help"]
from nutlet.cli import main
try:
    main()
except SystemExit:
    pass
print(time.process_time(), *sys.modules)
"""
    # The least of three: processor time too is longer on a busy machine.
    figures = [run(code).stdout.splitlines()[-1].split() for _ in range(3)]
    assert {"torch", "numpy", "onnx", "onnxruntime", "accelerate"} & set(figures[0][1:]) == set()
    assert min(float(line[0]) for line in figures) < 0.5


@pytest.mark.parametrize(
    "command", ["check", "compress", "diagnose", "measure", "report", "demo", "methods", "audit", "attacks"]
)
def test_help_of_each_command(command: str) -> None:
    start = time.perf_counter()
    from typer.testing import CliRunner

    from nutlet.cli import app

    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0, result.output
    assert time.perf_counter() - start < 5


# Not those that other tests register in the same process.
OURS = [kind for kind in known_methods().values() if kind.__module__.startswith("nutlet.")]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_method_is_explained(kind: type[Method]) -> None:
    assert kind.use_when, f"{kind.__name__}.when is empty; expected one line: when to pick it"
    assert "\n" not in kind.use_when
    assert len(kind.use_when) < 120
    assert re.search(rf"\b{kind.__name__}\b", PAGES), f"no page names {kind.__name__}; add it to docs/howto/choose.md"
    described = set(re.findall(r"^ {4}(\w+): ", doc_of(kind), re.MULTILINE))
    options = {option.name for option in dataclasses.fields(kind)}
    assert options - described == set(), f"{kind.__name__}: Args does not describe these options"
    own = set(re.findall(r"^ {4}(\w+): ", arguments(kind), re.MULTILINE))
    assert own - options == set(), f"{kind.__name__}: Args describes what is no option"


def doc_of(kind: type) -> str:
    return "\n".join(arguments(base) for base in kind.__mro__ if base is not object)


def arguments(kind: type) -> str:
    """Return the Args section of a docstring, with four spaces before each name."""
    doc = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    found = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", doc, re.MULTILINE)
    return found[1] if found else ""


def test_files_stay_short() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in FILES}
    assert {name: n for name, n in lengths.items() if n > 400 and name not in LONG} == {}


def test_nothing_names_a_private_place() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    private = re.compile(r"(?<![\w.$/-])/(?:home|root|Users|opt|work)/\w")
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".json", ".yaml", ".html", ""} and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not private.search(text), f"{name} names a path of one machine: {private.search(text)}"
