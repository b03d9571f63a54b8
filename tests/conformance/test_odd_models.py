"""Every method on models that break tools: tied weights, recurrence, attention, in-place calls, padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from conformance.examples import EXAMPLES, body_of, brief, check_constraints, check_finalized, check_saved
from nutlet.compression.pipeline import compress
from nutlet.errors import ConfigError, ModelError
from nutlet.graph.finalize import finalize
from nutlet.measurement.parity import parity
from nutlet.methods import (
    DropBlocks,
    Factorize,
    PruneChannels,
    PruneHeads,
    PruneWeights,
    Quantize,
    ReestimateNorms,
    Student,
)
from nutlet.methods.base import Method
from nutlet.training.context import Context


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
    *(pytest.param([name], marks=brief(name).marks, id=name) for name in sorted(EXAMPLES)),
    pytest.param(["PruneWeights", "PruneChannels", "Quantize", "FineTune"], id="pruned first"),
    pytest.param(["Quantize", "Factorize", "PruneChannels", "Distill"], id="quantized first"),
]


def missing(method: Method) -> str | None:
    """Return what a method says of a model that has nothing for it, where it needs more than layers."""
    if isinstance(method, PruneHeads):
        return "found no attention"
    blocks = isinstance(method, DropBlocks) or (isinstance(method, Student) and method.depth < 1)
    return "found no block" if blocks else None


every_model = pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)


@every_model
@pytest.mark.parametrize("chain", CHAINS)
def test_odd_models(chain: list[str], kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = tiny.tiny_data(ODD[kind])
    model = tiny.settled(kind(), data.calibration.x)
    steps = [EXAMPLES[name] for name in chain]
    # None of these has a block or attention but the transformer layer.
    lacking = [sentence for step in steps if (sentence := missing(step))]
    if lacking and kind is not Transformer:
        with pytest.raises(ModelError, match=lacking[0]):
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


class Encoder(nn.Module):
    """Blocks that are called with keywords, of which the container reads the first one's inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Linear(5, 8), nn.Linear(8, tiny.CLASSES)
        layer = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embed(x.view(-1, 2, 5))).mean(1))


def test_blocks_called_with_keywords_can_go_and_one_that_is_read_cannot(tmp_path: Path) -> None:
    data = tiny.tiny_data((10,))
    model = tiny.settled(Encoder(), data.calibration.x)
    result = compress(model, [DropBlocks(drop=2)], data)
    step = result.steps[1]
    assert sorted(step.plan["dropped"]) == ["encoder.layers.1", "encoder.layers.2"]
    assert any("encoder.layers.0: the model does not run without it (AttributeError" in note for note in step.notes)
    check_saved(result, model, data, tmp_path)
    assert parity(result.model, result.export(tmp_path / "model.onnx"), data.train).agreement == 1.0
    with pytest.raises(ConfigError, match=r"only 2 blocks can go: .*layers\.0: the model does not run without it"):
        compress(model, [DropBlocks(drop=3)], data)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(10, 16))
        self.b, self.fc = nn.Linear(16, 16), nn.Linear(16, tiny.CLASSES)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.norm(self.a(x)).relu()).relu())


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_a_weight_that_somebody_else_parametrizes_is_refused_or_left_alone(name: str, tmp_path: Path) -> None:
    data = tiny.tiny_data((10,))
    model = Normed()
    if sentence := missing(EXAMPLES[name]):
        with pytest.raises(ModelError, match=rf"{sentence}|the weight of a .*remove_parametrizations"):
            compress(model, [EXAMPLES[name]], data)
        return
    if type(EXAMPLES[name]).train is Method.train and not isinstance(EXAMPLES[name], ReestimateNorms):
        with pytest.raises(ModelError, match=r"the weight of a .*remove_parametrizations.* exclude='a'"):
            compress(model, [EXAMPLES[name]], data)
    steps = [replace(EXAMPLES[name], exclude=("a",))]
    if isinstance(EXAMPLES[name], (PruneChannels, Student)):
        steps = [replace(steps[0], include=("b",))]
    result = compress(model, steps, data)
    assert torch.equal(body_of(result.model).a.weight, model.a.weight)
    check_saved(result, model, data, tmp_path)
    check_finalized(result.model, data)


def test_tied_layers_stay_tied_and_are_stored_once() -> None:
    data = tiny.tiny_data((10,))
    model = tiny.settled(Tied(), data.calibration.x)
    low = compress(model, [Factorize(energy=0.3)], data).steps
    assert sum("another layer has the same weight" in note for note in low[1].notes) == 2
    assert low[1].size.parameters < low[0].size.parameters
    for method in (PruneWeights(sparsity=0.5, distribution="uniform"), Quantize()):
        result = compress(model, [method], data)
        baked = body_of(finalize(result.model))
        integers = isinstance(method, Quantize)
        stored = [m.parametrizations["weight"].original if integers else m.weight for m in (baked.b, baked.c)]
        assert stored[0] is stored[1]
        size = result.steps[1].size
        rows = {layer.name: layer for layer in size.layers}
        assert rows["c"].bytes < rows["b"].bytes
        assert rows["c"].bits == (8 if integers else 32)
        # Scales are stored besides, zero points are not.
        scales = 16 + 16 + 16 + tiny.CLASSES if integers else 0
        assert size.parameters == result.steps[0].size.parameters + scales


class Inverted(nn.Module):
    """A residual block with a piece inside that keeps its shape as well."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.shrink = nn.Linear(16, 24), nn.Linear(24, 16)
        self.inner = nn.Sequential(nn.Linear(24, 24), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shrink(self.inner(self.expand(x).relu()))


@pytest.mark.parametrize(
    ("include", "dropped"),
    [(("*",), "1"), (("1",), "1"), (("1.inner",), "1.inner"), (("[0-9]",), "1"), (("1*",), "1"), (("1.*",), "1.inner")],
)
def test_include_reaches_a_block_with_another_inside(include: tuple[str, ...], dropped: str) -> None:
    data = tiny.tiny_data((10,))
    model = nn.Sequential(nn.Linear(10, 16), Inverted(), nn.Linear(16, tiny.CLASSES)).eval()
    plan = DropBlocks(drop=1, include=include).plan(model, Context(data=data, teacher=model))
    assert plan["dropped"] == [dropped]
