from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import nutlet as nl
from nutlet.cli import app
from nutlet.errors import ConfigError, DataError, ModelError
from nutlet.formats.runtime import Runtime
from nutlet.loading import load_examples
from nutlet.oracle import FileSource
from sklearn_files import adult_rows, write_csv, write_vendor

pd = pytest.importorskip("pandas")


def examples(tmp_path: Path, rows: int = 80, drop: tuple[str, ...] = ()) -> nl.Examples:
    return load_examples(str(write_csv(tmp_path / "adult.csv", rows)), label="income", drop=drop)  # type: ignore[return-value]


@pytest.mark.parametrize(("zipmap", "batch"), [(True, None), (False, None), (False, 1)])
def test_one_input_for_each_column(tmp_path: Path, zipmap: bool, batch: int | None) -> None:
    given = examples(tmp_path)
    path = write_vendor(tmp_path / "vendor.onnx", zipmap=zipmap, batch=batch)
    sizes = None if batch is None else (batch,)
    found = nl.measure(path, given, seconds=0.02, batches=sizes)
    assert found.compressed.accuracy > 0.8
    rows = Runtime(path, columns=given.columns).predict(given)
    assert np.allclose(rows.sum(1), 1, atol=1e-5)
    source = FileSource(path, columns=given.columns)
    assert torch.allclose(source(given.x), torch.tensor(rows), atol=1e-6)
    # Whatever an attack makes up is a row of the table.
    assert torch.isfinite(source(torch.randn(7, given.x.shape[1]))).all()


def test_an_output_is_named(tmp_path: Path) -> None:
    given = examples(tmp_path)
    path = write_vendor(tmp_path / "vendor.onnx")
    assert Runtime(path, columns=given.columns, output="maps").output == "maps"
    with pytest.raises(ConfigError, match="no output 'map'; did you mean 'maps'"):
        Runtime(path, columns=given.columns, output="map")


def test_files_that_take_other_columns_are_refused_in_words(tmp_path: Path) -> None:
    path = write_vendor(tmp_path / "vendor.onnx")
    with pytest.raises(ModelError, match=r"takes texts as 'education'; expected a table.*--label"):
        Runtime(path)
    with pytest.raises(DataError, match="takes 'age', which is no column of the table"):
        Runtime(path, columns=examples(tmp_path, drop=("age",)).columns)
    with pytest.raises(DataError, match="no rows of the table"):
        Runtime(path, columns=examples(tmp_path).columns).predict(examples(tmp_path, drop=("capital-gain",)))


def _pipelines() -> dict[str, Any]:
    """Return files of skl2onnx by what they take, with the probabilities that scikit-learn gives."""
    compose = pytest.importorskip("sklearn.compose")
    skl2onnx = pytest.importorskip("skl2onnx")
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    table = pd.DataFrame(adult_rows(80))
    x, y = table.drop(columns="income"), table["income"].to_numpy(object)
    numbers, texts = ["age", "hours-per-week", "capital-gain"], ["education"]
    types = [(n, StringTensorType([None, 1]) if n in texts else FloatTensorType([None, 1])) for n in x.columns]
    trees = {"n_estimators": 5, "max_depth": 4, "random_state": 0}

    both = compose.ColumnTransformer([("n", StandardScaler(), numbers), ("t", OneHotEncoder(), texts)])
    columns = make_pipeline(both, LogisticRegression()).fit(x, y)
    forest = make_pipeline(
        compose.ColumnTransformer([("t", OneHotEncoder(), texts)], remainder="passthrough"),
        RandomForestClassifier(**trees),
    ).fit(x, y)
    codes = OrdinalEncoder().fit(x[texts])
    matrix = x.assign(education=codes.transform(x[texts])[:, 0]).to_numpy("float32")
    ordinal = RandomForestClassifier(**trees).fit(matrix, y)
    dummies = pd.get_dummies(x).to_numpy("float32")
    hot = RandomForestClassifier(**trees).fit(dummies, y)

    def wide(width: int) -> list[Any]:
        return [("X", FloatTensorType([None, width]))]

    plain = {"zipmap": False}
    return {
        "columns": (skl2onnx.to_onnx(columns, initial_types=types), columns.predict_proba(x)),
        "forest": (skl2onnx.to_onnx(forest, initial_types=types, options=plain), forest.predict_proba(x)),
        "ordinal": (skl2onnx.to_onnx(ordinal, initial_types=wide(4), options=plain), ordinal.predict_proba(matrix)),
        "one-hot": (skl2onnx.to_onnx(hot, initial_types=wide(7)), hot.predict_proba(dummies)),
    }


@pytest.mark.filterwarnings("ignore")
def test_files_of_skl2onnx_answer_as_scikit_learn_does(tmp_path: Path) -> None:
    given = examples(tmp_path)
    for name, (model, expected) in _pipelines().items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        found = Runtime(path, columns=given.columns).predict(given)
        assert np.allclose(found, expected, atol=1e-4), name


def test_audit_a_file_of_scikit_learn_from_a_csv(tmp_path: Path) -> None:
    path = write_vendor(tmp_path / "vendor.onnx")
    data = str(write_csv(tmp_path / "adult.csv", 300))
    out = tmp_path / "out"
    options = f"--label income --seeds 1 --queries 50 --effort 0.02 --processes 1 --out {out}"
    attacks = "Knockoff,LossThreshold,FileLeaks"
    command = ["audit", str(path), "-d", data, *options.split(), "--attacks", attacks]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert (out / "audit.html").stat().st_size > 10_000
    assert json.loads((out / "columns.json").read_text())["classes"] == ["<=50K", ">50K"]
    records = json.loads((out / "audit.json").read_text())["attacks"]
    names = {attack["name"] for attack in records if not attack.get("reason")}
    assert {"Knockoff", "FileLeaks"} <= names


def test_a_net_of_ours_on_a_table_is_measured_with_its_own_encoding(tmp_path: Path) -> None:
    data = nl.load_data(str(write_csv(tmp_path / "adult.csv", 120)), label="income", calibration=16)
    assert data.columns is not None
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(data.columns.width), torch.nn.Linear(data.columns.width, 2)).eval()
    small = nl.compress(model, [nl.PruneWeights(sparsity=0.2)], data)
    nl.ship(small, model, data, tmp_path / "run", seconds=0.02)
    later = tmp_path / "later.csv"  # no row of it has every category
    later.write_text("age,education,hours-per-week,capital-gain,income\n30,Masters,40,0,>50K\n40,HS-grad,20,0,<=50K\n")
    done = CliRunner().invoke(
        app, ["measure", str(tmp_path / "run/model.onnx"), "-d", str(later), "--seconds", "0.02", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["compressed"]["examples"] == 2
