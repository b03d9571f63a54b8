"""Golden hashes: a change that is meant to change nothing leaves every exported file, and a small audit, as they were.

    python tests/test_golden.py     # records them anew: for a change that the changelog names

They hold for one set of versions and one kind of processor, which stand beside them: elsewhere sums are rounded in
another order, and the tests are skipped.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import nutlet as nl
import tiny
from nutlet.measurement import environment

RECORD = Path(__file__).with_name("golden.json")
PACKAGES = ("torch", "numpy", "onnx", "onnxscript", "onnx-ir", "scikit-learn", "scipy")

TRAINING = nl.Distill(epochs=1, batch_size=16, lr=0.01)
RECIPES: dict[str, tuple[str, Sequence[nl.Method]]] = {
    "original": ("cnn", [nl.PruneWeights(sparsity=0.0001)]),
    "int8": ("cnn", [nl.Quantize()]),
    "int8-mlp": ("mlp", [nl.Quantize()]),
    "int8-attention": ("attention", [nl.Quantize()]),
    "int8-weights": ("cnn", [nl.Quantize(activations=False)]),
    "int4-trained": ("cnn", [nl.Quantize(bits=4, learn=True), TRAINING]),
    "groups": ("mlp", [nl.Quantize(bits=4, granularity="group", group_size=2, activations=False)]),
    "adaround": ("cnn", [nl.AdaRound(bits=3)]),
    "gptq": ("mlp", [nl.GPTQ(bits=3, group_size=0)]),
    "mixed": ("cnn", [nl.MixedPrecision(bits=5)]),
    "ternary": ("cnn", [nl.Ternarize(), TRAINING]),
    "binary": ("mlp", [nl.Binarize(), TRAINING]),
    "codebook": ("cnn", [nl.Cluster(values=8)]),
    "half": ("cnn", [nl.HalfPrecision()]),
    "sparse": ("cnn", [nl.PruneWeights(sparsity=0.8), TRAINING, nl.Quantize()]),
    "pattern": ("mlp", [nl.PruneSecondOrder(pattern="2:4")]),
    "channels": ("cnn", [nl.PruneChannels(ratio=0.5), TRAINING]),
    "heads": ("attention", [nl.PruneHeads(ratio=0.5)]),
    "blocks": ("cnn", [nl.DropBlocks(drop=1), nl.Quantize()]),
    "low-rank": ("mlp", [nl.Factorize(energy=0.6)]),
    "tucker": ("cnn", [nl.Factorize(decomposition="tucker", drop=0.2)]),
    "student": ("cnn", [nl.Student(width=0.5, start="fresh"), TRAINING]),
    "chain": ("cnn", [nl.PruneChannels(ratio=0.25), nl.PruneWeights(sparsity=0.5), TRAINING, nl.Quantize(bits=4)]),
}


def circumstances() -> dict[str, str]:
    """Return what the hashes hold for."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {**versions, "cpu": torch.backends.cpu.get_cpu_capability(), "machine": str(environment()["cpu"])}


def exported(name: str, folder: Path) -> str:
    """Return the SHA-256 of the file that a recipe gives."""
    kind, recipe = RECIPES[name]
    model, data = tiny.tiny(kind)
    file = nl.compress(model, recipe, data).export(folder / "model.onnx")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def audited(folder: Path) -> dict[str, Any]:
    """Return the figures of a small audit."""
    model, data = tiny.tiny("mlp")
    small = nl.compress(model, [nl.Quantize()], data)
    file = small.export(folder / "model.onnx")
    original = nl.export_onnx(model, folder / "original.onnx", small.example)
    protocol = nl.Protocol(
        queries=(16,), seeds=1, effort=0.05, shadow_models=2, attacks=("Knockoff", "RMIA", "LossThreshold", "FileLeaks")
    )
    attacks = nl.audit(file, data, original, protocol=protocol).value["attacks"]
    return {
        attack["name"]: hashlib.sha256(json.dumps(_without_times(attack)).encode()).hexdigest()
        for attack in attacks
        if attack["status"] == "run"
    }


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in sorted(value.items()) if "seconds" not in key}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(RECORD.read_text())
    here = circumstances()
    other = {name: (value, here[name]) for name, value in record["circumstances"].items() if here[name] != value}
    if other:
        pytest.skip(f"the hashes were recorded elsewhere: {other}")
    return record


@pytest.mark.parametrize("name", RECIPES)
def test_a_file_is_what_it_was(name: str, golden: dict[str, Any], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    assert exported(name, tmp_path) == golden["files"][name]


def test_an_audit_is_what_it_was(golden: dict[str, Any], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    assert audited(tmp_path) == golden["audit"]


def test_resnet20_is_what_it_was(golden: dict[str, Any], real_data: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    assert resnet20(real_data, tmp_path) == golden["resnet20"]


def resnet20(folder: Path, out: Path) -> str:
    """Return the SHA-256 of the quantized ResNet-20, calibrated on its own test images."""
    data = nl.load_data(str(folder / "cifar10" / "test.npz"), mean=(0.5,) * 3, std=(0.25,) * 3, calibration=64)
    model = nl.load_model(f"{folder / 'models' / 'arch.py'}:CifarResNet(20)", folder / "models" / "resnet20_cifar10.pt")
    small = nl.compress(model, [nl.Quantize()], data)
    return hashlib.sha256(small.export(out / "resnet20.onnx").read_bytes()).hexdigest()


def main() -> None:
    """Record the hashes of this machine."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record = {
            "circumstances": circumstances(),
            "files": {recipe: exported(recipe, folder) for recipe in RECIPES},
            "audit": audited(folder),
            "resnet20": resnet20(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data"), folder),
        }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
