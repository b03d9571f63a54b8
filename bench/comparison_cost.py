"""What comparing every step, file and saved form costs, in processor time, on ResNet-20.

    python bench/comparison_cost.py [quantize] [chain]

A run is compressed, saved and exported as users do it, with a clock around each comparison; what that took is set
against the whole run.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import nutlet as nl
from families import cifar10, original
from nutlet.compression import compressed as artifact
from nutlet.compression import pipeline
from nutlet.compression import verify as comparison
from nutlet.formats.onnx import comparison as exported
from rows import Rows

BAR = 0.15
"""Most of a run that comparisons may take."""
RECIPES: dict[str, list[nl.Method]] = {
    "quantize": [nl.Quantize()],
    "chain": [nl.PruneChannels(ratio=0.3), nl.Distill(epochs=1), nl.Quantize()],
}
PARTS: list[tuple[Any, str]] = [
    (comparison, "probe"),
    (comparison._Step, "__post_init__"),
    (comparison._Step, "problems"),
    (pipeline, "probe"),
    (pipeline, "trained"),
    (artifact, "_check_packed"),
    (exported, "disagreement"),
]
"""Where comparing happens; a step is copied besides, which is part of the first two."""


@contextlib.contextmanager
def clocked(spent: list[float]) -> Iterator[None]:
    """Add the processor time of every comparison in the block to ``spent``, each once."""
    inside = False

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return work(*args, **kwargs)
            inside, start = True, time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                inside = False
                spent.append(time.process_time() - start)

        return run

    with contextlib.ExitStack() as stack:
        for owner, name in PARTS:
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name))))
        yield


def main() -> None:
    torch.set_num_threads(1)
    for case in sys.argv[1:] or RECIPES:
        rows = Rows("comparison_cost", case, [0])
        data, model = cifar10(), original()
        if case == "chain":  # an epoch on a tenth of the examples: a short training, not to flatter the share
            data = nl.Data(data.train.subset(slice(0, 4500)), data.validation, data.calibration)
        spent: list[float] = []
        start = time.process_time()
        with clocked(spent), tempfile.TemporaryDirectory() as folder:
            small = nl.compress(model, RECIPES[case], data)
            small.save(Path(folder) / "saved")
            small.export(Path(folder) / "model.onnx")
        whole = time.process_time() - start
        said = [note for step in small.steps for note in step.notes if "compared with the model before" in note]
        rows.add("run_seconds", whole, "s of one processor")
        rows.add("comparison_seconds", sum(spent), "s of one processor")
        rows.add("share", sum(spent) / whole, "share", BAR)
        rows.add("false_alarms", len(said), "notes", 0)
        rows.write()
        print(f"{case}: {sum(spent):.1f} of {whole:.1f} s, {sum(spent) / whole:.1%}", *said, sep="\n")


if __name__ == "__main__":
    main()
