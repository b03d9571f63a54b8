from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import nutlet as nl
from nutlet.data.columns import Columns
from nutlet.errors import ConfigError, DataError, StorageError
from nutlet.loading import load_data, load_examples
from sklearn_files import COLUMNS, adult_rows, write_csv

pd = pytest.importorskip("pandas")


def frame(rows: int = 60) -> pd.DataFrame:
    return pd.DataFrame(adult_rows(rows))


def test_a_csv_file_a_parquet_file_and_a_frame_are_one_table(tmp_path: Path) -> None:
    rows = adult_rows(60)
    csv = load_data(str(write_csv(tmp_path / "a.csv", 60)), label="income")
    frame().to_parquet(tmp_path / "a.parquet")
    for other in (
        load_data(str(tmp_path / "a.parquet"), label="income"),
        load_data(frame(), label="income"),
        nl.split(frame(), label="income"),
    ):
        assert other.columns == csv.columns
        assert torch.equal(other.train.x, csv.train.x)
        assert torch.equal(other.train.y, csv.train.y)
    assert csv.columns is not None
    assert csv.columns.names == COLUMNS[:-1]
    assert csv.columns.classes == ("<=50K", ">50K")
    whole = load_examples(str(tmp_path / "a.csv"), label="income")
    assert whole.x.dtype == torch.float32
    assert torch.equal(whole.x[:, 1], torch.tensor(rows["hours-per-week"]).float())
    assert torch.equal(whole.y, torch.tensor(rows["income"] == ">50K").long())
    decoded = csv.columns.decode(whole.x.numpy())
    assert decoded["education"].tolist() == rows["education"].tolist()


def test_numbers_come_first_then_a_number_for_each_category_as_get_dummies_has_them() -> None:
    table = frame(30)
    data = nl.load_data(table, label="income", drop=["capital-gain"])
    expected = pd.get_dummies(table.drop(columns=["income", "capital-gain"])).to_numpy("float32")
    assert data.columns is not None
    assert data.columns.encode({name: table[name].to_numpy() for name in COLUMNS}).tolist() == expected.tolist()


def test_missing_numbers_are_the_median_and_missing_texts_a_category(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n; t ;y\n1;a;no\n;;yes\n5; b;no\nNA;a;yes\n3;a;no\n")
    x = load_examples(str(tmp_path / "a.csv"), label="y")
    assert x.columns is not None
    assert x.columns.columns[1].categories == ("", " b", "a")
    assert x.x[:, 0].tolist() == [1, 3, 5, 3, 3]


def test_the_test_set_and_a_later_file_are_encoded_as_the_training_set(tmp_path: Path) -> None:
    train, test = write_csv(tmp_path / "a.csv", 60), tmp_path / "b.csv"
    test.write_text("income,education,age,hours-per-week,capital-gain\n>50K,Masters,40,50,0\n<=50K,PhD,20,30,0\n")
    data = load_data(str(train), str(test), label="income")
    assert data.test is not None
    assert data.test.columns == data.columns
    assert data.test.x[:, :4].tolist() == [[40, 50, 0, 0], [20, 30, 0, 0]]
    assert data.test.x[:, 3:].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]  # PhD was never seen
    assert data.test.y.tolist() == [1, 0]
    assert data.columns is not None
    kept = Columns.read(data.columns.write(tmp_path))
    assert kept == data.columns
    assert torch.equal(load_examples(str(test), columns=kept).x, data.test.x)


def test_numbers_to_predict_and_classes_that_are_numbers(tmp_path: Path) -> None:
    table = frame(40).assign(grade=np.arange(40) % 3 * 10)
    assert load_data(table, label="grade").train.columns.classes == ("0", "10", "20")  # type: ignore[union-attr]
    data = load_data(table, label="age", task="regression")
    assert data.train.y.is_floating_point()
    with pytest.raises(DataError, match="'education' holds texts; expected numbers to predict"):
        load_data(table, label="education", task="regression")
    with pytest.raises(DataError, match="one target a row; expected classification or regression"):
        load_data(table, label="age", task="segmentation")


def test_what_is_wrong_with_a_table_is_said_in_its_own_words(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "a.csv", 60))
    with pytest.raises(DataError, match=r"nobody said which column is the label; .*--label.* 'age', .*'income'"):
        load_data(path)
    with pytest.raises(DataError, match=r"no column 'incom'; did you mean 'income'\? \(columns: 'age'"):
        load_data(path, label="incom")
    with pytest.raises(DataError, match="no column 'agee'; did you mean 'age'"):
        load_data(path, label="income", drop=["agee"])
    with pytest.raises(ConfigError, match="label is 'y', but the data are no table"):
        nl.load_data((np.zeros((9, 2), "float32"), np.arange(9) % 2), label="y")
    (tmp_path / "b.csv").write_text("id,y\n" + "".join(f"x{k},{k % 2}\n" for k in range(1_200)))
    with pytest.raises(DataError, match=r"'id' holds 1,200 different texts, as 'x999'.*--drop"):
        load_data(str(tmp_path / "b.csv"), label="y")
    (tmp_path / "c.csv").write_text("a,y\n1,no\n2,\n3,yes\n")
    with pytest.raises(DataError, match="1 of 3 rows have nothing in the label column 'y'"):
        load_data(str(tmp_path / "c.csv"), label="y")
    (tmp_path / "d.csv").write_text("a,y\n1,no,3,4\n2,no\n")
    (tmp_path / "d.parquet").write_bytes(b"PAR1" + bytes(40))
    for name in ("d.csv", "d.parquet"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(StorageError, match="cannot be read as a table"):
                load_data(str(tmp_path / name), label="y")
    with pytest.raises(DataError, match="'age' holds texts, in the training set it holds numbers"):
        load_data(path, frame().assign(age="old"), label="income")
    with pytest.raises(DataError, match="holds 'rich', which is no class of the training set"):
        load_data(path, frame().assign(income="rich"), label="income")
    with pytest.raises(DataError, match="'age' holds dates"):
        load_data(frame().assign(age=pd.Timestamp("2020-01-01")), label="income")
    with pytest.raises(DataError, match=r"no column 'age'; expected the columns of the training set"):
        load_data(path, frame().drop(columns="age"), label="income")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "columns": [], "label": "y", "classes": []}', "[" * 50_000,
     '{"schema": 1, "columns": [{"name": "a", "fill": 1e999, "whole": true}], "label": "y", "classes": []}',
     '{"schema": 1, "columns": [{"name": "a", "categories": ["a", "a"]}], "label": "y", "classes": []}'],
)  # fmt: skip
def test_an_encoding_of_unknown_origin_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "columns.json").write_text(content)
    with pytest.raises(DataError):
        Columns.read(tmp_path / "columns.json")
    with pytest.raises(StorageError):
        Columns.read(tmp_path / "gone.json")


def test_the_encoding_is_plain_json() -> None:
    columns = load_data(frame(), label="income").columns
    assert columns is not None
    assert Columns.from_dict(json.loads(json.dumps(columns.to_dict()))) == columns


def test_split_takes_data_as_people_have_them() -> None:
    x, y = torch.rand(50, 3), torch.arange(50) % 3
    whole = nl.split((x, y), calibration=8)
    for source in (TensorDataset(x, y), DataLoader(TensorDataset(x, y)), nl.Examples.from_arrays(x, y)):
        data = nl.split(source, (x[:5], y[:5]), calibration=8)
        assert torch.equal(data.train.batch(slice(None))[0], whole.train.batch(slice(None))[0])
        assert data.test is not None
    assert len(nl.load_data((x.numpy(), y.numpy())).train) == 45

    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(zip(x, y, strict=True))

    with pytest.raises(ConfigError, match="Stream, which has no length"):
        nl.split(Stream())
    assert len(nl.split((pd.DataFrame(x.numpy()), y.tolist())).train) == 45
    with pytest.raises(DataError, match=r"labels hold texts, as 'a'; expected numbers: number the classes"):
        nl.split((x, ["a", "b"] * 25))
    with pytest.raises(DataError, match=r"inputs hold texts, as 'a'; expected numbers: give a pandas DataFrame"):
        nl.split((pd.DataFrame({"t": ["a", "b"] * 25}), y))

    class Named(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 50

        def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
            return x[index], "a"

    with pytest.raises(DataError, match="labels hold texts, as 'a'"):
        nl.split(Named())
    with pytest.raises(DataError, match="the data are a int; expected arrays"):
        nl.split(3)


def test_augment_is_tried_on_one_batch() -> None:
    x, y = torch.rand(50, 3), torch.arange(50) % 3
    with pytest.raises(ConfigError, match=r"augment gave torch.float64 .*a batch of torch.float32 of shape \(2, 3\)"):
        nl.split((x, y), augment=lambda batch, generator: batch.double())
    with pytest.raises(ConfigError, match=r"augment gave a NoneType"):
        nl.split((x, y), augment=lambda batch, generator: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match=r"augment raised TypeError on a batch of shape \(2, 3\)"):
        nl.split((x, y), augment=lambda batch: batch)  # type: ignore[arg-type,misc]


def test_images_without_classes_have_no_labels(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for k in range(20):
        image.fromarray(np.full((8, 8), k, np.uint8)).save(tmp_path / f"{k}.png")
    data = load_data(str(tmp_path))
    assert not data.train.labelled
    assert data.train.shapes == {"x": (1, 8, 8)}
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    with pytest.raises(DataError, match="an audit is scored on have no labels; expected some"):
        nl.audit(model, data)
    with pytest.raises(DataError, match="training needs labels"):
        nl.compress(model, [nl.FineTune(epochs=1)], data)
