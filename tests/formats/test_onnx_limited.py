"""Graphs that ask for too much are stopped in a process of their own, and the advice in the error works."""

from __future__ import annotations

import re
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from nutlet.data.examples import Examples
from nutlet.errors import ConfigError, ModelError
from nutlet.formats.onnx import limited as trial
from nutlet.measurement import Runtime

FLOAT = TensorProto.FLOAT


def graph_file(
    path: Path, nodes: list[Any], stored: dict[str, Any] | None = None, batch: int | str = "N", width: int | str = 4
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [batch, width])],
        [helper.make_tensor_value_info("y", FLOAT, [batch, width])],
        [numpy_helper.from_array(np.array(value), name) for name, value in (stored or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def endless() -> list[Any]:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("v", FLOAT, None)],
        [value("d", TensorProto.BOOL, []), value("w", FLOAT, None)],
    )
    return [helper.make_node("Loop", ["m", "t", "x"], ["y"], body=body)]


GREEDY = [
    (endless(), {"m": 2**62, "t": True}, "N", trial.SECONDS),
    ([helper.make_node("Identity", ["x"], ["y"])], {}, 50_000_000, trial.MEMORY),
    (
        [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("ReduceSum", ["c"], ["r"], keepdims=0),
         helper.make_node("Add", ["x", "r"], ["y"])], {"s": [2**34]}, "N", trial.MEMORY,
    ),
    (
        [helper.make_node("Expand", ["x", "s"], ["e"]), helper.make_node("ReduceSum", ["e", "a"], ["y"], keepdims=0)],
        {"s": [2**30, 1, 1], "a": [0]}, "N", trial.MEMORY,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "stored", "batch", "variable"), GREEDY)
def test_graphs_that_ask_for_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: Any, stored: Any, batch: Any, variable: str
) -> None:
    if variable == trial.SECONDS:
        monkeypatch.setenv(trial.SECONDS, "1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=f"expected less of a file of .* allow more with {variable}=") as refusal:
        Runtime(graph_file(tmp_path / "m.onnx", nodes, stored, batch))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    assert re.search(rf"{variable}=[1-9]\d*$", str(refusal.value))


def test_more_can_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = graph_file(
        tmp_path / "m.onnx",
        [helper.make_node("Expand", ["x", "s"], ["e"]), helper.make_node("ReduceSum", ["e", "a"], ["y"], keepdims=0)],
        {"s": [2**23, 1, 1], "a": [0]},
    )
    monkeypatch.setenv(trial.MEMORY, "50")
    with pytest.raises(ModelError) as refusal:
        Runtime(path)
    # The advice, followed as often as it is given.
    for _ in range(3):
        name, _, value = str(refusal.value).rpartition(" ")[2].partition("=")
        monkeypatch.setenv(name, value)
        try:
            Runtime(path)
            return
        except ModelError as error:
            refusal.value.args = error.args
    pytest.fail(str(refusal.value))


def test_a_larger_batch_is_tried_before_it_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One row takes 40 MB, sixty rows 2.4 GB.
    nodes = [
        helper.make_node("Unsqueeze", ["x", "two"], ["u"]),
        helper.make_node("Expand", ["u", "s"], ["e"]),
        helper.make_node("ReduceMax", ["e"], ["y"], axes=[2], keepdims=0),
    ]
    path = graph_file(tmp_path / "m.onnx", nodes, {"two": [2], "s": [1, 1, 2_500_000]})
    examples = Examples(torch.eye(4).repeat(20, 1), torch.arange(80) % 4)
    opened = Runtime(path, threads=1)
    assert opened.predict(examples.subset(slice(0, 1))).shape == (1, 4)
    with pytest.raises(ModelError, match=r"an input of shape \(60, 4\)"):
        opened.predict(examples, batch=60)


def test_a_file_is_opened_once_and_ours_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., Path]
) -> None:
    started = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **named: started.append(args) or run(*args, **named))
    path = save(np.eye(4) * 1.25)
    for _ in range(3):
        assert Runtime(path, threads=1).run(np.eye(4, dtype=np.float32)[:1]).shape == (1, 4)
    assert len(started) == 1
    path = save(np.eye(4) * 2.5)
    trial.trust(path.read_bytes())
    Runtime(path, threads=1).run(np.eye(4, dtype=np.float32))
    assert len(started) == 1


def test_a_file_of_free_width_is_tried_with_the_examples(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "m.onnx", [helper.make_node("Sin", ["x"], ["y"])], width="C")
    examples = Examples(torch.eye(4), torch.arange(4))
    assert np.allclose(Runtime(path, threads=1).predict(examples), np.sin(np.eye(4)))


def test_limits_must_be_numbers(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("0", "nan", "much", "-1"):
        monkeypatch.setenv(trial.SECONDS, value)
        with pytest.raises(ConfigError, match=f"{trial.SECONDS} is .*expected a positive number"):
            Runtime(save(np.eye(4) * float(len(value)) * 3))


def test_external_data_are_not_read_in_the_trial(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 4])], [tensor],
    )  # fmt: skip
    from nutlet.formats.onnx import ort
    from nutlet.formats.onnx.attempt import attempt

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert attempt(vars(ort), onnx.ModelProto.SerializeToString(model), None) == {}
