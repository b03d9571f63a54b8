"""Every method on models that break tools: tied weights, recurrence, attention, in-place calls, padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from conformance.examples import EXAMPLES, body_of, check_constraints, check_finalized, check_saved
from nutlet.errors import ModelError
from nutlet.measurement.parity import parity
from nutlet.pipeline import compress


class Tied(nn.Module):
    """A weight in two layers, and a layer under two names that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(10, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.c.weight = self.b.weight
        self.alias = self.b
        self.fc = nn.Linear(16, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.fc(self.c(self.alias(self.b(x).relu())).relu())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.mid, self.fc = nn.Linear(8, 16), nn.Linear(16, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mid(self.lstm(x.view(-1, 2, 5))[0][:, -1]).relu())


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Linear(5, 8), nn.Linear(8, tiny.CLASSES)
        self.layer = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(self.embed(x.view(-1, 2, 5))).mean(1))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(10, 16), nn.Linear(16, 16), nn.Linear(16, tiny.CLASSES)
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a(x))
        y = self.b(x)
        y += x
        return self.fc(self.dropout(self.relu(y)))


class PaddedShortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.c, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(self.b(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


ODD: dict[type[nn.Module], tuple[int, ...]] = {
    Tied: (10,),
    Recurrent: (10,),
    Transformer: (10,),
    InPlace: (10,),
    PaddedShortcut: (3, 8, 8),
}
CHAINS = [
    *([name] for name in sorted(EXAMPLES)),
    ["PruneWeights", "PruneChannels", "Quantize", "FineTune"],
    ["Quantize", "Factorize", "PruneChannels", "Distill"],
]
every_model = pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)


@every_model
@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_odd_models(chain: list[str], kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = tiny.tiny_data(ODD[kind])
    model = tiny.settled(kind(), data.calibration.x)
    steps = [EXAMPLES[name] for name in chain]
    # None of these has a block but the transformer layer.
    if chain == ["DropBlocks"] and kind is not Transformer:
        with pytest.raises(ModelError, match="found no block"):
            compress(model, steps, data)
        return
    result = compress(model, steps, data)
    check_constraints(body_of(result.model))
    check_saved(result, model, data, tmp_path)
    check_finalized(result.model, data)


@every_model
def test_odd_models_export_with_parity(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = tiny.tiny_data(ODD[kind])
    model = tiny.settled(kind(), data.calibration.x)
    result = compress(model, [EXAMPLES["PruneWeights"], EXAMPLES["Quantize"]], data)
    check = parity(result.model, result.export(tmp_path / "model.onnx"), data.train)
    assert check.agreement >= 0.95


def test_a_weight_that_attention_reads_is_not_factorized() -> None:
    data = tiny.tiny_data((10,))
    step = compress(Transformer(), [EXAMPLES["Factorize"]], data).steps[1]
    assert any("another module reads its weight" in note for note in step.notes)
