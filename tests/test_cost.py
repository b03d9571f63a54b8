"""What must not grow with the model: compressions of the state, matches of rewrite rules, copies of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import zstandard
from onnxscript import optimizer
from onnxscript.rewriter import RewriteRule
from torch import nn

import nutlet as nl
import tiny
from nutlet import memory
from nutlet.compression.teacher import as_teacher
from nutlet.formats.onnx import export as exporter
from nutlet.formats.onnx.export import export_onnx


def counting(monkeypatch: pytest.MonkeyPatch, kind: Any, name: str) -> list[Any]:
    """Note each call of a method, and let it do what it does."""
    calls: list[Any] = []
    real: Callable[..., Any] = getattr(kind, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(kind, name, counted)
    return calls


def test_no_step_compresses_the_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    real = zstandard.ZstdCompressor
    monkeypatch.setattr(zstandard, "ZstdCompressor", lambda **options: calls.append(options) or real(**options))
    model, data = tiny.tiny("mlp")
    result = nl.compress(model, [nl.PruneWeights(sparsity=0.5), nl.Quantize()], data)
    result.export(tmp_path / "model.onnx")
    assert calls == []


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, method) for kind in ("cnn", "mlp") for method in (None, nl.Quantize())),
        ("attention", nl.Quantize(bits=4, activations=False)),
    ],
)
def test_fewer_rules_make_the_same_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, method: nl.Method | None
) -> None:
    model, data = tiny.tiny(kind)
    if method is not None:
        model = nl.compress(model, [method], data).model
    example = data.calibration.x[:2]
    matches = counting(monkeypatch, RewriteRule, "try_rewrite")
    ours = export_onnx(model, tmp_path / "ours.onnx", example).read_bytes()
    tried = len(matches)
    monkeypatch.setattr(exporter, "optimize", lambda graph: optimizer.optimize_ir(graph, input_size_limit=256))
    theirs = export_onnx(model, tmp_path / "theirs.onnx", example).read_bytes()
    assert ours == theirs
    assert tried < 0.6 * (len(matches) - tried)


def test_equal_constants_are_stored_once(tmp_path: Path) -> None:
    model, data = tiny.tiny("attention")
    graph = onnx.load(export_onnx(model, tmp_path / "model.onnx", data.calibration.x[:2])).graph
    stored = [(tensor.data_type, tuple(tensor.dims), tensor.raw_data) for tensor in graph.initializer]
    assert len(stored) == len(set(stored))


def test_a_teacher_shares_the_parameters_of_the_original() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    teacher = as_teacher(model, "logits")
    pairs = list(zip(model.parameters(), teacher.parameters(), strict=True))
    assert all(ours.data_ptr() == theirs.data_ptr() for ours, theirs in pairs)
    assert all(ours.requires_grad and not theirs.requires_grad for ours, theirs in pairs)
    buffers = zip(model.buffers(), teacher.buffers(), strict=True)
    assert all(ours.data_ptr() != theirs.data_ptr() for ours, theirs in buffers)


def test_memory_is_given_back_for_large_models_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    collected = counting(monkeypatch, memory.gc, "collect")
    memory.release(nn.Linear(8, 8))
    assert collected == []
    monkeypatch.setattr(memory, "LARGE", 64)
    memory.release(nn.Linear(8, 8))
    assert len(collected) == 1
