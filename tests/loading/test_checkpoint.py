"""What a file of weights claims is held against its bytes before any memory is taken for it."""

from __future__ import annotations

import resource
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nutlet.errors import StorageError
from nutlet.loading.weights import read_weights

NAMED = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(5)}


class Fat:
    def __reduce__(self) -> Any:
        return bytearray, (3 * 10**9,)


def repacked(path: Path, method: int, change: Callable[[bytes], bytes] = bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("new_format", [True, False])
def test_both_formats_are_read(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": NAMED, "epoch": 3}, path, _use_new_zipfile_serialization=new_format)
    found = read_weights(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in NAMED.items())


def test_what_would_grow_is_refused_before_it_does(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for new_format in (True, False):
        torch.save({**NAMED, "fat": Fat()}, path, _use_new_zipfile_serialization=new_format)
        with pytest.raises(StorageError, match=r"asks for bytearray\(3000000000\)"):
            read_weights(path)
    torch.save(NAMED, path)
    repacked(path, zipfile.ZIP_DEFLATED)
    with pytest.raises(StorageError, match="compressed member"):
        read_weights(path)
    torch.save({"a": torch.zeros(1000)}, path)
    repacked(path, zipfile.ZIP_STORED, lambda table: table.replace(b"M\xe8\x03", b"J\xff\xff\xff\x3f"))
    with pytest.raises(StorageError, match="declares 4,294,967,292 bytes for the storage '0', more than it holds"):
        read_weights(path)
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"M\xe8\x03", b"J\xff\xff\xff\x3f"))
    with pytest.raises(StorageError, match="declares tensors of 4,294,967,292 bytes"):
        read_weights(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.ones(3, dtype=torch.complex64), "complex numbers .torch.complex64"),
        (torch.ones(3, 3).to_sparse(), "sparse tensor .torch.sparse_coo"),
        (torch.ones(3, device="meta"), "without values .meta"),
        (quantized(), "quantized tensor .torch.qint8"),
        (torch.ones(1).expand(10**9), r"shape \(1000000000,\), of which the file holds only 4 bytes"),
    ],
)
def test_tensors_that_are_not_dense_and_real_are_named(tmp_path: Path, tensor: Tensor, says: str) -> None:
    torch.save({"good": torch.ones(2), "odd": tensor}, tmp_path / "w.pt")
    with pytest.raises(StorageError, match=f"'odd' .*{says}"):
        read_weights(tmp_path / "w.pt")


def test_an_expanded_buffer_of_moderate_size_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(1000)}, tmp_path / "w.pt")
    assert torch.equal(read_weights(tmp_path / "w.pt")["a"], torch.ones(1000))


def test_the_header_of_safetensors_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes((10**9).to_bytes(8, "little") + b"{" + bytes(100))
    with pytest.raises(StorageError, match="a header of 1,000,000,000 bytes"):
        read_weights(tmp_path / "w.safetensors")
