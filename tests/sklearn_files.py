"""A table as people have them, and files as skl2onnx writes them, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

__all__ = ["COLUMNS", "adult_rows", "write_csv", "write_vendor"]

COLUMNS = ("age", "education", "hours-per-week", "capital-gain", "income")
_EDUCATION = ["?", "Bachelors", "HS-grad", "Masters"]


def adult_rows(rows: int = 400, seed: int = 0) -> dict[str, np.ndarray]:
    """Return columns like those of the census data."""
    rng = np.random.default_rng(seed)
    age, hours = rng.integers(17, 90, rows), rng.integers(10, 80, rows)
    education, gain = rng.choice(_EDUCATION, rows), rng.choice([0, 0, 0, 7688, 99999], rows)
    rich = age / 40 + (education == "Masters") + hours / 40 + rng.normal(0, 0.3, rows) > 2.2
    return dict(zip(COLUMNS, (age, education, hours, gain, np.where(rich, ">50K", "<=50K")), strict=True))


def write_csv(path: Path, rows: int = 400, seed: int = 0) -> Path:
    """Write :func:`adult_rows` as a file."""
    table = adult_rows(rows, seed)
    lines = [",".join(COLUMNS), *(",".join(map(str, row)) for row in zip(*table.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_vendor(path: Path, *, zipmap: bool = True, batch: int | None = None) -> Path:
    """Write a logistic regression on three of the columns, one input for each, with a label and probabilities."""

    def one(name: str, kind: int, shape: list[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    ml, classes = "ai.onnx.ml", ["<=50K", ">50K"]
    inputs = [
        one("age", TensorProto.FLOAT, [batch, 1]),
        one("education", TensorProto.STRING, [batch, 1]),
        one("hours_per_week", TensorProto.FLOAT, [batch, 1]),
    ]
    weights = [-0.1, -0.08, 0, 0, 0, -3.0]
    nodes = [
        helper.make_node("OneHotEncoder", ["education"], ["cube"], domain=ml, cats_strings=_EDUCATION, zeros=1),
        helper.make_node("Flatten", ["cube"], ["one_hot"], axis=1),
        helper.make_node("Concat", ["age", "hours_per_week", "one_hot"], ["x"], axis=1),
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "scores"], domain=ml, classlabels_strings=classes,
            coefficients=[*weights, *(-w for w in weights)], intercepts=[7.0, -7.0],
        ),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]  # fmt: skip
    outputs = [one("label", TensorProto.STRING, [batch])]
    if zipmap:
        nodes.append(helper.make_node("ZipMap", ["probabilities"], ["maps"], domain=ml, classlabels_strings=classes))
        row = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        outputs.append(helper.make_value_info("maps", helper.make_sequence_type_proto(row)))
    else:
        outputs.append(one("probabilities", TensorProto.FLOAT, [batch, 2]))
    graph = helper.make_graph(nodes, "vendor", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ml, 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="skl2onnx"), path)
    return path
