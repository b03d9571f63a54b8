"""One small job for the command line: a model in a file, data, a recipe, and the command that runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import Result
from typer.testing import CliRunner

from nutlet.cli import app

MODULE = "net_of_job.py"
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.fc(nn.functional.max_pool2d(x, 2).flatten(1))

class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.LayerNorm(64)

    def forward(self, x):
        return self.scale(x.flatten(1))[:, :3]

def make(classes=3):
    torch.manual_seed(0)
    return Net(classes)
"""


def arrays(count: int = 120, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return images ``(N, 1, 8, 8)`` float32 with a bright row that tells the class, and labels."""
    random = np.random.default_rng(0)
    y = random.integers(0, classes, count)
    x = random.random((count, 1, 8, 8), dtype=np.float32)
    x[np.arange(count), 0, y * 2] += 1
    return x, y


class Job:
    """A folder with a module, ``data.npz`` and recipes, and the command on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        (folder / MODULE).write_text(NET)
        self.save("data.npz", *arrays())

    def save(self, name: str, x: np.ndarray, y: np.ndarray) -> Path:
        """Write a data file; a sixth of the examples are for testing."""
        cut = len(y) * 5 // 6
        np.savez(self.folder / name, x_train=x[:cut], y_train=y[:cut], x_test=x[cut:], y_test=y[cut:])
        return self.folder / name

    def arguments(
        self, *more: object, model: str = "make", recipe: str = "steps: [Quantize]", data: object = "data.npz"
    ) -> list[str]:
        """Return the arguments of ``nutlet compress`` for this job."""
        path = self.folder / "recipe.yaml"
        path.write_text(recipe)
        data = str(data) if ":" in str(data) else self.folder / str(data)
        fixed = ["compress", f"{self.folder / MODULE}:{model}", "-d", data, "-r", path, "-o", self.out]
        return [str(part) for part in (*fixed, "--calibration", 40, "--seconds", 0.02, *more)]

    def compress(self, *more: object, **options: object) -> Result:
        """Run ``nutlet compress`` in this process."""
        return invoke(*self.arguments(*more, **options))  # type: ignore[arg-type]

    def halves(self) -> list[Path]:
        """Return files that were begun and not finished."""
        return [path for path in self.folder.rglob("*") if path.name.endswith(".part")]


def invoke(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
