"""A model's tensors as one string of bytes, no longer than what a method left of them, and back bit for bit.

First 16 bytes that say which names, shapes and types of tensors follow. Then each tensor once, however many names it
has, in the order of the state dict: those that are not weights under constraints first, because masks, scales and
codebooks say how the weights are stored, namely where the mask is true only, and as codes where values are few.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nutlet.constraints import Quantizer, formats
from nutlet.constraints.stack import (
    constrained_layers,
    constrained_weight,
    constraints,
    has_own_weight,
    keep_mask,
    raw_weight,
)
from nutlet.formats.packed.bits import (
    Reader,
    integers_size,
    pack_integers,
    pack_tensor,
    same_bits,
    unpack_integers,
    unpack_tensor,
)
from nutlet.storage import digest

__all__ = ["Packed", "most_bytes", "pack", "sync_dense", "unpack"]

_PLAIN, _KEPT, _CODES = range(3)
"""How a weight under constraints is stored: whole; where its mask is true; as codes, where its mask is true."""
_SIGNATURE = 16
_FORMS = 2
"""Bytes that say how a weight and its tensor are stored."""


@dataclass(frozen=True)
class Packed:
    """The tensors of a model, packed.

    Args:
        content: all of them.
        sizes: bytes of each in ``content`` by its name in the state dict; another name of the same tensor has none.
    """

    content: bytes
    sizes: dict[str, int]


def sync_dense(model: nn.Module) -> None:
    """Make the dense weights equal to the constrained ones, so that nothing lies below a constraint that it removes.

    The outputs stay the same bit for bit; training goes on from the weights that are in force. A weight that layers
    share and constrain in different ways stays, as does one whose constraints would change it a second time.

    >>> from nutlet.constraints.stack import Mask
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> nn.utils.parametrize.register_parametrization(layer, "weight", Mask(torch.tensor([[True, False]])))
    ParametrizedLinear(...)
    >>> sync_dense(layer)
    >>> raw_weight(layer).tolist()[0][1]
    0.0
    """
    holders = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
    layers: dict[nn.Parameter, list[nn.Module]] = {}
    for _, layer in constrained_layers(model):
        if has_own_weight(layer):
            layers.setdefault(raw_weight(layer), []).append(layer)
    for raw, users in layers.items():
        weight = constrained_weight(users[0]).clone()
        if len(users) < holders[raw] or not all(same_bits(constrained_weight(layer), weight) for layer in users[1:]):
            continue
        before = raw.detach().clone()
        with torch.no_grad():
            raw.copy_(weight)
            if not all(same_bits(constrained_weight(layer), weight) for layer in users):
                raw.copy_(before)


def pack(model: nn.Module) -> Packed:
    """Return the tensors of ``model`` in the fewest bytes that :func:`unpack` makes the same of, bit for bit."""
    state, layers = model.state_dict(), _constrained(model)
    parts = [_signature(state)]
    sizes = {}
    for name in _order(state, layers):
        part = _pack_weight(layers[name], state[name]) if name in layers else pack_tensor(state[name])
        sizes[name] = len(part)
        parts.append(part)
    return Packed(b"".join(parts), sizes)


def most_bytes(model: nn.Module) -> int:
    """Return the most bytes that :func:`pack` makes of tensors like those of ``model``: each as it is, and its form."""
    tensors: list[Tensor] = list(model.state_dict().values())
    return _SIGNATURE + sum(tensor.numel() * tensor.element_size() + _FORMS for tensor in tensors)


def unpack(model: nn.Module, content: bytes) -> None:
    """Write what :func:`pack` packed into ``model``, which has the same tensors with other values.

    Raises:
        ValueError: the bytes are damaged, or of a model with other tensors. Some may have been written by then.
    """
    state, layers = model.state_dict(), _constrained(model)
    reader = Reader(content)
    if reader.take(_SIGNATURE) != _signature(state):
        raise ValueError("found tensors of other names, shapes or types; expected those of this architecture")
    for name in _order(state, layers):
        tensor = state[name]
        try:
            if name in layers:
                value = _unpack_weight(layers[name], tensor, reader)
            else:
                value = unpack_tensor(reader, tensor.dtype, tensor.numel())
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        with torch.no_grad():
            tensor.copy_(value.view(tensor.shape))
    if reader.left:
        raise ValueError(f"found {reader.left:,} bytes after the last tensor; expected none")


def _constrained(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers under constraints by the names of their dense weights."""
    return {
        ".".join([*filter(None, [name]), "parametrizations.weight.original"]): layer
        for name, layer in constrained_layers(model)
        if has_own_weight(layer)
    }


def _order(state: dict[str, Tensor], layers: dict[str, nn.Module]) -> list[str]:
    """Return the names to store, one for each tensor, and last the weights whose form depends on other tensors."""
    seen = set()
    names = []
    for name in sorted(state, key=lambda name: name in layers):
        tensor = state[name]
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        names.append(name)
    return names


def _signature(state: dict[str, Tensor]) -> bytes:
    lines = [f"{name} {list(tensor.shape)} {tensor.dtype}" for name, tensor in state.items()]
    return bytes.fromhex(digest(*lines)[: 2 * _SIGNATURE])


def _pack_weight(layer: nn.Module, weight: Tensor) -> bytes:
    mask, few = keep_mask(layer).flatten(), _few_values(layer)
    kept = weight.flatten()[mask]
    plain = bytes([_PLAIN]) + pack_tensor(weight)
    if not same_bits(_spread(kept, mask).view(weight.shape), weight):  # see sync_dense(): it is not as its constraints say
        return plain
    forms = [plain, bytes([_KEPT]) + pack_tensor(kept)]
    if few is not None:
        codes = few.codes(weight).flatten()[mask].cpu()
        levels = torch.tensor(few.levels)
        places = torch.searchsorted(levels, codes.long()).clamp_max(len(levels) - 1)
        if torch.equal(levels[places], codes.long()) and same_bits(_from_codes(layer, few, places, mask), weight):
            forms.append(bytes([_CODES]) + pack_integers(places.numpy(), len(levels)))
    return min(forms, key=len)


def _unpack_weight(layer: nn.Module, weight: Tensor, reader: Reader) -> Tensor:
    (form,) = reader.take(1)
    if form == _PLAIN:
        return unpack_tensor(reader, weight.dtype, weight.numel())
    mask, few = keep_mask(layer).flatten(), _few_values(layer)
    count = int(mask.sum())
    if form == _KEPT:
        return _spread(unpack_tensor(reader, weight.dtype, count), mask)
    if form == _CODES and few is not None:
        levels = len(few.levels)
        places = unpack_integers(reader.take(integers_size(levels, count)), levels, count)
        return _from_codes(layer, few, torch.from_numpy(places.astype(np.int64)), mask).view(weight.shape)
    raise ValueError(f"found form {form} of a weight; expected one that its constraints allow")


def _few_values(layer: nn.Module) -> Quantizer | None:
    """Return the constraint that leaves the fewest values."""
    return min(formats(layer), key=lambda few: len(few.levels), default=None)


def _from_codes(layer: nn.Module, few: Quantizer, places: Tensor, mask: Tensor) -> Tensor:
    codes = torch.full(mask.shape, few.levels[0], dtype=torch.int16, device=mask.device)
    codes[mask] = torch.tensor(few.levels, dtype=torch.int16, device=mask.device)[places.to(mask.device)]
    stack = constraints(layer)
    with torch.no_grad():
        weight = few.values(codes.view(raw_weight(layer).shape))
        for constraint in stack[stack.index(few) + 1 :]:
            weight = constraint(weight)
    return weight.flatten().masked_fill(~mask, 0.0).view(weight.shape)


def _spread(kept: Tensor, mask: Tensor) -> Tensor:
    spread = kept.new_zeros(mask.shape)
    spread[mask] = kept.to(mask.device)
    return spread
