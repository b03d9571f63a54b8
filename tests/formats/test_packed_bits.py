"""Tensors as few bytes and back, on every width and shape, and bytes that are not what was packed."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nutlet.formats.packed.bits import (
    Reader,
    integers_size,
    pack_integers,
    pack_positions,
    pack_tensor,
    same_bits,
    unpack_integers,
    unpack_positions,
    unpack_tensor,
)

COUNTS = (0, 1, 2, 7, 8, 9, 1001)
LEVELS = [1, 2, 3, 4, 5, 6, 7, 9, 27, 255, 257, *(1 << bits for bits in range(3, 17))]


@pytest.mark.parametrize("levels", LEVELS)
def test_integers_come_back_and_take_no_more_than_their_bits(levels: int) -> None:
    random = np.random.default_rng(levels)
    for count in COUNTS:
        values = random.integers(0, levels, count)
        content = pack_integers(values, levels)
        assert len(content) == integers_size(levels, count) <= math.ceil(count * (levels - 1).bit_length() / 8)
        np.testing.assert_array_equal(unpack_integers(content, levels, count), values)


def test_sizes_as_promised() -> None:
    for bits in range(1, 17):
        assert integers_size(1 << bits, 999) == math.ceil(999 * bits / 8)
    assert integers_size(3, 1000) == 200  # 1.6 bits
    assert integers_size(5, 900) == integers_size(6, 900) == 300


@pytest.mark.parametrize("levels", [2, 3, 5, 8, 255, 1000])
def test_codes_of_another_length_or_beyond_the_last_are_refused(levels: int) -> None:
    content = pack_integers(np.full(24, levels - 1), levels)
    for wrong in (content[:-1], content + b"\0", b""):
        with pytest.raises(ValueError, match="expected"):
            unpack_integers(wrong, levels, 24)
    if levels & (levels - 1):
        with pytest.raises(ValueError, match="found a code that is none"):
            unpack_integers(b"\xff" * len(content), levels, 24)


@pytest.mark.parametrize("share", [0, 0.001, 0.05, 0.1, 0.3, 0.5, 0.7, 0.99, 1])
def test_positions_come_back_and_take_no_more_than_a_bitmap(share: float) -> None:
    random = np.random.default_rng(0)
    for count in (0, 1, 8, 9, 63, 10_007):
        mask = random.random(count) < share
        content = pack_positions(mask)
        assert len(content) <= 1 + math.ceil(count / 8)
        np.testing.assert_array_equal(unpack_positions(content, count), mask)


@pytest.mark.parametrize(("share", "slack"), [(0.01, 1.1), (0.05, 1.15), (0.1, 1.1), (0.9, 1.1)])
def test_positions_take_little_more_than_their_entropy(share: float, slack: float) -> None:
    mask = np.random.default_rng(1).random(100_000) < share
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share))
    assert 8 * len(pack_positions(mask)) / 100_000 < slack * entropy


def test_positions_in_one_corner() -> None:
    for mask in (np.arange(5000) < 1000, np.arange(5000) >= 4000, np.arange(5000) == 4999, np.arange(70_000) == 69_999):
        np.testing.assert_array_equal(unpack_positions(pack_positions(mask), len(mask)), mask)


@pytest.mark.parametrize("content", [b"", b"\0", b"\x11", b"\x01" + bytes(14), b"\x01\0\0", b"\x10" + b"\xfe\xff"])
def test_positions_that_are_none_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        unpack_positions(content, 15)


FLOATS = torch.randn(50, generator=torch.Generator().manual_seed(0))
NAN = torch.tensor([0x7FC00001, 0x7F800001, -0x80000000, 1], dtype=torch.int32).view(torch.float32)
TENSORS = {
    "floats": (FLOATS, 200),
    "half floats": (FLOATS.half().float(), 100),
    "brain floats": (FLOATS.bfloat16().float(), 100),
    "doubles": (FLOATS.double(), 400),
    "halves": (FLOATS.half(), 100),
    "zeros": (torch.zeros(3, 5), 4),
    "signed zeros": (torch.tensor([0.0, -0.0] * 20), 80),
    "one": (torch.ones(()), 2),
    "odd floats": (NAN.repeat(10), 160),
    "infinite": (torch.tensor([float("inf"), 1.0, -2.0]), 6),
    "nothing": (torch.zeros(0, 3), 0),
    "counter": (torch.tensor(300), 8),
    "zero points": (torch.zeros(16, dtype=torch.int32), 4),
    "mask": (FLOATS > 0, 4 + 1 + 7),
    "whole mask": (FLOATS < 100, 1),
    "turned": (FLOATS.view(5, 10).t(), 200),
}


@pytest.mark.parametrize("name", TENSORS)
def test_any_tensor_comes_back_bit_for_bit(name: str) -> None:
    tensor, size = TENSORS[name]
    content = pack_tensor(tensor)
    assert len(content) - 1 <= size
    reader = Reader(content)
    back = unpack_tensor(reader, tensor.dtype, tensor.numel())
    assert same_bits(back.view(tensor.shape), tensor)
    assert reader.left == 0
    for cut in range(len(content)):
        with pytest.raises(ValueError, match="expected"):
            unpack_tensor(Reader(content[:cut]), tensor.dtype, tensor.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64, torch.float64])
@given(content=st.binary(max_size=80))
@settings(max_examples=100, deadline=None)
def test_any_bytes_give_a_tensor_or_a_refusal(dtype: torch.dtype, content: bytes) -> None:
    try:
        back = unpack_tensor(Reader(content), dtype, 60)
    except ValueError:
        return
    assert back.dtype == dtype
    assert back.shape == (60,)
    assert dtype != torch.bool or set(back.view(torch.uint8).tolist()) <= {0, 1}


def test_what_is_asked_for_decides_the_memory_not_the_bytes() -> None:
    def refused(dtype: torch.dtype, count: int, content: bytes) -> None:
        with pytest.raises(ValueError, match="expected"):
            unpack_tensor(Reader(content), dtype, count)

    tracemalloc.start()
    try:
        refused(torch.float32, 10**12, b"\0" + bytes(100))
        refused(torch.float32, 10**12, b"\2" + bytes(100))
        refused(torch.bool, 60, b"\4" + (2**32 - 1).to_bytes(4, "little") + bytes(100))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_same_bits_tells_types_and_shapes_apart() -> None:
    one: Tensor = torch.ones(2)
    assert same_bits(one, one.clone())
    assert not same_bits(one, one.double())
    assert not same_bits(one, one.view(2, 1))
