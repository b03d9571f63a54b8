from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nutlet.errors import DataError
from nutlet.loading import load_data

datasets: Any = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def quiet(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()


def pictures(n: int) -> Any:
    from PIL import Image

    rows = {"image": [Image.new("RGB", (6, 5), (k, 0, 0)) for k in range(n)], "label": [k % 2 for k in range(n)]}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    return datasets.Dataset.from_dict(rows, features=features)


def test_images_saved_to_disk(tmp_path: Path) -> None:
    datasets.DatasetDict(train=pictures(20), test=pictures(3)).save_to_disk(tmp_path / "d")
    data = load_data(f"hf:{tmp_path / 'd'}", calibration=4)
    assert data.train.x.shape == (18, 3, 5, 6)
    assert data.test is not None
    assert data.test.x[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert data.test.y.tolist() == [0, 1, 0]


def test_parquet_of_images_and_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    pictures(10).to_parquet(tmp_path / "i/train.parquet")
    assert load_data(f"hf:{tmp_path / 'i'}", calibration=4).train.x.shape == (9, 3, 5, 6)
    (tmp_path / "n").mkdir()
    rows = {"a": list(range(10)), "b": [0.5] * 10, "target": [k % 3 for k in range(10)]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "n/train-00000.parquet")
    data = load_data(f"hf:{tmp_path / 'n'}", calibration=4)
    assert data.train.x.shape == (9, 2)
    assert sorted(np.concatenate([data.train.x, data.validation.x])[:, 0].tolist()) == list(range(10))


def test_a_single_split_of_lists(tmp_path: Path) -> None:
    rows = {"x": [[1.0, 2.0, 3.0]] * 8, "y": [k % 2 for k in range(8)]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "d")
    assert load_data(f"hf:{tmp_path / 'd'}", calibration=4).train.x.shape == (7, 3)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({"x": [1.0] * 4}, "expected a label column"),
        ({"x": [1.0] * 4, "label": ["a", "b", "a", "b"]}, "class_encode_column"),
        ({"x": ["u"] * 4, "label": [0, 1, 0, 1]}, "is not numeric"),
        ({"x": [[1.0], [1.0, 2.0], [1.0], [1.0]], "label": [0, 1, 0, 1]}, "differ in length"),
        ({"label": [0, 1, 0, 1]}, "no column besides"),
    ],
)
def test_columns_that_are_not_understood(tmp_path: Path, rows: dict[str, list[Any]], says: str) -> None:
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match=says):
        load_data(f"hf:{tmp_path / 'd'}", calibration=2)


def test_folders_without_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none named train\*"):
        load_data(f"hf:{tmp_path}")
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_data(f"hf:{tmp_path}")
