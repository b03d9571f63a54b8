"""Which format a file has."""

from __future__ import annotations

from pathlib import Path

from nutlet.errors import ConfigError, StorageError, nearest, printable, shown
from nutlet.formats.base import REGISTRY, Format
from nutlet.formats.files import BEGINNING, beginning
from nutlet.formats.onnx import ONNX

__all__ = ["DEFAULT", "format_for", "format_named", "format_of", "is_model_file", "known_formats"]

DEFAULT = ONNX
"""What is written where nobody names a file."""
REGISTRY.add(ONNX)


def known_formats() -> dict[str, Format]:
    """Return every format by name: ours, and those of installed packages (entry point ``nutlet.formats``)."""
    return REGISTRY.known()


def format_named(name: str) -> Format:
    """Return the format called ``name``.

    Raises:
        ConfigError: there is none of that name.
    """
    known = known_formats()
    if name not in known:
        raise ConfigError(f"there is no format {shown(name)}; {nearest(str(name), known)}")
    return known[name]


def format_for(path: Path | str) -> Format:
    """Return the format in which a file is written at ``path``, by the end of its name.

    Raises:
        ConfigError: no format has that end.
    """
    found = _by_suffix(path)
    if not found:
        raise ConfigError(f"{printable(str(path))} names no format; expected a name that ends in {_suffixes()}")
    return found[0]


def format_of(path: Path | str, content: bytes | None = None) -> Format:
    """Return the format of a file: by the end of its name, and by its first bytes where that says nothing.

    Args:
        path: of the file; where it does not exist, its name alone is gone by.
        content: of the file, where it was read already.

    Raises:
        StorageError: it is of no known format, or there is none.

    >>> format_of("model.onnx").name
    'ONNX'
    """
    found = _by_suffix(path)
    if len(found) == 1:
        return found[0]
    expected = f"a file whose name ends in {_suffixes()}"
    begins = beginning(path, expected) if content is None else content[:BEGINNING]
    told = [form for form in found or known_formats().values() if any(map(begins.startswith, form.magic))]
    if not told:
        raise StorageError(
            f"{printable(str(path))} is of no format that is known here, by its name and its first bytes; "
            f"expected {expected}"
        )
    return max(told, key=lambda form: max(len(magic) for magic in form.magic if begins.startswith(magic)))


def is_model_file(name: str) -> bool:
    """Whether ``name`` ends as files of a known format do."""
    return bool(_by_suffix(name))


def _by_suffix(path: Path | str) -> list[Format]:
    return [form for form in known_formats().values() if str(path).lower().endswith(form.suffixes)]


def _suffixes() -> str:
    return " or ".join(suffix for form in known_formats().values() for suffix in form.suffixes)
