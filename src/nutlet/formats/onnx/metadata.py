"""What whoever runs a file has to know of its inputs and outputs, in the metadata of the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nutlet.errors import ConfigError
from nutlet.formats.onnx.content import read_onnx
from nutlet.formats.onnx.limited import trust
from nutlet.storage import write_atomic

__all__ = ["describe", "described", "meant"]

_LONGEST = 1 << 20
"""Characters of one entry that are read."""
_NUMBERS = (int, float)
_KINDS: dict[str, tuple[type | tuple[type, ...], tuple[type, ...]]] = {
    "layout": (str, (str,)),
    "scale": (_NUMBERS, _NUMBERS),
    "mean": (list, _NUMBERS),
    "std": (list, _NUMBERS),
    "classes": (list, (str,)),
}
"""What each entry is, and of what its parts are."""


def describe(
    path: Path | str,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    scale: float | None = None,
    layout: str = "",
    classes: Sequence[str] = (),
) -> Path:
    """Write into an ONNX file how its input is prepared and what its outputs are called, and return its path.

    Runtimes hand the entries on as texts (in Python ``session.get_modelmeta().custom_metadata_map``), each of them
    JSON. What is not given is not written, and an entry that is there already stays. Anybody who has the file can read
    them.

    Args:
        path: of the file; it is written aside and renamed.
        mean: subtracted per channel, after scaling.
        std: divides per channel, after that.
        scale: pixels are multiplied by it first, 1/255 for bytes.
        layout: order of the axes, ``NCHW``.
        classes: name of each output of a classifier, in order.

    Raises:
        StorageError: the file cannot be read or written.
        ConfigError: mean and std are of different numbers of channels.

    >>> describe("model.onnx", mean=(0.5,), std=(0.25,), layout="NCHW")  # doctest: +SKIP
    PosixPath('model.onnx')
    """
    import onnx

    if mean and std and len(mean) != len(std):
        raise ConfigError(f"mean has {len(mean)} channels, std {len(std)}; expected as many")
    told = {"mean": list(mean), "std": list(std), "scale": scale, "layout": layout, "classes": list(classes)}
    given = {name: value for name, value in told.items() if value}
    if not given:
        return Path(path)
    proto = onnx.load_model_from_string(read_onnx(path))
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    entries |= {name: json.dumps(value) for name, value in given.items()}
    onnx.helper.set_model_props(proto, entries)
    content = proto.SerializeToString(deterministic=True)
    write_atomic(Path(path), lambda aside: aside.write_bytes(content))
    trust(content)
    return Path(path)


def described(path: Path | str) -> dict[str, Any]:
    """Return what :func:`describe` wrote into a file; nothing where it says nothing.

    Entries of the same names that mean something else, of other tools, are left out.

    Raises:
        StorageError: the file cannot be read.
    """
    import onnx

    entries = {entry.key: entry.value for entry in onnx.load_model_from_string(read_onnx(path)).metadata_props}
    return {name: value for name in _KINDS if (value := meant(name, entries.get(name, ""))) is not None}


def meant(name: str, text: str) -> Any:
    """Return what an entry of a file says of inputs or outputs; None where it is none that :func:`describe` writes.

    >>> meant("mean", "[0.5, 0.5]"), meant("mean", "of what?"), meant("author", "[0.5]")
    ([0.5, 0.5], None, None)
    """
    if name not in _KINDS:
        return None
    kind, parts = _KINDS[name]
    try:
        value = json.loads(text[:_LONGEST])
    except (ValueError, RecursionError):
        return None
    inner = value if isinstance(value, list) else [value]
    return value if isinstance(value, kind) and all(type(part) in parts for part in inner) else None
