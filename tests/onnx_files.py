"""Small ONNX files, made by hand, whose outputs are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from nutlet.data.examples import Examples

Save = Callable[..., Path]


def linear_model(
    weight: np.ndarray, *, batch: int | str = "N", op: str = "Identity", dtype: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """Scores = op(x @ weight)."""
    weight = weight.astype(helper.tensor_dtype_to_np_dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node(op, ["h"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", dtype, [batch, weight.shape[0]])],
        [helper.make_tensor_value_info("y", dtype, [batch, weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def saved(weight: np.ndarray, name: str = "model.onnx", **options: object) -> Path:
        path = tmp_path / name
        path.write_bytes(linear_model(weight, **options).SerializeToString())  # type: ignore[arg-type]
        return path

    return saved


@pytest.fixture
def examples() -> Examples:
    """Twenty one-hot rows of four features; the identity classifies all of them."""
    labels = torch.arange(20) % 4
    return Examples(torch.eye(4)[labels], labels)


@pytest.fixture
def linear() -> Callable[..., onnx.ModelProto]:
    return linear_model
