"""Whether the shipped file answers as the model in PyTorch does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nutlet.data.examples import Examples
from nutlet.formats.runtime import Runtime
from nutlet.measurement.intervals import module_answers

__all__ = ["Parity", "parity"]


@dataclass(frozen=True)
class Parity:
    """Agreement of a module with its exported file.

    Args:
        examples: how many real inputs were compared.
        agreement: mean agreement of the task, 0 to 1: of classes the share with the same top-1 answer.
        max_difference: largest absolute difference of any output.
    """

    examples: int
    agreement: float
    max_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"the file agrees with PyTorch on {self.agreement:.1%} of {self.examples} inputs, "
            f"largest difference {self.max_difference:.3g}"
        )


def parity(model: nn.Module, path: Path | str, examples: Examples, *, count: int = 256) -> Parity:
    """Compare ``model`` with the file at ``path`` on the first ``count`` examples."""
    some = examples.subset(slice(0, count))
    simulated = np.concatenate([outputs for outputs, _ in module_answers(model, some)])
    shipped = Runtime(path, columns=some.columns).predict(some)
    return Parity(
        examples=len(some),
        agreement=float(some.task.agree(torch.from_numpy(simulated), torch.from_numpy(shipped)).mean()),
        max_difference=float(np.abs(simulated - shipped).max()),
    )
