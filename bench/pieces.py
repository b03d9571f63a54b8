"""Pieces of a long bench, each done once and kept under a name that a person can read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nutlet.storage import write_atomic

Piece = dict[str, Any]


def piece(path: Path, make: Callable[[], Piece]) -> Piece:
    """Return what lies at ``path``, or make it and keep it there; arrays and plain JSON, with the seconds it took."""
    if not path.exists():
        start = time.perf_counter()
        made = make()
        made = {"seconds": time.perf_counter() - start, **made}
        arrays = {name: value for name, value in made.items() if isinstance(value, np.ndarray)}
        plain = json.dumps({name: value for name, value in made.items() if name not in arrays})

        def write(aside: Path) -> None:
            with aside.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, json=np.array(plain), **arrays)

        write_atomic(path, write)
        print(f"{path.parent.name}/{path.stem}: {made['seconds']:.1f} s", flush=True)
    with np.load(path, allow_pickle=False) as stored:
        found = {name: stored[name] for name in stored.files if name != "json"}
        return {**found, **json.loads(str(stored["json"]))}


def seconds_of(pieces: Iterable[Piece]) -> float:
    """Return what the pieces took when they were made."""
    return sum(float(made["seconds"]) for made in pieces)
