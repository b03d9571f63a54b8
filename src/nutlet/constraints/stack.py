"""A weight seen through a stack of constraints.

Every weight-level method is a :mod:`torch.nn.utils.parametrize` parametrization of the dense weight. They stack, so
fine-tuning after the second method still respects the first. Structural methods *carry* the stack (select the kept
slices), *recompute* parts of it (scales), or *dissolve* it (bake it into the values), and say so in the history.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nutlet.errors import ModelError

__all__ = [
    "PLAIN_WEIGHT",
    "Constraint",
    "Mask",
    "constrain",
    "constrained_layers",
    "constrained_weight",
    "constraints",
    "dense_weight",
    "expand_range",
    "has_own_weight",
    "keep_mask",
    "output_axis",
    "raw_weight",
    "refit",
    "remove_constraints",
]


PLAIN_WEIGHT = (
    "expected a plain parameter: call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') before "
    "compressing"
)
"""How to mend a layer whose weight something else makes."""


class Constraint(nn.Module):
    """A function of one weight, ``forward(w) -> w`` of the same shape, that can follow structural changes.

    Constraints of a layer apply in the order of :attr:`order`, whatever the order in which methods put them on.
    """

    order: ClassVar[int] = 0
    """Place in the stack: 0 chooses among freely chosen values, 1 puts values on a grid of integers, 2 masks them."""

    def select(self, dim: int, keep: Tensor) -> Constraint:
        """Return the constraint of ``w.index_select(dim, keep)``."""
        raise NotImplementedError

    def refit(self, weight: Tensor) -> None:
        """Recompute what depends on the values of the weight, after a method changed them."""

    def expand_range(self, weight: Tensor) -> None:
        """Make room for a weight that training has moved, without moving what is there."""

    @property
    def supports_scaling(self) -> bool:
        """Whether :meth:`times` follows exactly, so that a batch norm can be folded into the layer."""
        return True

    def scale_outputs(self, factor: Tensor) -> None:
        """Follow a weight whose output channels are multiplied by ``factor``, ``(channels,)``."""

    def fit_like(self, weight: Tensor, axis: int = 0) -> Constraint | None:
        """Return a constraint of the same format fitted to another weight, or None where none can follow from this one.

        Args:
            weight: of any shape, as the factors of a weight are.
            axis: axis of the output channels in it.
        """
        return None


class Mask(Constraint):
    """Keeps the weights where ``mask`` is true and makes the others exactly zero.

    >>> Mask(torch.tensor([True, False]))(torch.tensor([3.0, 4.0]))
    tensor([3., 0.])
    """

    # Last: whatever values a layer may take, what was removed stays zero.
    order: ClassVar[int] = 2
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return ``weight`` with zeros where the mask is false."""
        return weight.masked_fill(~self.mask, 0.0)  # not a product: that gives -0.0, which does not compress

    def select(self, dim: int, keep: Tensor) -> Mask:
        """Return the mask of the kept slices."""
        return Mask(self.mask.index_select(dim, keep))


def output_axis(layer: nn.Module) -> int:
    """Return the axis of the output channels in the weight of a layer."""
    return 1 if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)) else 0


def constraints(layer: nn.Module) -> list[Constraint]:
    """Return the constraints on the weight of ``layer``, in the order they apply."""
    return [c for c in _parametrizations(layer) if isinstance(c, Constraint)]


def has_own_weight(layer: nn.Module) -> bool:
    """Whether the weight is a parameter of ``layer`` below nothing but constraints.

    The parametrizations of others (``weight_norm``) compute it from other parameters.

    >>> has_own_weight(nn.Linear(2, 2)), has_own_weight(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    (True, False)
    """
    stack = _parametrizations(layer)
    return all(isinstance(c, Constraint) for c in stack) if stack else "weight" in layer._parameters


def _parametrizations(layer: nn.Module) -> list[nn.Module]:
    if not parametrize.is_parametrized(layer, "weight"):
        return []
    return list(layer.parametrizations["weight"])  # type: ignore[index]


def raw_weight(layer: nn.Module) -> nn.Parameter:
    """Return the dense weight below all constraints, the one that is trained.

    Raises:
        ModelError: the weight is not a parameter of the layer, see :func:`has_own_weight`.
    """
    if not has_own_weight(layer):
        raise ModelError(f"the weight of {layer} is not a parameter of its own; {PLAIN_WEIGHT}")
    if parametrize.is_parametrized(layer, "weight"):
        layer = layer.parametrizations["weight"]  # type: ignore[index,assignment]
    return layer.get_parameter("original" if isinstance(layer, parametrize.ParametrizationList) else "weight")


def constrained_weight(layer: nn.Module) -> Tensor:
    """Return the weight as the layer uses it, detached."""
    with torch.no_grad():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return weight.detach()


def dense_weight(layer: nn.Module) -> Tensor:
    """Return the weight before it is quantized, with zeros where it is masked."""
    return raw_weight(layer).detach().masked_fill(~keep_mask(layer), 0.0)


def keep_mask(layer: nn.Module) -> Tensor:
    """Return where the weight of ``layer`` may differ from zero: where no mask removes it."""
    kept = torch.ones_like(raw_weight(layer), dtype=torch.bool)
    for constraint in constraints(layer):
        if isinstance(constraint, Mask):
            kept = kept & constraint.mask
    return kept


def constrain(layer: nn.Module, stack: list[Constraint]) -> None:
    """Put ``stack`` on the weight of ``layer``, each in its place by :attr:`Constraint.order`.

    One that is there already and is of the same class gives way.
    """
    new = {type(constraint) for constraint in stack}
    kept = [constraint for constraint in remove_constraints(layer) if type(constraint) not in new]
    for constraint in sorted([*kept, *stack], key=lambda c: c.order):
        parametrize.register_parametrization(layer, "weight", constraint.to(raw_weight(layer).device))


def remove_constraints(layer: nn.Module, *, bake: bool = False) -> list[Constraint]:
    """Remove all constraints of ``layer`` and return them; ``bake`` leaves the constrained values, not the raw ones."""
    stack = constraints(layer)
    if stack:
        if bake:
            # Baking writes in place, and another layer may share the dense weight.
            raw = raw_weight(layer)
            layer.parametrizations["weight"].original = nn.Parameter(raw.detach().clone(), raw.requires_grad)  # type: ignore[index,union-attr]
        # A deep copy shares the class that torch made for the original, and removal deletes the class's property
        # `weight`: without a class of its own, taking constraints off a copy would break the original.
        kind = type(layer)
        layer.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=bake)
    return stack


def refit(layer: nn.Module) -> None:
    """Recompute what the constraints of ``layer`` take from its weight, after a method changed that."""
    for constraint, weight in _seen_by(layer):
        constraint.refit(weight)


def expand_range(model: nn.Module) -> None:
    """Let all constraints make room for what training has moved."""
    for _, layer in constrained_layers(model):
        for constraint, weight in _seen_by(layer):
            constraint.expand_range(weight)


def _seen_by(layer: nn.Module) -> Iterator[tuple[Constraint, Tensor]]:
    """Yield each constraint with what the ones before it leave of the weight; none counts what a mask removes."""
    weight = dense_weight(layer)
    for constraint in constraints(layer):
        yield constraint, weight
        with torch.no_grad():
            weight = constraint(weight)


def constrained_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the name and module of every layer that carries constraints."""
    for name, module in model.named_modules():
        if constraints(module):
            yield name, module
