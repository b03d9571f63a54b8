"""What a model takes: one tensor, or several by the names of the arguments of its forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nutlet.content_hash import fingerprint
from nutlet.errors import DataError

__all__ = [
    "Inputs",
    "NamedInputs",
    "as_tensors",
    "blank",
    "cast",
    "floating",
    "input_shapes",
    "shapes_of",
    "with_floating",
]


class NamedInputs(Mapping[str, Tensor]):
    """Inputs by name, one row of each for an example: token ids, an attention mask, features.

    What is asked of a batch (its rows, a copy, a device) it answers as a tensor does, for all of them at once;
    :func:`len` counts examples.

    Args:
        tensors: name to tensor, batch first, as many rows of each.

    >>> batch = NamedInputs({"ids": torch.zeros(3, 5, dtype=torch.int64), "mask": torch.ones(3, 5)})
    >>> len(batch), len(batch[:2]), sorted(batch)
    (3, 2, ['ids', 'mask'])
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __getitem__(self, key: Any) -> Any:
        """Return the input of that name, or the rows at an index, a slice or a list of indices."""
        return self.tensors[key] if isinstance(key, str) else self._changed(lambda tensor: tensor[key])

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __repr__(self) -> str:
        return f"NamedInputs({', '.join(f'{name}: {tuple(t.shape)} {t.dtype}' for name, t in self.tensors.items())})"

    @property
    def shape(self) -> dict[str, tuple[int, ...]]:
        """The shape of each."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def ndim(self) -> int:
        """No number of dimensions is that of all of them: 0, which no memory format of images fits."""
        return 0

    def fingerprint(self) -> str:
        """Return a hash of the names and the values."""
        return fingerprint(self.tensors)

    def check_rows(self) -> None:
        """Raise DataError where there are no inputs, or their numbers of rows differ."""
        rows = {name: len(tensor) if tensor.ndim else 0 for name, tensor in self.tensors.items()}
        if len(set(rows.values())) != 1:
            found = ", ".join(f"{name} {count}" for name, count in rows.items()) or "none"
            raise DataError(f"the inputs have these numbers of rows: {found}; expected as many of each, one an example")

    def clone(self) -> NamedInputs:
        """Return copies."""
        return self._changed(Tensor.clone)

    def contiguous(self, *, memory_format: torch.memory_format = torch.contiguous_format) -> NamedInputs:
        """Return them as they are: several inputs are not laid out as images."""
        return self

    def to(self, device: torch.device, **options: Any) -> NamedInputs:
        """Return them on a device."""
        return self._changed(lambda tensor: tensor.to(device, **options))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> NamedInputs:
        return NamedInputs({name: change(tensor) for name, tensor in self.tensors.items()})


Inputs: TypeAlias = Tensor | NamedInputs
"""A batch of inputs."""


def floating(inputs: Inputs) -> list[Tensor]:
    """Return the floating-point tensors, in order: the others are indices and masks."""
    return [tensor for tensor in as_tensors(inputs).values() if tensor.is_floating_point()]


def with_floating(inputs: Inputs, change: Callable[[int, Tensor], Tensor]) -> Inputs:
    """Return inputs with ``change`` made to each floating-point tensor, which is told its place among them."""
    changed = {id(tensor): change(k, tensor) for k, tensor in enumerate(floating(inputs))}
    if isinstance(inputs, NamedInputs):
        return NamedInputs({name: changed.get(id(tensor), tensor) for name, tensor in inputs.tensors.items()})
    return changed.get(id(inputs), inputs)


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Return inputs with their floating-point tensors in ``dtype``: integers are indices and masks, and stay."""
    return with_floating(inputs, lambda _, tensor: tensor.to(dtype))


def as_tensors(inputs: Inputs) -> dict[str, Tensor]:
    """Return the tensors by name; one alone is called ``x``, as in exported files."""
    return inputs.tensors if isinstance(inputs, NamedInputs) else {"x": inputs}


def input_shapes(inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Return the shape of one example of each input.

    >>> input_shapes(torch.zeros(7, 3, 8, 8))
    {'x': (3, 8, 8)}
    """
    return {name: tuple(tensor.shape[1:]) for name, tensor in as_tensors(inputs).items()}


def shapes_of(inputs: Inputs) -> str:
    """Return the shapes of a batch, for a message.

    >>> shapes_of(torch.zeros(2, 3)), shapes_of(NamedInputs({"ids": torch.zeros(2, 5), "mask": torch.zeros(2, 5)}))
    ('(2, 3)', 'ids (2, 5), mask (2, 5)')
    """
    if isinstance(inputs, NamedInputs):
        return ", ".join(f"{name} {shape}" for name, shape in inputs.shape.items())
    return str(tuple(inputs.shape))


def blank(inputs: Inputs) -> Inputs:
    """Return zeros of the same names, shapes and dtypes."""
    if isinstance(inputs, NamedInputs):
        return NamedInputs({name: torch.zeros_like(tensor) for name, tensor in inputs.tensors.items()})
    return torch.zeros_like(inputs)
