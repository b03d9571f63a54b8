"""What every registered format has to keep: a later one is added to `FORMATS` and passes as it stands."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nutlet as nl
import tiny
from npz_format import NPZ
from nutlet.attacks.base import AttackerKnowledge
from nutlet.attacks.white_box.file_leaks import FileLeaks
from nutlet.formats import DEFAULT, Runtime, format_for, format_of, known_formats
from nutlet.formats.base import REGISTRY
from nutlet.graph.kernels import KernelProfile
from nutlet.measurement import measure
from nutlet.oracle import FileSource, Oracle
from nutlet.tasks.predict import predict

FORMATS = {"ONNX": DEFAULT, "NPZ": NPZ}
DATA = tiny.tiny_data((10,))
QUICK = {"batches": (1, 4), "threads": (1,), "seconds": 0.02}


class SecretlyNamedNet(nn.Module):
    """A net that every format has to take: dense layers with ReLU between them, under names that nobody is to read."""

    def __init__(self) -> None:
        super().__init__()
        self.private_stem = nn.Linear(10, 48)
        self.activation = nn.ReLU()
        self.private_head = nn.Linear(48, tiny.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.private_head(self.activation(self.private_stem(x)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Shipped:
    format: nl.Format
    path: Path
    module: nn.Module

    @property
    def x(self) -> np.ndarray:
        return DATA.train.x.numpy()

    @property
    def expected(self) -> np.ndarray:
        return predict(self.module, DATA.train).numpy()


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    """The toy format is known to the tests of this file alone."""
    nl.register_format(NPZ)
    yield
    del REGISTRY.kinds["NPZ"]


@pytest.fixture(scope="module", params=FORMATS)
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _registered: None) -> Shipped:
    form = FORMATS[request.param]
    model = tiny.settled(SecretlyNamedNet(), DATA.train.x)
    small = nl.compress(model, [nl.PruneWeights(sparsity=0.5)], DATA)
    path = small.export(tmp_path_factory.mktemp("formats") / f"model{form.suffixes[0]}")
    return Shipped(form, path, small.model)


def test_every_format_is_tested() -> None:
    assert set(known_formats()) == set(FORMATS)


def test_it_is_found_by_name_and_by_its_first_bytes(shipped: Shipped, tmp_path: Path) -> None:
    assert format_for(shipped.path) is format_of(shipped.path) is shipped.format
    unnamed = tmp_path / "downloaded"
    unnamed.write_bytes(shipped.path.read_bytes())
    if shipped.format.magic:
        assert format_of(unnamed) is shipped.format
        assert Runtime(unnamed).content == shipped.path.read_bytes()
    assert shipped.format.file.endswith(f"{shipped.format.name} file")
    assert isinstance(shipped.format.kernels, KernelProfile)


def test_it_answers_as_the_module(shipped: Shipped) -> None:
    for batch in (1, 3, 64):
        np.testing.assert_allclose(Runtime(shipped.path).predict(DATA.train, batch=batch), shipped.expected, atol=1e-4)


def test_the_batch_is_free_or_named(shipped: Shipped) -> None:
    runtime = Runtime(shipped.path, threads=1)
    ((first, *rest),) = (given.shape for given in runtime.inputs.values())
    assert rest == [10]
    if runtime.fixed_batch is None:
        assert not isinstance(first, int)
        for size in (1, 2, 7):
            assert runtime.run(shipped.x[:size]).shape == (size, tiny.CLASSES)
    else:
        assert first == runtime.fixed_batch
        with pytest.raises(nl.DataError, match=f"takes batches of {first} only"):
            runtime.batch_of(DATA.train, runtime.fixed_batch + 1)


def test_threads_are_those_asked_for_and_change_no_answer(shipped: Shipped) -> None:
    one = Runtime(shipped.path, threads=1)
    two = one.reopened(2)
    assert (one.threads, two.threads) == (1, 2)
    assert two.content == one.content
    np.testing.assert_allclose(two.run(shipped.x), one.run(shipped.x), atol=1e-5)


def test_bytes_are_those_on_disk_and_the_same_every_time(shipped: Shipped, tmp_path: Path) -> None:
    content = shipped.path.read_bytes()
    assert Runtime(shipped.path).content == content
    assert measure(shipped.path, DATA, **QUICK).compressed.bytes == len(content)  # type: ignore[arg-type]
    again = shipped.format.export(shipped.module, tmp_path / shipped.path.name, DATA.train.x[:2])
    assert again.read_bytes() == content


def test_unpacked_answers_the_same_and_is_no_smaller(shipped: Shipped, tmp_path: Path) -> None:
    plain = shipped.format.export(shipped.module, tmp_path / shipped.path.name, DATA.train.x[:2], packed=False)
    np.testing.assert_array_equal(Runtime(plain).predict(DATA.train), Runtime(shipped.path).predict(DATA.train))
    assert plain.stat().st_size >= shipped.path.stat().st_size


def test_nothing_of_the_training_code_is_left(shipped: Shipped) -> None:
    content = shipped.path.read_bytes()
    for word in (b"private", b"Secret", b"torch", b"nutlet", b".py"):
        assert word not in content
    knowledge = AttackerKnowledge(classes=tiny.CLASSES, shape=(10,), seed=0, file=shipped.path)
    (found,) = FileLeaks().run(Oracle(FileSource(shipped.path)), knowledge, ())
    assert {item["item"] for item in (found.facts or {})["items"] if item["found"]} <= {"architecture", "weights"}


def test_damaged_files_are_refused_or_answer(shipped: Shipped, tmp_path: Path) -> None:
    content, path = shipped.path.read_bytes(), tmp_path / shipped.path.name
    for length in np.linspace(0, len(content) - 40, 4).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises((nl.StorageError, nl.ModelError)):
            Runtime(path, threads=1)
    random = np.random.default_rng(0)
    for _ in range(5):
        broken = bytearray(content)
        broken[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(broken)
        with contextlib.suppress(nl.NutletError):  # a flipped bit of a weight is another model, and no damage
            Runtime(path, threads=1).predict(DATA.validation)


def test_what_is_no_file_is_refused(shipped: Shipped, tmp_path: Path) -> None:
    suffix = shipped.format.suffixes[0]
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(nl.StorageError, match=r"is not a regular file; expected an? \w+ file: give"):
        Runtime(tmp_path / f"folder{suffix}")
    with pytest.raises(nl.StorageError, match="does not exist"):
        Runtime(tmp_path / f"missing{suffix}")
    (tmp_path / f"text{suffix}").write_text("weights, allegedly")
    with pytest.raises(nl.StorageError, match="export it again"):
        Runtime(tmp_path / f"text{suffix}")


def test_a_session_serves_several_threads(shipped: Shipped) -> None:
    runtime = Runtime(shipped.path, threads=1)
    parts = [shipped.x[start : start + 8] for start in range(0, 64, 8)] * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(runtime.run, parts))
    for part, outputs in zip(parts, found, strict=True):
        np.testing.assert_array_equal(outputs, runtime.run(part))


def test_outputs_come_by_name(shipped: Shipped) -> None:
    session = shipped.format.open(shipped.path.read_bytes(), shipped.path, 1)
    feed = {session.inputs[0].name: shipped.x[:8]}
    session.admit({name: values.shape for name, values in feed.items()})
    name = session.outputs[0].name
    np.testing.assert_array_equal(session.run(feed, outputs=(name,))[0], session.run(feed)[0])


def test_a_source_travels_to_another_process(shipped: Shipped) -> None:
    source = FileSource(shipped.path)
    sent = pickle.loads(pickle.dumps(source))
    assert torch.equal(sent(DATA.train.x), source(DATA.train.x))
    assert sent.fingerprint() == source.fingerprint()


def test_what_is_read_back_answers_the_same(shipped: Shipped) -> None:
    reader = shipped.format.reader
    if reader is None:
        pytest.skip("nothing reads this format back")
    module = reader.load(shipped.path)
    np.testing.assert_allclose(predict(module, DATA.train).numpy(), shipped.expected, atol=1e-4)
    assert any(p.requires_grad for p in module.parameters())
    contents = reader.inspect(shipped.path)
    weights = [p for p in shipped.module.parameters() if p.ndim > 1]
    assert len(contents.operators) == len(weights)
    stored = [tensor.values for tensor in contents.tensors if tensor.values.ndim > 1]
    assert sum(array.size for array in stored) == sum(weight.numel() for weight in weights)


def test_a_model_without_a_form_is_refused(shipped: Shipped, tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    path = tmp_path / f"model{shipped.format.suffixes[0]}"
    with pytest.raises(nl.ExportError, match=r"[Ee]xpected"):
        shipped.format.export(Branching().eval(), path, torch.zeros(2, 4))
    assert not path.exists()


def test_a_name_without_a_format_is_refused(shipped: Shipped, tmp_path: Path) -> None:
    small = nl.compress(shipped.module, [nl.PruneWeights(sparsity=0.6)], DATA)
    with pytest.raises(nl.ConfigError, match=r"names no format; expected a name that ends in .*\.onnx"):
        small.export(tmp_path / "model.bin")
    (tmp_path / "noise").write_bytes(b"\xff" * 64)
    with pytest.raises(nl.StorageError, match="of no format that is known here"):
        Runtime(tmp_path / "noise")


def test_a_name_is_given_once() -> None:
    with pytest.raises(nl.ConfigError, match="a format named 'ONNX' is registered already"):
        nl.register_format(nl.Format("ONNX", (".onnx2",), NPZ.runtime, NPZ.export, NPZ.open))


def test_a_format_in_one_file_goes_all_the_way(tmp_path: Path) -> None:
    model = tiny.settled(SecretlyNamedNet(), DATA.train.x)
    original = NPZ.export(model, tmp_path / "original.dense.npz", DATA.train.x[:2])
    small = nl.compress(model, [nl.PruneWeights(sparsity=0.7), nl.FineTune(epochs=1)], DATA, teacher=str(original))
    found = nl.measure(small.export(tmp_path / "small.dense.npz"), DATA, original, **QUICK)  # type: ignore[arg-type]
    assert found.size_ratio is not None
    assert found.size_ratio > 1.2
    assert found.compressed.peak_memory_mib is None, "it has no program that loads it in a bare process"
    assert f"small.dense.npz in NumPy {np.__version__}" in str(found)
    quick = nl.Protocol(queries=(16,), seeds=2, effort=0.02, attacks=("Knockoff", "FileLeaks"))
    value = nl.audit(tmp_path / "small.dense.npz", DATA, original, protocol=quick).value
    assert {attack["name"] for attack in value["attacks"] if attack["status"] == "run"} == {"Knockoff", "FileLeaks"}


def test_quantizers_are_placed_for_the_kernels_of_the_target(tmp_path: Path) -> None:
    model = tiny.settled(tiny.TinyMLP(), DATA.train.x)
    recipe = [nl.Quantize(), nl.PruneWeights(sparsity=0.2)]
    for_onnx, for_npz = (nl.compress(model, recipe, DATA, target=name) for name in ("ONNX", "NPZ"))
    sites, more = (list(small.model.by_site) for small in (for_npz, for_onnx))  # type: ignore[arg-type]
    # The second term of an addition is quantized only where additions are computed on integers.
    assert [site for site in more if site not in sites] == ["block1.fc2/linear/0", "block2.fc2/linear/0"]
    schemes = [small.steps[1].plan["weights"]["fc1"] for small in (for_onnx, for_npz)]
    assert [scheme.get("reduce_range", True) for scheme in schemes] == [True, False]
    again = nl.Compressed.load(for_npz.save(tmp_path / "saved"), model)
    assert list(again.model.by_site) == sites  # type: ignore[arg-type]
    assert torch.equal(again.model(DATA.train.x), for_npz.model(DATA.train.x))
    with pytest.raises(nl.ConfigError, match="there is no format 'ONX'; did you mean 'ONNX'"):
        nl.compress(model, recipe, DATA, target="ONX")


def test_without_a_reader_only_what_looks_inside_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = replace(NPZ, reader=None)
    monkeypatch.setitem(REGISTRY.kinds, "NPZ", blind)
    model = tiny.settled(SecretlyNamedNet(), DATA.train.x)
    path = blind.export(model, tmp_path / "model.dense.npz", DATA.train.x[:2])
    quick = nl.Protocol(queries=(16,), seeds=2, effort=0.02, attacks=("Knockoff", "FileLeaks", "Reuse"))
    attacks = {attack["name"]: attack for attack in nl.audit(path, DATA, protocol=quick).value["attacks"]}
    assert attacks["Knockoff"]["status"] == "run"
    for name in ("FileLeaks", "Reuse"):
        assert "nothing here reads a NPZ file" in attacks[name]["reason"]
