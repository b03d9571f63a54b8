"""Every bad input through the command line: one message that says what to do, an exit code, nothing half-written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from job import MODULE, Job, arrays, invoke
from nutlet.errors import ConfigError, DataError, ExportError, ModelError, NutletError, StorageError
from nutlet.loading import load_model


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(sys, "path", sys.path[:])
    return Job(tmp_path)


def refused(job: Job, result: Result, error: type[NutletError], *says: str) -> None:
    """Assert that the run ended in one message of this kind and left nothing."""
    assert result.exit_code == error.exit_code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith(f"nutlet: {error.__name__}: ")
    assert result.stderr.count("nutlet: ") == 1
    assert "Traceback" not in result.stderr
    for text in ("expected|did you mean|; known: ", *says):
        assert re.search(text, result.stderr), f"{text!r} is not in: {result.stderr}"
    assert job.halves() == []
    assert not job.out.exists() or [path for path in job.out.rglob("*") if path.is_file()] == []


def weights(job: Job, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    state = load_model(f"{job.folder / MODULE}:make").state_dict()
    path = job.folder / "weights.pt"
    torch.save(change(state) or state, path)
    return path


def test_nan_weights(job: Job) -> None:
    path = weights(job, lambda state: state["fc.weight"].view(-1)[3].fill_(float("nan")) and None)
    refused(job, job.compress("-w", path), ModelError, r"NaN or infinity in fc\.weight", "earlier checkpoint")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_a_checkpoint_that_holds_a_pickle(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(job.folder)
    path = weights(job, lambda state: {**state, "evil": Evil()})
    refused(job, job.compress("-w", path), StorageError, "holds code", "not executed", "save_file")
    assert not (job.folder / "executed").exists()


def test_weights_of_another_model(job: Job) -> None:
    path = weights(job, lambda state: {name.replace("fc", "head"): tensor for name, tensor in state.items()})
    refused(job, job.compress("-w", path), ModelError, r"fc\.weight", r"head\.weight", "same names")


X, Y = arrays()


@pytest.mark.parametrize(
    ("x", "y", "error", "says"),
    [
        (X[:, :, 0], Y, ModelError, ["the data give 1x8", "3 axes", "channels x height x width"]),
        (X.repeat(3, 1), Y, ModelError, ["expects 1 channels and gets 3", "grey or RGB"]),
        (X.repeat(2, 3), Y, ModelError, ["fc gets 256 features but expects 128", "resize"]),
        (X[:, 0, 0, 0], Y, DataError, [r"inputs have shape \(100,\)"]),
        (X.astype("int64"), Y, DataError, ["dtype torch.int64", "expected uint8 images, floating point"]),
        (np.where(X > 1.5, np.nan, X), Y, DataError, ["NaN or infinity", "clean or impute"]),
        (X, Y.astype("float32"), DataError, ["labels have .*float32", "integers"]),
        (X, Y - 1, DataError, ["smallest label is -1", "from 0 up"]),
        (X, Y + 7, DataError, ["labels up to 9, the model has 3 outputs", "check the labels"]),
        (X, np.eye(3, dtype="int64")[Y], DataError, ["one-hot labels: take argmax"]),
        (X.astype(object), Y, StorageError, ["pickled objects", "not read"]),
        (X[:26], np.zeros(26, dtype="int64"), DataError, ["all training labels are 0", "at least two classes"]),
        (X[:0], Y[:0], DataError, ["no examples"]),
    ],
)
def test_data(job: Job, x: np.ndarray, y: np.ndarray, error: type[NutletError], says: list[str]) -> None:
    job.save("bad.npz", x, y)
    refused(job, job.compress(data="bad.npz"), error, *says)


def test_a_damaged_data_file(job: Job) -> None:
    whole = (job.folder / "data.npz").read_bytes()
    (job.folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    refused(job, job.compress(data="cut.npz"), StorageError, "damaged", "copy or save it anew")


def test_no_calibration_examples(job: Job) -> None:
    refused(job, job.compress("--calibration", 0), DataError, "at least one calibration example")
    (job.folder / "ready.py").write_text(
        "import numpy as np\nfrom dataclasses import replace\nfrom nutlet import Examples, split\n"
        "def data():\n    whole = split(Examples.from_arrays(np.zeros((90, 1, 8, 8), 'float32'), np.arange(90) % 3), "
        "calibration=9)\n"
        "    return replace(whole, calibration=whole.train.subset(slice(0, 0)))\n"
    )
    arguments = job.arguments(data=f"{job.folder / 'ready.py'}:data")
    place = arguments.index("--calibration")
    del arguments[place : place + 2]
    refused(job, invoke(*arguments), DataError, "the calibration set is empty", "put some into it")


def test_a_model_with_no_layer_that_a_method_supports(job: Job) -> None:
    result = job.compress(model="Norms")
    refused(job, result, ModelError, "Quantize found no layer it supports", r"scale \(LayerNorm\)", "Conv2d")


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("steps: [Quantise]", ["'Quantise', which does not exist", "did you mean 'Quantize'"]),
        ("steps: [{PruneWeights: {sparsty: 0.5}}]", ["no option 'sparsty'", "did you mean 'sparsity'"]),
        ("steps: [{PruneWeights: {sparsity: 1.5}}]", ["sparsity is 1.5", "from 0 up to but not including 1"]),
        ("steps: [{PruneWeights: {sparsity: half}}]", [r"sparsity is 'half' \(str\); expected a share"]),
        ("steps: [PruneWeights]", ["needs the option 'sparsity'", "nutlet methods"]),
        ("steps: [{Quantize: {bits: 1}}]", ["bits is 1; expected a whole number from 2 to 8", "Binarize"]),
        ("steps: [{Quantize: {include: [cnv]}}]", ["'cnv' matches no module", "did you mean 'conv'"]),
        ("stps: [Quantize]", ["unknown key 'stps'", "did you mean 'steps'"]),
        ("steps: []", ["has no steps", "at least one method"]),
        ("", ["holds NoneType", "list of methods"]),
        ("steps: [Quantize", ["is not YAML", "list of methods"]),
        ("steps: [!!python/object/apply:os.system [touch executed]]", ["is not YAML"]),
        ("steps: [{FineTune: {epochs: 1}}, {DropBlocks: {drop: 0}}]", ["drop is 0"]),
    ],
)
def test_recipes(job: Job, monkeypatch: pytest.MonkeyPatch, recipe: str, says: list[str]) -> None:
    monkeypatch.chdir(job.folder)
    refused(
        job, job.compress(recipe=recipe), ConfigError, *[re.escape(text) if "(" not in text else text for text in says]
    )
    assert not (job.folder / "executed").exists()


def test_files_that_are_not_there(job: Job) -> None:
    arguments = job.arguments()
    (job.folder / "recipe.yaml").unlink()
    refused(job, invoke(*arguments), ConfigError, "could not read the recipe")
    refused(job, job.compress(model="mke"), ModelError, "did you mean 'make'")
    refused(job, job.compress("-w", "none.pt"), StorageError, "no file none.pt")
    refused(job, job.compress(data="none.npz"), StorageError, "no file")
    refused(job, job.compress("--mean", "a,b"), ConfigError, "--mean is 'a,b'", "0.5,0.5,0.5")
    refused(job, job.compress("--augment", "crp"), ConfigError, "did you mean 'crop'")


def test_options_the_parser_refuses(job: Job) -> None:
    for more in (("--seconds", 0), ("--seed", "x"), ("--quite",)):
        result = job.compress(*more)
        assert result.exit_code == 2
        assert "Traceback" not in result.stderr


def test_a_model_that_cannot_be_exported(job: Job) -> None:
    with (job.folder / MODULE).open("a") as file:
        file.write(
            "\nclass Branch(Net):\n"
            "    def forward(self, x):\n"
            "        return super().forward(x if float(x.sum()) > 0 else -x)\n"
        )
    result = job.compress(model="Branch", recipe="steps: [{PruneWeights: {sparsity: 0.5}}]")
    assert result.exit_code == ExportError.exit_code
    messages = [line for line in result.stderr.splitlines() if not line.startswith("1/1 ")]
    assert messages[0].startswith("nutlet: ExportError: torch could not export this model to ONNX: Could not guard")
    assert "Traceback" not in result.stderr
    assert job.halves() == []
    assert not (job.out / "model.onnx").exists()


def test_a_report_that_is_none(job: Job) -> None:
    (job.folder / "report.json").write_text('{"schema": 1}')
    refused(job, invoke("report", job.folder), StorageError, "the field .* is missing")
    assert not (job.folder / "report.html").exists()
    (job.folder / "report.json").write_text("{")
    refused(job, invoke("report", job.folder), StorageError, "is not JSON")
    refused(job, invoke("report", job.folder / "none"), StorageError, "could not read")


def test_measuring_what_is_no_model(job: Job) -> None:
    common = ("-d", job.folder / "data.npz")
    refused(
        job, invoke("measure", job.folder / "data.npz", *common), StorageError, "is of no format that is known here"
    )
    refused(job, invoke("measure", job.folder / "no.onnx", *common), StorageError, "does not exist")


def test_an_output_folder_that_is_a_file(job: Job) -> None:
    job.out.write_text("here already")
    result = job.compress()
    assert result.exit_code == StorageError.exit_code
    assert re.search(r"could not write .*; choose a folder that can be written", result.stderr)
    assert job.out.read_text() == "here already"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 300 KB, where the system lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True, check=False
        )
    except OSError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(job: Job, small_disk: Path) -> None:
    job.out = small_disk / "out"
    recipe = "steps: [{FineTune: {epochs: 1}}, Quantize]"
    filler, ended = small_disk / "filler", []
    # From no room at all to nearly enough: it runs full in another file each time, and each run goes on from the last.
    for room in (0, 4, 8, 12, 28):
        with filler.open("wb") as file:
            file.truncate(0)
            status = os.statvfs(small_disk)
            file.write(bytes(max(0, status.f_bavail * status.f_frsize - room * 1024)))
        result = job.compress(recipe=recipe)
        ended.append(result.exit_code)
        assert job.halves() == []
        if result.exit_code:
            assert result.exit_code == StorageError.exit_code, result.output
            assert "Traceback" not in result.stderr
            message = result.stderr.splitlines()[-1]
            assert re.search(r"nutlet: StorageError: could not write .*: the disk is full; free some space", message)
            assert message.endswith("nothing was left half-written")
            name = re.search(r"could not write (\S+):", message)
            assert name is not None
            assert not Path(name[1]).exists()
        filler.unlink()
    assert ended[0] == StorageError.exit_code
    assert job.compress(recipe=recipe).exit_code == 0


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="this system has no such limit")
    code = """
import resource, sys
from pathlib import Path
from nutlet.storage import write_text
folder = Path(sys.argv[1])
write_text(folder / "kept", "the old file")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_text(folder / "kept", "x" * 10_000)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert re.search("StorageError could not write .*kept: it would be larger .*free some space", done.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "the old file"


def test_a_negative_seed(job: Job) -> None:
    refused(job, invoke("demo", "--out", job.out, "--seed", "-1"), ConfigError, "the seed is -1")
    refused(job, job.compress("--seed", "-1"), ConfigError, "the seed is -1")
