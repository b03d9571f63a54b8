"""What makes an intermediate a different one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nutlet as nl
import tiny
from nutlet.compression.pipeline import _keys
from nutlet.methods import PruneWeights, Quantize


def test_the_users_code_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = "from torch import nn\nclass Net(nn.Linear):\n    def forward(self, x):\n        return x.sum() * {}\n"
    data = tiny.tiny("mlp")[1]
    keys = []
    for factor in ("1.0", "2.0", "1.0"):
        name = f"net{len(keys)}"
        (tmp_path / f"{name}.py").write_text(source.format(factor))
        torch.manual_seed(0)
        keys.append(_keys(importlib.import_module(name).Net(4, 3), data, [Quantize()], 0)[-1])
        del sys.modules[name]
    assert keys[0] == keys[2] != keys[1]


def test_two_augmentations_of_one_name_differ() -> None:
    model, data = tiny.tiny("mlp")

    def key(augment: object) -> str:
        return _keys(model, replace(data, augment=augment), [Quantize()], 0)[-1]  # type: ignore[arg-type]

    def louder(x: Tensor, generator: torch.Generator) -> Tensor:
        return x * 2

    first = louder

    def louder(x: Tensor, generator: torch.Generator) -> Tensor:  # type: ignore[no-redef]
        return x * 3

    assert key(first) != key(louder)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_other_threads_are_another_chain_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(nl.Progress, "say", lambda self, text: said.append(text))
    model, data = tiny.tiny("mlp")
    steps = [PruneWeights(sparsity=0.3), Quantize()]
    with threads(2):
        nl.compress(model, steps[:1], data, workdir=tmp_path)
    with threads(1):
        mixed = nl.compress(model, steps, data, workdir=tmp_path)
        assert any("made with 2 threads" in text and "OMP_NUM_THREADS=2" in text for text in said)
        assert not any("were done before" in text for text in said)
    assert [step.threads for step in mixed.steps] == [1, 1, 1]
    with threads(2):
        resumed = nl.compress(model, steps, data, workdir=tmp_path)
    assert any("steps 1 to 1 were done before" in text for text in said)
    assert [step.threads for step in resumed.steps] == [2, 2, 2]
    saved = resumed.save(tmp_path / "saved")
    assert [step.threads for step in nl.Compressed.load(saved, model).steps] == [2, 2, 2]
