"""Examples that stay in their data set: read batch by batch, never whole, and refused by name where they cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import nutlet as nl


class Counting(Dataset[tuple[Tensor, Tensor]]):
    """Makes examples when it is asked, and knows how many were alive at once."""

    def __init__(self, length: int = 400, broken: int = -1) -> None:
        self.length, self.broken, self.read = length, broken, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.broken:
            raise OSError("the disk is gone")
        self.read += 1
        x = torch.randn(10, generator=torch.Generator().manual_seed(index))
        return x, (x[0] > 0).long()


def test_the_same_as_in_memory(tmp_path: Path) -> None:
    source = Counting()
    x, y = (torch.stack(part) for part in zip(*(source[k] for k in range(len(source))), strict=True))
    memory, streamed = (nl.split(part, calibration=64) for part in (nl.Examples(x, y), nl.Streamed(source)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    recipe = [nl.FineTune(epochs=2, batch_size=32), nl.Quantize()]
    first, second = (nl.compress(model, recipe, data, workdir=tmp_path / name)
                     for name, data in (("a", memory), ("b", streamed)))  # fmt: skip
    assert [step.accuracy for step in first.steps] == [step.accuracy for step in second.steps]
    path = first.export(tmp_path / "m.onnx")
    found, other = (
        nl.measure(path, data, model, seconds=0.01, batches=(1,), threads=(1,)) for data in (memory, streamed)
    )
    assert (found.compressed.accuracy, found.agreement) == (other.compressed.accuracy, other.agreement)


def test_no_more_than_a_batch_is_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = nl.Streamed(Counting(1200))
    largest = 0
    batch = nl.Streamed.batch

    def watched(self: nl.Streamed, indices: Any) -> tuple[Any, Tensor]:
        nonlocal largest
        x, y = batch(self, indices)
        largest = max(largest, len(y))
        return x, y

    monkeypatch.setattr(nl.Streamed, "batch", watched)
    data = nl.split(examples, calibration=64)
    nl.compress(
        nn.Sequential(nn.Linear(10, 2)).eval(),
        [nl.PruneWeights(sparsity=0.5), nl.FineTune(epochs=1, batch_size=32)],
        data,
    )
    assert 0 < largest <= 500 < len(examples)


def test_a_loader_pads_what_is_ragged() -> None:
    class Ragged(Counting):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return torch.ones(4 + index % 3, dtype=torch.int64), torch.zeros(4 + index % 3, dtype=torch.int64)

    with pytest.raises(nl.DataError, match=r"shapes \(4,\), \(5,\); expected one shape: pad or cut"):
        nl.Streamed(Ragged(), "language_modeling")

    def padded(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        rows = [nn.functional.pad(x, (0, 6 - len(x))) for x, _ in items]
        return torch.stack(rows), torch.stack([nn.functional.pad(y, (0, 6 - len(y)), value=-1) for _, y in items])

    x, y = nl.Streamed(DataLoader(Ragged(), collate_fn=padded), "language_modeling").batch([0, 1])
    assert x.shape == (2, 6)
    assert int((y < 0).sum()) == 3


def test_inputs_by_name_and_arrays() -> None:
    rows = [({"ids": torch.arange(3), "mask": torch.ones(3, dtype=torch.bool)}, k % 2) for k in range(6)]
    examples = nl.Streamed(DataLoader(rows))  # type: ignore[arg-type]
    assert examples.shapes == {"ids": (3,), "mask": (3,)}
    assert examples.batch(slice(0, 2))[0]["mask"].dtype == torch.bool


def test_what_cannot_be_streamed_is_refused() -> None:
    class Endless(IterableDataset[tuple[Tensor, int]]):
        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            while True:
                yield torch.zeros(3), 0

    class Unmeasured(Dataset[tuple[Tensor, int]]):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.zeros(3), 0

    for source in (Endless(), Unmeasured(), DataLoader(Endless())):
        with pytest.raises(nl.ConfigError, match="no length or gives no example by its number"):
            nl.Streamed(source)
    with pytest.raises(nl.DataError, match=r"expected \(input, target\)"):
        nl.Streamed(TensorDataset(torch.zeros(3, 2)))
    with pytest.raises(nl.DataError, match="found no examples"):
        nl.Streamed(Counting(0))
    data = nl.split(nl.Streamed(Counting(broken=300)), calibration=32)
    with pytest.raises(nl.DataError, match="OSError at example 300: the disk is gone"):
        nl.compress(nn.Linear(10, 2).eval(), [nl.FineTune(epochs=1)], data)
