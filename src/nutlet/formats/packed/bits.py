"""Tensors as few bytes, and back bit for bit: integers in as many bits as they need, positions as gaps, short floats.

Pure functions. Whoever unpacks knows dtype and count beforehand, so nothing in the bytes decides how much memory is
taken, and every function refuses bytes that do not fit what it was asked for.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "Reader",
    "flat_bytes",
    "integers_size",
    "pack_integers",
    "pack_positions",
    "pack_tensor",
    "same_bits",
    "unpack_integers",
    "unpack_positions",
    "unpack_tensor",
]

Array = npt.NDArray[np.uint8]

MOST_LEVELS = 1 << 16
RAW, SAME, HALF, BRAIN, POSITIONS = range(5)
"""How a tensor is stored: as it is; one element for all; two forms of 16-bit floats; where it is true."""
_SHORT = {HALF: torch.float16, BRAIN: torch.bfloat16}
_INVERTED = 0x80
_LENGTH = struct.Struct("<I")


class Reader:
    """Takes bytes off the front of ``content``.

    >>> reader = Reader(b"abc")
    >>> reader.take(2), reader.left
    (b'ab', 1)
    """

    def __init__(self, content: bytes) -> None:
        self.content = memoryview(content)
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes not taken yet."""
        return len(self.content) - self.at

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes.

        Raises:
            ValueError: there are fewer.
        """
        if count > self.left:
            raise ValueError(f"found {self.left:,} bytes at its end; expected {count:,}: the file is cut short")
        self.at += count
        return bytes(self.content[self.at - count : self.at])


def integers_size(levels: int, count: int) -> int:
    """Return the bytes that ``count`` integers below ``levels`` take.

    Several in a byte, as digits of a number below 256, where that is no longer than their bits side by side: eight of
    two levels, five of three, two of sixteen.

    >>> [integers_size(levels, 120) for levels in (1, 2, 3, 4, 8, 16, 255)]
    [0, 15, 24, 30, 45, 60, 120]
    """
    digits = _digits(levels)
    return -(-count // digits) if digits else -(-count * _width(levels) // 8)


def pack_integers(values: npt.NDArray[np.integer], levels: int) -> bytes:
    """Return integers from 0 to ``levels - 1`` in :func:`integers_size` bytes.

    Args:
        values: ``(n,)``.
        levels: how many different ones there may be, at most 65,536.

    >>> pack_integers(np.array([2, 1, 0, 0, 2]), 3)[0] == 2 + 3 * 1 + 81 * 2
    True
    """
    if levels == 1:
        return b""
    digits = _digits(levels)
    if not digits:
        return np.packbits(_bits(values, _width(levels)), bitorder="little").tobytes()
    padded = np.zeros((-(-len(values) // digits), digits), np.int64)
    padded.reshape(-1)[: len(values)] = values
    return (padded @ levels ** np.arange(digits)).astype(np.uint8).tobytes()


def unpack_integers(content: bytes, levels: int, count: int) -> npt.NDArray[np.integer]:
    """Return the ``(count,)`` integers that :func:`pack_integers` packed.

    Raises:
        ValueError: the bytes are not as many as these take, or an integer is not below ``levels``.
    """
    if len(content) != integers_size(levels, count):
        raise ValueError(f"found {len(content):,} bytes of codes; expected {integers_size(levels, count):,}")
    if levels == 1:
        return np.zeros(count, np.uint8)
    found = np.frombuffer(content, np.uint8)
    values: npt.NDArray[np.integer]
    digits = _digits(levels)
    if not digits:
        values = _from_bits(np.unpackbits(found, count=count * _width(levels), bitorder="little"), _width(levels))
        valid = values < levels
    else:
        valid = found < levels**digits
        parts = [(found // levels**k) % levels for k in range(digits)] if digits > 1 else [found]
        values = np.stack(parts, axis=1).reshape(-1)[:count]
    if not valid.all():
        raise ValueError(f"found a code that is none; expected integers from 0 to {levels - 1}")
    return values


def pack_positions(mask: npt.NDArray[np.bool_]) -> bytes:
    """Return where ``mask`` is true, as gaps of the number of bits that makes the whole smallest.

    A gap of ``2^w - 1`` or more is written as that many steps and the rest (Han et al. 2016, arXiv:1510.00149, section
    2, with the width chosen). Of one bit they are the plain bitmap, which thus is the upper bound. Where most are
    true, those that are false are written.

    >>> sparse = np.arange(8000) % 100 == 0
    >>> len(pack_positions(sparse)), len(pack_positions(~sparse)), len(pack_positions(sparse | ~sparse))
    (71, 71, 1)
    """
    inverted = bool(2 * np.count_nonzero(mask) > mask.size)
    hits = np.flatnonzero(mask != inverted)
    gaps = np.diff(hits, prepend=-1) - 1
    counts = np.bincount(gaps)
    costs = {w: w * (len(hits) + int(counts @ (np.arange(len(counts)) // ((1 << w) - 1)))) for w in range(1, 17)}
    width = min(costs, key=lambda w: costs[w])
    longest = (1 << width) - 1
    steps, rest = np.divmod(gaps, longest)
    symbols = np.full(len(hits) + int(steps.sum()), longest)
    symbols[np.cumsum(steps + 1) - 1] = rest
    bits = _bits(symbols, width)
    # Filled up with ones: steps that lead to no position.
    filled = np.pad(bits, (0, -len(bits) % 8), constant_values=1)
    return bytes([width | _INVERTED * inverted]) + np.packbits(filled, bitorder="little").tobytes()


def unpack_positions(content: bytes, count: int) -> npt.NDArray[np.bool_]:
    """Return the ``(count,)`` mask that :func:`pack_positions` packed.

    Raises:
        ValueError: it is longer than a bitmap, or a position lies beyond the end.
    """
    if not 1 <= len(content) <= 1 + -(-count // 8):
        raise ValueError(f"found {len(content):,} bytes of positions; expected 1 to {1 + -(-count // 8):,}")
    inverted, width = bool(content[0] & _INVERTED), content[0] & ~_INVERTED
    if not 1 <= width <= 16:
        raise ValueError(f"found gaps of {width} bits; expected 1 to 16")
    bits = np.unpackbits(np.frombuffer(content, np.uint8, offset=1), bitorder="little")
    symbols = _from_bits(bits[: len(bits) // width * width], width).astype(np.int64)
    longest = (1 << width) - 1
    ends = symbols != longest
    hits = (np.cumsum(symbols + ends) - 1)[ends]
    if len(hits) and hits[-1] >= count:
        raise ValueError(f"found position {hits[-1]:,}; expected positions below {count:,}")
    mask = np.full(count, inverted)
    mask[hits] = not inverted
    return mask


def pack_tensor(tensor: Tensor) -> bytes:
    """Return any tensor in the shortest form that gives back every bit of it.

    >>> [len(pack_tensor(t)) for t in (torch.rand(100), torch.zeros(100), torch.arange(100.0), torch.ones(100) > 0)]
    [401, 5, 201, 2]
    """
    raw = flat_bytes(tensor)
    forms = {RAW: raw.tobytes()}
    elements = raw.reshape(-1, tensor.element_size())
    # The last first: of most tensors that are not all the same it already differs.
    if len(elements) and np.array_equal(elements[0], elements[-1]) and bool((elements == elements[0]).all()):
        forms[SAME] = elements[0].tobytes()
    if tensor.dtype == torch.float32:
        for form, dtype in _SHORT.items():
            short = tensor.to(dtype)
            if same_bits(short.to(tensor.dtype), tensor):
                forms[form] = flat_bytes(short).tobytes()
    if tensor.dtype == torch.bool:
        positions = pack_positions(raw.astype(np.bool_))
        forms[POSITIONS] = _LENGTH.pack(len(positions)) + positions
    form = min(forms, key=lambda form: len(forms[form]))
    return bytes([form]) + forms[form]


def unpack_tensor(reader: Reader, dtype: torch.dtype, count: int) -> Tensor:
    """Return the ``(count,)`` tensor that :func:`pack_tensor` packed.

    Raises:
        ValueError: the bytes are no tensor of that dtype and count.
    """
    (form,) = reader.take(1)
    if form == RAW:
        return _tensor(reader.take(count * dtype.itemsize), dtype)
    if form == SAME:
        return _tensor(reader.take(dtype.itemsize), dtype).repeat(count)
    if form in _SHORT and dtype == torch.float32:
        return _tensor(reader.take(2 * count), _SHORT[form]).to(dtype)
    if form == POSITIONS and dtype == torch.bool:
        (length,) = _LENGTH.unpack(reader.take(_LENGTH.size))
        return torch.from_numpy(unpack_positions(reader.take(length), count))
    raise ValueError(f"found form {form} of a tensor of {dtype}; expected one of the forms of this version")


def flat_bytes(tensor: Tensor) -> Array:
    """Return the bytes of ``tensor`` in its order."""
    flat: Array = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal to the sign of zero and the payload of NaN.

    >>> same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    False
    """
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and bool(np.array_equal(flat_bytes(one), flat_bytes(other)))


def _tensor(content: bytes, dtype: torch.dtype) -> Tensor:
    if not content:
        return torch.empty(0, dtype=dtype)
    raw = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    # Any byte but zero is true, and a bool must not be any byte.
    return raw != 0 if dtype == torch.bool else raw.view(dtype)


def _width(levels: int) -> int:
    return (levels - 1).bit_length()


def _digits(levels: int) -> int:
    """Return how many integers share a byte as digits, or 0 where their bits side by side are shorter."""
    if not 1 <= levels <= MOST_LEVELS:
        raise ValueError(f"found {levels} levels; expected 1 to {MOST_LEVELS:,}")
    if levels == 1:
        return 0
    digits = 0
    while levels ** (digits + 1) <= 256:
        digits += 1
    return digits if digits * _width(levels) >= 8 else 0


def _bits(values: npt.NDArray[np.integer], width: int) -> Array:
    words = np.ascontiguousarray(values, dtype="<u2").view(np.uint8).reshape(-1, 2)
    return np.unpackbits(words, axis=1, bitorder="little")[:, :width].reshape(-1)


def _from_bits(bits: Array, width: int) -> npt.NDArray[np.uint16]:
    words = np.packbits(np.pad(bits.reshape(-1, width), ((0, 0), (0, 16 - width))), axis=1, bitorder="little")
    return np.ascontiguousarray(words).view("<u2").reshape(-1)
