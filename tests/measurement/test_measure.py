from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nutlet.data.examples import Data, Examples
from nutlet.errors import ConfigError, DataError, ModelError
from nutlet.measurement import FileFigures, Measurement, Runtime, cores, measure, memory, peak_memory, probe

Save = Callable[..., Path]
QUICK = {"batches": (1, 4), "threads": (1,), "seconds": 0.02}

SWAPPED = np.eye(4)[[0, 1, 3, 2]]  # takes classes 2 and 3 for each other


def test_a_file_alone(save: Save, examples: Examples) -> None:
    path = save(np.eye(4))
    found = measure(path, examples, **QUICK)
    assert found.split == "given"
    assert found.original is None
    assert found.compressed.path == "model.onnx"
    assert found.compressed.bytes == path.stat().st_size
    assert (found.compressed.accuracy, found.compressed.accuracy_high, found.compressed.examples) == (1.0, 1.0, 20)
    assert found.compressed.accuracy_low == pytest.approx(0.8389, abs=1e-4)
    assert [(row.batch, row.threads) for row in found.compressed.latency] == [(1, 1), (4, 1)]
    assert (found.agreement, found.accuracy_drop_pp, found.size_ratio, found.speedup(1, 1)) == (None,) * 4


def test_a_file_against_the_original_file(save: Save, examples: Examples) -> None:
    found = measure(save(SWAPPED, "small.onnx"), examples, str(save(np.eye(4), "big.onnx")), **QUICK)
    assert isinstance(found.original, FileFigures)
    assert (found.compressed.accuracy, found.original.accuracy, found.agreement) == (0.5, 1.0, 0.5)
    assert found.accuracy_drop_pp == 50
    assert 0 < found.accuracy_drop_pp_low < 50 < found.accuracy_drop_pp_high  # type: ignore[operator]
    assert found.size_ratio == found.original.bytes / found.compressed.bytes
    old, new = found.original.latency[0], found.compressed.latency[0]
    assert found.speedup(1, 1) == pytest.approx(old.median_ms / new.median_ms)
    assert old.runs == new.runs


def test_a_file_against_a_module(save: Save, examples: Examples) -> None:
    module = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.eye(4))
    found = measure(save(SWAPPED), examples, module, **QUICK)
    assert found.original is not None
    assert not isinstance(found.original, FileFigures)
    assert (found.original.accuracy, found.agreement, found.size_ratio) == (1.0, 0.5, None)
    assert "module in memory" in str(found)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_split_is_named(save: Save, examples: Examples, split: str) -> None:
    wrong = Examples(examples.x, (examples.y + 1) % 4)
    data = Data(
        train=wrong,
        validation=wrong if split == "test" else examples,
        calibration=wrong,
        test=examples if split == "test" else None,
    )
    found = measure(save(np.eye(4)), data, **QUICK)
    assert (found.split, found.compressed.accuracy) == (split, 1.0)


def test_plain_json(save: Save, examples: Examples) -> None:
    found = measure(save(np.eye(4), "a.onnx"), examples, save(np.eye(4), "b.onnx"), **QUICK)
    value = found.to_dict()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["size_ratio"] == 1.0
    assert str(Path.cwd()) not in json.dumps(value)


@pytest.fixture
def pair(save: Save, examples: Examples) -> Measurement:
    path = save(np.eye(4), "<b>[red]x.onnx")
    return measure(path, examples, save(SWAPPED, "old.onnx"), batches=(1,), threads=(0,), seconds=0.02)


def test_prints_alike_everywhere(pair: Measurement) -> None:
    plain, page, markdown = str(pair), pair._repr_html_(), pair.table().to_markdown()
    threads = f"{cores()} thread"
    for text in (plain, page, markdown):
        for part in ("100.00 %", "50.00 %", "+50.0 points", f"batch 1, {threads}", "MiB", "ONNX Runtime"):
            assert part in text
    assert "<b>[red]x.onnx" in plain
    assert "&lt;b&gt;[red]x.onnx" in page
    assert "<b>" not in page


def test_no_difference_is_said_so(save: Save, examples: Examples) -> None:
    found = measure(save(np.eye(4), "a.onnx"), examples, save(np.eye(4), "b.onnx"), **QUICK)
    assert " 0.0 points [" in str(found)
    assert "not measurable with this many examples" in str(found)
    worse = measure(save(SWAPPED, "c.onnx"), examples, save(np.eye(4), "b.onnx"), **QUICK)
    assert "measurably less accurate" in str(worse)


def test_the_same_bytes_give_the_same_accuracy_twice(save: Save, examples: Examples) -> None:
    path = save(np.random.default_rng(0).normal(size=(4, 4)))
    one, two = measure(path, examples, **QUICK), measure(path, examples, **QUICK)
    assert one.compressed.accuracy == two.compressed.accuracy
    assert one.compressed.bytes_zstd == two.compressed.bytes_zstd


def test_errors_come_before_long_work(save: Save, examples: Examples, tmp_path: Path) -> None:
    path = save(np.eye(4))
    with pytest.raises(ConfigError, match="seconds is -1"):
        measure(path, examples, seconds=-1)
    with pytest.raises(ConfigError, match="against is int; expected the path of a file"):
        measure(path, examples, 3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="takes batches of 1 only"):
        measure(path, examples, save(np.eye(4), "fixed.onnx", batch=1), batches=(1, 32), seconds=60)
    with pytest.raises(DataError, match="batches of 1 only, the other of 3"):
        measure(save(np.eye(4), "three.onnx", batch=3), examples, tmp_path / "fixed.onnx", seconds=60)
    with pytest.raises(DataError, match="same examples and classes"):
        measure(path, examples, save(np.ones((4, 5)), "five.onnx"), **QUICK)


def test_memory_grows_with_the_file_and_not_with_this_process(save: Save) -> None:
    here = bytearray(700 * 2**20)
    here[::4096] = b"x" * len(here[::4096])  # touched, so that it is really held
    small = peak_memory(Runtime(save(np.eye(4), "small.onnx")), {"x": (4,)}, batches=(1,))
    large = peak_memory(Runtime(save(np.ones((4, 2**21)), "large.onnx")), {"x": (4,)}, batches=(1,))
    del here
    if small is None or large is None:
        pytest.skip("this system does not tell the peak of memory")
    assert small.process_mib < 600
    assert large.file_mib - small.file_mib > 25  # 32 MiB of weights
    assert 0 <= small.file_mib < small.process_mib


def test_memory_of_a_file_that_fails_is_an_error(save: Save) -> None:
    with pytest.raises(ModelError, match=r"measuring the peak memory of .* failed: .*INVALID_ARGUMENT"):
        peak_memory(Runtime(save(np.eye(4))), {"x": (5,)}, batches=(1,))


def test_memory_of_a_file_that_hangs_is_an_error(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PATIENCE", 0.01)
    with pytest.raises(ModelError, match="expected one call per batch size to end by then"):
        peak_memory(Runtime(save(np.eye(4))), {"x": (4,)}, batches=(1,))


def test_the_probe_imports_nothing_of_ours() -> None:
    code = (
        f"import runpy, sys; runpy.run_path({probe.__file__!r}); print('nutlet' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
