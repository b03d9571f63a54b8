"""Every ordered pair of methods, each with every other and with itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from conformance.examples import (
    EXAMPLES,
    body_of,
    check_constraints,
    check_finalized,
    check_saved,
)
from nutlet.artifact import Compressed
from nutlet.data import Data
from nutlet.errors import NutletError
from nutlet.graph.constraints import (
    Mask,
    WeightQuantizer,
    constrained_layers,
    constrained_weight,
    constraints,
)
from nutlet.graph.scope import Layer
from nutlet.graph.sites import Edited
from nutlet.measurement.parity import parity
from nutlet.pipeline import compress
from nutlet.predict import predict

Make = Callable[[str], tuple[nn.Module, Data]]
PAIRS = list(product(sorted(EXAMPLES), repeat=2))

REFUSED: dict[tuple[str, str, str], str] = {}
"""``(model, first, second)`` to the words of the error, where refusing is the right answer: nowhere so far."""

every_pair = pytest.mark.parametrize(("first", "second"), PAIRS)
every_model = pytest.mark.parametrize("kind", ["cnn", "mlp"])


def run(make: Make, kind: str, first: str, second: str) -> tuple[Compressed, Compressed, nn.Module, Data]:
    """Return the result of the first method, of both, the original and the data."""
    model, data = make(kind)
    chain = [EXAMPLES[first], EXAMPLES[second]]
    if (expected := REFUSED.get((kind, first, second))) is not None:
        with pytest.raises(NutletError, match=expected):
            compress(model, chain, data)
        pytest.skip("refused with a sentence, as it should be")
    return compress(model, chain[:1], data), compress(model, chain, data), model, data


@every_model
@every_pair
def test_pair(first: str, second: str, kind: str, make: Make, tmp_path: Path) -> None:
    one, both, model, data = run(make, kind, first, second)
    assert [step.name for step in both.steps] == ["original", first, second]
    assert both.model(data.train.x).shape == (64, 4)
    check_constraints(body_of(both.model))
    _check_first_survives(one, both, first, second)
    _check_second_acted(one, both, second)
    check_saved(both, model, data, tmp_path)
    check_finalized(both.model, data)


def _check_first_survives(one: Compressed, both: Compressed, first: str, second: str) -> None:
    """Assert what the second step owes to the first."""
    before, after = body_of(one.model), body_of(both.model)
    gone = set(both.steps[-1].plan.get("dropped", ())) | set(both.steps[-1].plan.get("ranks", ()))
    kept = [
        (name, layer, after.get_submodule(name))
        for name, layer in constrained_layers(before)
        if not any(name == g or name.startswith(g + ".") for g in gone)
    ]
    if second in ("FineTune", "Distill", "Quantize", "PruneWeights"):
        for name, old, new in kept:
            for mask in (c for c in constraints(old) if isinstance(c, Mask)):
                assert not bool(constrained_weight(new)[~mask.mask].any()), f"{name}: {second} revived a weight"
    if first == "PruneWeights":
        assert all(any(isinstance(c, Mask) for c in constraints(new)) for _, _, new in kept)
    if first == "Quantize":
        layers = [(n, m) for n, m in after.named_modules() if isinstance(m, Layer)]
        assert layers
        assert all(any(isinstance(c, WeightQuantizer) for c in constraints(m)) for _, m in layers)
        assert isinstance(both.model, Edited)
        assert both.model.by_site
    if first in ("PruneChannels", "DropBlocks", "Factorize") and second in ("FineTune", "Distill", "PruneWeights"):
        shapes = {n: m.weight.shape for n, m in before.named_modules() if isinstance(m, Layer)}
        assert {n: m.weight.shape for n, m in after.named_modules() if isinstance(m, Layer)} == shapes


def _check_second_acted(one: Compressed, both: Compressed, second: str) -> None:
    """Assert that the second step did its own work, as if it were alone."""
    before, after = one.steps[-1].size, both.steps[-1].size
    body = body_of(both.model)
    if second == "DropBlocks":
        assert after.macs < before.macs
    if second == "PruneChannels":
        assert after.macs < before.macs
        assert after.bytes < before.bytes
    if second == "Factorize" and both.steps[-1].plan["ranks"]:
        assert after.parameters < before.parameters
    if second == "PruneWeights":
        weights = [constrained_weight(m).flatten() for m in body.modules() if isinstance(m, Layer)]
        sparsity = float((torch.cat(weights) == 0).float().mean())
        assert 0.495 <= sparsity <= 0.51
    if second == "Quantize":
        assert all(layer.bits == 8 for layer in after.layers if layer.kind != "BatchNorm2d")
        assert isinstance(both.model, Edited)
    if second in ("FineTune", "Distill"):
        old, new = one.model.state_dict(), both.model.state_dict()
        assert list(old) == list(new)
        assert any(not torch.equal(old[n], new[n]) for n in old)


def _check_export(both: Compressed, data: Data, path: Path) -> None:
    check = parity(both.model, both.export(path / "model.onnx"), data.train)
    spread = float(predict(both.model, data.train).abs().max())
    quantized = isinstance(both.model, Edited)
    assert check.max_difference <= (0.05 if quantized else 1e-5) * spread + 1e-5
    assert check.agreement >= (0.93 if quantized else 1.0)


@pytest.mark.parametrize(("first", "second"), PAIRS[3::8])
def test_some_pairs_export_with_parity(first: str, second: str, make: Make, tmp_path: Path) -> None:
    _, both, _, data = run(make, "cnn", first, second)
    _check_export(both, data, tmp_path)


@pytest.mark.slow
@every_model
@every_pair
def test_every_pair_exports_with_parity(first: str, second: str, kind: str, make: Make, tmp_path: Path) -> None:
    _, both, _, data = run(make, kind, first, second)
    _check_export(both, data, tmp_path)


@pytest.mark.slow
@every_model
@pytest.mark.parametrize("seed", range(3))
def test_long_chains(seed: int, kind: str, make: Make, tmp_path: Path) -> None:
    order = torch.randperm(len(EXAMPLES), generator=torch.Generator().manual_seed(seed)).tolist()
    model, data = make(kind)
    result = compress(model, [EXAMPLES[sorted(EXAMPLES)[i]] for i in order], data)
    check_constraints(body_of(result.model))
    check_saved(result, model, data, tmp_path)
    check_finalized(result.model, data)
    _check_export(result, data, tmp_path)
