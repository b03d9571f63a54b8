"""``package.module:factory``, ``path/to/file.py:factory`` and ``module:factory(20, classes=10)``, found and called."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from nutlet.errors import NutletError, nearest
from nutlet.storage import digest

__all__ = ["build", "is_factory"]

_SPEC = re.compile(r"(?P<where>.+?):(?P<name>[A-Za-z_][\w.]*)(?P<call>\(.*\))?", re.DOTALL)


def is_factory(spec: str) -> bool:
    """Tell whether ``spec`` has the form ``where:factory``.

    >>> is_factory("arch:ResNet(20)"), is_factory("train.npz")
    (True, False)
    """
    return _SPEC.fullmatch(spec) is not None


def build(spec: str, error: type[NutletError]) -> Any:
    """Import what ``spec`` names and call it; an object that cannot be called is returned as it is.

    Args:
        spec: ``where:name`` with ``where`` a module (importable from the current directory too) or a ``.py`` file,
            optionally followed by literal arguments: ``arch:ResNet(20, classes=10)``.
        error: what to raise; a model and a data set fail under different names.

    >>> from nutlet.errors import ModelError
    >>> build("fractions:Fraction(3, denominator=4)", ModelError)
    Fraction(3, 4)
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise error(f"found {spec!r}; expected `package.module:factory` or `path/to/file.py:factory`")
    module = _module(match["where"], error)
    target: Any = module
    for part in match["name"].split("."):
        if not hasattr(target, part):
            public = [name for name in vars(target) if not name.startswith("_")] if hasattr(target, "__dict__") else []
            raise error(f"{match['where']!r} has no {match['name']!r}; {nearest(part, public)}")
        target = getattr(target, part)
    args, kwargs = _arguments(match["call"] or "()", spec, error)
    # A model that exists already can be called too, but calling it would run it.
    if not isinstance(target, type) and (not callable(target) or hasattr(target, "state_dict")):
        if match["call"]:
            raise error(f"{spec!r} names an object that exists already; expected a function or class to call")
        return target
    try:
        return target(*args, **kwargs)
    except NutletError:
        raise
    except Exception as problem:
        raise error(
            f"calling {spec!r} raised {type(problem).__name__}: {problem}; expected a factory that these arguments "
            "suffice for (write them as `module:factory(20, classes=10)`)"
        ) from problem


def _arguments(call: str, spec: str, error: type[NutletError]) -> tuple[list[Any], dict[str, Any]]:
    """Read literal arguments; anything that would have to be evaluated is refused."""
    try:
        node = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(node, ast.Call) or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError(call)
        return (
            [ast.literal_eval(argument) for argument in node.args],
            {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords},
        )
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as problem:
        raise error(
            f"the arguments in {spec!r} are not literals; expected numbers, strings, booleans, lists or dictionaries, "
            "as in `arch:ResNet(20, classes=10)`; for anything else write a small factory function"
        ) from problem


def _module(where: str, error: type[NutletError]) -> ModuleType:
    if where.endswith(".py"):
        return _file_module(Path(where), error)
    if not all(part.isidentifier() for part in where.split(".")):
        raise error(f"found {where!r} before the colon; expected a module name, or a path that ends in .py")
    _importable(Path.cwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as problem:
        if problem.name is None or not (where + ".").startswith(problem.name + "."):
            raise error(
                f"{where!r} needs the module {problem.name!r}, which is not installed; install it first"
            ) from problem
        raise error(
            f"found no module {where!r} in {Path.cwd()} nor among the installed packages; expected an importable name "
            "(run from the folder that holds it), or the path of a .py file"
        ) from problem
    except Exception as problem:
        raise error(
            f"importing {where!r} raised {type(problem).__name__}: {problem}; mend the module first"
        ) from problem


def _file_module(path: Path, error: type[NutletError]) -> ModuleType:
    if not path.is_file():
        raise error(f"found no file {path}; expected a Python file that defines the factory")
    path = path.resolve()
    name = path.stem if path.stem.isidentifier() else f"user_{digest(str(path))[:12]}"
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(path):
            return known
        name = f"{name}_{digest(str(path))[:12]}"
    _importable(path.parent)  # for the imports of its neighbours
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Registered, so that dataclasses and pickling inside the file find their module.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        del sys.modules[name]
        raise error(f"running {path} raised {type(problem).__name__}: {problem}; mend the file first") from problem
    return module


def _importable(folder: Path) -> None:
    """Let modules be imported from ``folder``, as ``python -m`` does; it stays so, for imports made later."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
