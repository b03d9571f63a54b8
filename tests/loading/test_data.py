from __future__ import annotations

import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nutlet.data.examples import Data
from nutlet.errors import ConfigError, DataError, MissingExtra, NutletError, StorageError
from nutlet.loading import load_data, load_examples
from nutlet.loading.npz import cache_folder, natural, read_npz

RNG = np.random.default_rng(0)


def images(n: int = 40, size: int = 6) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(0, 256, (n, size, size, 3), dtype=np.uint8), np.arange(n) % 4


def test_npz_with_one_set(tmp_path: Path) -> None:
    x, y = images()
    np.savez_compressed(tmp_path / "d.npz", x=x, y=y, class_names=np.array(["a", "b"], object))
    data = load_data(str(tmp_path / "d.npz"), calibration=8, mean=(0.5,), std=(0.25,), augment="flip-crop", seed=3)
    assert (len(data.train), len(data.validation), len(data.calibration), data.test) == (36, 4, 8, None)
    assert data.train.x.shape[1:] == (3, 6, 6)
    assert (data.train.mean, data.train.std) == ((0.5,), (0.25,))
    assert data.augment is not None
    assert data.augment(data.train.batch([0, 1])[0], torch.Generator()).shape == (2, 3, 6, 6)
    again = load_data(str(tmp_path / "d.npz"), calibration=8, seed=3)
    assert torch.equal(again.train.x, data.train.x)


def test_npz_with_test_set_and_from_elsewhere(tmp_path: Path) -> None:
    (x, y), (tx, ty) = images(), images(12)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=tx, y_test=ty)
    np.savez(tmp_path / "t.npz", x=tx[:5], y=ty[:5])
    data = load_data(str(tmp_path / "d.npz"), calibration=4)
    assert data.test is not None
    assert len(data.test) == 12
    other = load_data(str(tmp_path / "d.npz"), str(tmp_path / "t.npz"), calibration=4)
    assert other.test is not None
    assert len(other.test) == 5
    np.savez(tmp_path / "t.npz", x=tx, y=ty + 1)
    with pytest.raises(DataError, match="labels up to 4, the training set up to 3"):
        load_data(str(tmp_path / "d.npz"), str(tmp_path / "t.npz"), calibration=4)


def test_arrays_in_fortran_and_foreign_order(tmp_path: Path) -> None:
    x = np.asfortranarray(RNG.random((9, 5)).astype(">f4"))
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(9, dtype=">i2"))
    found = read_npz(tmp_path / "d.npz")
    np.testing.assert_array_equal(found.x, x)
    np.testing.assert_array_equal(found.y, np.arange(9))


def test_folder_in_natural_order_and_cached(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    parts = {k: RNG.integers(0, 256, (1000, 30, 30, 3), dtype=np.uint8) for k in (1, 2, 10)}
    for k, part in parts.items():
        np.savez(folder / f"train_{k}.npz", x=part, y=np.full(len(part), k))
    np.savez(folder / "test.npz", x=parts[1][:7], y=np.arange(7))
    whole = np.concatenate([parts[k] for k in (1, 2, 10)])
    for _ in range(2):
        data = load_data(str(folder), calibration=4)
        assert len(data.train) + len(data.validation) == 3000
        assert int(data.train.x.sum()) + int(data.validation.x.sum()) == int(whole.sum())
        assert len(list(cache.rglob("*.npy"))) == 4
    stored = np.load(next(cache.rglob("x.npy")))
    np.testing.assert_array_equal(stored, whole)
    for path in cache.rglob("x.npy"):
        path.write_bytes(b"damaged")
    load_data(str(folder), calibration=4)
    np.savez(folder / "test.npz", x=parts[1][:9], y=np.arange(9))
    changed = load_data(str(folder), calibration=4).test
    assert changed is not None
    assert len(changed) == 9


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUTLET_CACHE", str(tmp_path / "file"))
    assert cache_folder() == tmp_path / "file"
    np.savez(tmp_path / "d.npz", x=RNG.random((1000, 1000)), y=np.arange(1000))
    assert len(load_data(str(tmp_path / "d.npz"), calibration=4).train) == 900


def test_natural_order() -> None:
    assert natural(Path("train_2.npz")) < natural(Path("train_10.npz"))


def write_member(path: Path, name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr(name, data)


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (header("(1000000, 1000000)"), "declares"),
        (header("(-1, -4)") + b"0" * 16, "declares"),
        (header("(2, 2)") + b"0" * 15, "declares"),
        (header("(2, 2)") + b"0" * 17, "declares"),
        (header("(2,)", "'|O'") + b"0" * 16, "pickled objects, which may hold code"),
        (header("(2, 2)", "'<U1'") + b"0" * 16, "expected numbers"),
        (header("(2, 2)", "[('a', '<f4')]") + b"0" * 16, "expected numbers"),
        (header("__import__('os')._exit(1)"), "cannot be read"),
        (b"\x93NUMPY\x09\x00" + b"0" * 50, "npy version"),
        (b"", "cannot be read"),
        (header("(70000000,)", "'|u1'") + bytes(70_000_000), "unpacks to"),
    ],
)
def test_hostile_members(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "d.npz"
    bomb = len(data) > 10**6
    write_member(path, "x.npy", data, zipfile.ZIP_LZMA if bomb else zipfile.ZIP_DEFLATED)
    write_member(path, "y.npy", data[:0])
    with pytest.raises(NutletError, match=says):
        load_data(str(path))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (exec, ("raise SystemExit('executed')",))

    np.savez(tmp_path / "d.npz", x=np.array([Evil(), 1], object), y=np.arange(2))
    with pytest.raises(StorageError, match="pickled"):
        load_data(str(tmp_path / "d.npz"))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choices=st.data())
def test_damaged_files_are_refused_or_read_right(tmp_path: Path, method: int, choices: st.DataObject) -> None:
    x, y = np.arange(60, dtype=np.float32).reshape(20, 3), np.arange(20) % 3
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in (("x", x), ("y", y)):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
    blob = bytearray(path.read_bytes())
    for position in choices.draw(st.lists(st.integers(0, len(blob) * 8 - 1), max_size=4)):
        blob[position // 8] ^= 1 << position % 8
    path.write_bytes(blob[: choices.draw(st.one_of(st.just(len(blob)), st.integers(0, len(blob))))])
    try:
        found = read_npz(path)
    except (DataError, StorageError):
        return
    np.testing.assert_array_equal(found.x, x)
    np.testing.assert_array_equal(found.y, y)


def test_wrong_names_and_kinds(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", a=np.ones(3), y=np.ones(3))
    with pytest.raises(DataError, match="holds the arrays a, y; expected x and y"):
        load_data(str(tmp_path / "d.npz"))
    with pytest.raises(StorageError, match="found no file"):
        load_data(str(tmp_path / "gone.npz"))
    with pytest.raises(DataError, match="found nothing under 'gone'"):
        load_data("gone")
    (tmp_path / "d.mat").write_text("1,2")
    with pytest.raises(DataError, match="of a kind that is not read"):
        load_data(str(tmp_path / "d.mat"))
    (tmp_path / "parts").mkdir()
    np.savez(tmp_path / "parts/part.npz", x=np.ones((3, 2)), y=np.arange(3))
    with pytest.raises(DataError, match=r"expected train\*\.npz"):
        load_data(str(tmp_path / "parts"))
    np.savez(tmp_path / "parts/train_1.npz", x=np.ones((3, 2)), y=np.arange(3))
    np.savez(tmp_path / "parts/train_2.npz", x=np.ones((3, 4)), y=np.arange(3))
    with pytest.raises(DataError, match="parts of one data set"):
        load_data(str(tmp_path / "parts"))


def test_options(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=RNG.random((30, 4)), y=np.arange(30) % 2)
    with pytest.raises(ConfigError, match="did you mean 'flip-crop'"):
        load_data(str(tmp_path / "d.npz"), calibration=4, augment="flipcrop")
    with pytest.raises(DataError, match="cannot augment"):
        load_data(str(tmp_path / "d.npz"), calibration=4, augment="crop")
    assert len(load_data(str(tmp_path / "d.npz")).calibration) == 27  # all there are, not the 512 of the default
    assert load_data(str(tmp_path / "d.npz"), calibration=4, augment="none").augment is None


FACTORIES = """
import numpy as np, torch
from nutlet.data.examples import Examples, split
x, y = np.zeros((30, 4), "float32"), np.arange(30) % 3
def two(): return x, torch.as_tensor(y)
def four(n=5): return [x, y, x[:n], y[:n]]
def ready(): return split(Examples.from_arrays(x, y), calibration=4)
def wrong(): return x, y, x
"""


def test_factories(tmp_path: Path) -> None:
    path = tmp_path / f"data_{tmp_path.name}.py"
    path.write_text(FACTORIES)
    assert load_data(f"{path}:two", calibration=4).test is None
    test = load_data(f"{path}:four(7)", calibration=4).test
    assert test is not None
    assert len(test) == 7
    assert len(load_data(f"{path}:ready").calibration) == 4
    with pytest.raises(ConfigError, match="'mean' cannot be applied"):
        load_data(f"{path}:ready", mean=(0.5,))
    with pytest.raises(DataError, match="returned 3 values"):
        load_data(f"{path}:wrong")
    with pytest.raises(DataError, match="no 'tow'"):
        load_data(f"{path}:tow")


def write_images(root: Path, classes: dict[str, int], size: tuple[int, int] = (5, 4), mode: str = "RGB") -> None:
    from PIL import Image

    for value, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for k in range(count):
            Image.new(mode, size, value if mode == "L" else (value, 2, 3)).save(root / name / f"{k}.png")


def test_image_folders(tmp_path: Path) -> None:
    from PIL import Image

    write_images(tmp_path / "train", {"cat": 6, "dog": 5})
    write_images(tmp_path / "test", {"cat": 1, "dog": 2})
    data = load_data(str(tmp_path), calibration=4)
    assert data.train.x.shape == (10, 3, 4, 5)
    assert data.test is not None
    assert data.test.y.tolist() == [0, 1, 1]
    assert data.test.x[:, 0].amax((1, 2)).tolist() == [0, 1, 1]
    assert load_data(str(tmp_path / "train"), calibration=4).test is None
    Image.new("RGB", (9, 4)).save(tmp_path / "train/dog/odd.png")
    with pytest.raises(DataError, match=r"odd\.png is 9x4 pixels, most images are 5x4"):
        load_data(str(tmp_path), calibration=4)
    (tmp_path / "train/dog/odd.png").write_bytes((tmp_path / "train/dog/0.png").read_bytes()[:45])
    with pytest.raises(DataError, match=r"odd\.png cannot be"):
        load_data(str(tmp_path), calibration=4)
    write_images(tmp_path / "test", {"emu": 1})
    with pytest.raises(DataError, match="the class 'emu'"):
        load_data(str(tmp_path), calibration=4)


def test_grey_and_huge_images(tmp_path: Path) -> None:
    write_images(tmp_path / "grey", {"a": 3, "b": 3}, mode="L")
    assert load_data(str(tmp_path / "grey"), calibration=2).train.x.shape[1:] == (1, 4, 5)
    write_images(tmp_path / "huge", {"a": 1}, size=(10_000, 8_000), mode="L")
    with pytest.raises(DataError, match="resize them"):
        load_data(str(tmp_path / "huge"))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="found no images"):
        load_data(str(tmp_path / "none"))


def test_missing_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, {"a": 3, "b": 3})
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"nutlet\[images\]"):
        load_data(str(tmp_path))
    with pytest.raises(MissingExtra, match=r"nutlet\[huggingface\]"):
        load_data("hf:any")


def test_real_files(real_data: Path, cache: Path) -> None:
    mnist = load_data(str(real_data / "mnist.npz"), mean=(0.1307,), std=(0.3081,))
    assert mnist.train.x.shape == (55000, 1, 28, 28)
    assert mnist.test is not None
    assert len(mnist.test) == 10000
    start = time.perf_counter()
    assert torch.equal(load_data(str(real_data / "mnist.npz")).train.x, mnist.train.x)
    assert time.perf_counter() - start < 5
    assert load_data(str(real_data / "cifar100_2500.npz")).classes == 100


def test_what_is_measured_is_the_whole_test_set(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(40, 4)).astype("float32"), np.arange(40) % 3
    np.savez(tmp_path / "one.npz", x=x, y=y)
    np.savez(tmp_path / "both.npz", x_train=x, y_train=y, x_test=x[:7], y_test=y[:7])
    assert len(load_examples(str(tmp_path / "one.npz"))) == 40  # type: ignore[arg-type]
    assert len(load_examples(str(tmp_path / "both.npz"))) == 7  # type: ignore[arg-type]


def test_a_factory_of_splits_takes_the_defaults_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "splits.py").write_text("from nutlet.cli.demo import digits\n")
    spec = f"{tmp_path / 'splits.py'}:digits"
    assert isinstance(load_data(spec, augment="none", calibration=512, validation=0.1, seed=3), Data)
    assert isinstance(load_examples(spec), Data)
    with pytest.raises(ConfigError, match="'augment' cannot be applied"):
        load_data(spec, augment="crop")


@pytest.mark.parametrize("kind", ["u2", "u4", "u8", "?", "i1", ">i4", ">u2"])
def test_labels_of_any_integer_type(tmp_path: Path, kind: str) -> None:
    x, _ = images()
    y = (np.arange(40) % 2).astype(kind)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    found = load_examples(str(tmp_path / "d.npz"))
    assert found.y.dtype == torch.int64  # type: ignore[union-attr]
    assert found.y.tolist() == [0, 1] * 20  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (np.arange(40).astype("g"), "labels have dtype .*128.*expected numbers of up to 64 bits"),
        (np.arange(40.0), "integers .whole numbers as floats"),
        (np.full(40, 2**64 - 1, "u8"), r"above 2\*\*63"),
        (np.full(40, 10**9), "largest label is 1,000,000,000, which would ask for as many outputs"),
        (-np.arange(40), "smallest label is -39"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, y: np.ndarray, says: str) -> None:
    np.savez(tmp_path / "d.npz", x=images()[0], y=y)
    with pytest.raises(DataError, match=says):
        load_examples(str(tmp_path / "d.npz"))


def test_arrays_together_have_one_limit(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", header("(17000000,)", "'|u1'") + bytes(17_000_000))
    with pytest.raises(StorageError, match="no more than 200 to 1"):
        read_npz(tmp_path / "d.npz")


def test_a_user_without_a_home_has_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NUTLET_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() is None
    x = RNG.integers(0, 256, (2000, 60, 60), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(2000) % 3)
    assert len(load_examples(str(tmp_path / "d.npz"))) == 2000  # type: ignore[arg-type]
