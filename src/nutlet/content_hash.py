"""A hash of everything that a result depends on, so that a finished piece of work is found again and never mistaken."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["fingerprint", "source_code"]


def fingerprint(*values: Any) -> str:
    """Return a hexadecimal SHA-256 over plain values, arrays, modules, dataclasses, functions and containers of them.

    The path of a file counts as the content of that file. A class or function of the user's counts as its source, with
    its base classes, its defaults and what it closes over, but without what it calls. An object that has a method
    ``fingerprint`` says itself what it is.

    Raises:
        TypeError: a value of another kind, whose content cannot be told.

    >>> fingerprint(1, "a", np.zeros(2)) == fingerprint(1, "a", np.zeros(2))
    True
    >>> fingerprint([1, 2], 3) == fingerprint([1], 2, 3)
    False
    """
    sha = hashlib.sha256()
    _add(sha, list(values))
    return sha.hexdigest()


def source_code(thing: object) -> str:
    """Return the source of a class or function from outside; that of torch and nutlet is told by their versions."""
    if thing is None or _package(thing) in ("builtins", "torch", "nutlet"):
        return ""
    try:
        return inspect.getsource(thing)  # type: ignore[arg-type]
    except (OSError, TypeError):  # defined in a prompt, or in no file at all
        return getattr(thing, "__qualname__", "")


def _package(thing: object) -> str:
    return (getattr(thing, "__module__", None) or "").partition(".")[0]


def _add(sha: Any, value: Any) -> None:
    sha.update(f"<{type(value).__qualname__}>".encode())
    if isinstance(value, Path) and value.is_file():
        with value.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    elif value is None or isinstance(value, (bool, int, float, str, Path)):
        sha.update(repr(value).encode())
    elif isinstance(value, bytes):
        sha.update(hashlib.sha256(value).digest())
    elif isinstance(value, (Tensor, np.ndarray)):
        _add_array(sha, value)
    elif isinstance(value, nn.Module):
        _add_module(sha, value)
    elif isinstance(value, dict):
        for key in sorted(value, key=repr):
            _add(sha, key)
            _add(sha, value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(sha, item)
    elif isinstance(value, functools.partial):
        _add(sha, [value.func, value.args, value.keywords])
    elif inspect.ismethod(value):
        _add(sha, [value.__self__, value.__func__])
    elif callable(value) and hasattr(value, "__qualname__"):
        _add_code(sha, value)
    elif callable(getattr(value, "fingerprint", None)):
        sha.update(value.fingerprint().encode())
    elif dataclasses.is_dataclass(value):
        _add_code(sha, type(value))
        for option in dataclasses.fields(value):
            _add(sha, option.name)
            _add(sha, getattr(value, option.name))
    else:
        raise TypeError(
            f"found a {type(value).__name__}, whose content cannot be told; expected plain values or arrays"
        )
    sha.update(b";")


def _add_array(sha: Any, value: Tensor | np.ndarray) -> None:
    sha.update(repr((tuple(value.shape), str(value.dtype))).encode())
    if isinstance(value, Tensor):  # as bytes: NumPy knows no bfloat16
        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif value.dtype.hasobject:
        raise TypeError(f"found an array of {value.dtype}, whose content cannot be told; expected numbers")
    sha.update(np.ascontiguousarray(value).tobytes())


def _add_module(sha: Any, module: nn.Module) -> None:
    """Add weights, structure, code, and plain attributes: `str` of a module shows only what its author chose."""
    sha.update(str(module).encode())
    _add(sha, dict(module.state_dict()))
    for kind in sorted({type(part) for part in module.modules()}, key=repr):
        _add_code(sha, kind)
    for name, part in module.named_modules():
        _add(sha, name)
        _add(sha, {key: item for key, item in vars(part).items() if not key.startswith("_") and _is_plain(item)})


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, FunctionType):
        try:
            return all(_is_plain(cell.cell_contents) for cell in value.__closure__ or ())
        except ValueError:  # closes over a name that has no value yet
            return False
    return value is None or isinstance(value, (bool, int, float, str, Tensor, np.ndarray, BuiltinFunctionType))


def _add_code(sha: Any, thing: Any) -> None:
    """Add the name and source of a function or class, with what the source does not show."""
    own, *inherited = map(source_code, inspect.getmro(thing) if inspect.isclass(thing) else [thing])
    # Where there is a source, not the module's name: a file may be imported under several.
    sha.update(f"{'' if own else thing.__module__}.{thing.__qualname__}".encode())
    for source in (own, *inherited):
        sha.update(source.encode())
    if isinstance(thing, FunctionType) and _package(thing) != "torch":
        _add(sha, [thing.__defaults__, thing.__kwdefaults__, [cell.cell_contents for cell in thing.__closure__ or ()]])
        if thing.__name__ == "<lambda>":  # its source is the whole line, on which there may be another
            code = thing.__code__
            plain = [constant for constant in code.co_consts if _is_plain(constant)]
            _add(sha, [code.co_code, code.co_names, code.co_varnames, plain])
