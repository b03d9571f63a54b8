"""A weight seen through a stack of constraints.

Every weight-level method is a :mod:`torch.nn.utils.parametrize` parametrization of the dense weight. They stack, so
fine-tuning after the second method still respects the first. Structural methods *carry* the stack (select the kept
slices), *recompute* parts of it (scales), or *dissolve* it (bake it into the values), and say so in the history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nutlet.errors import ModelError

__all__ = [
    "PLAIN_WEIGHT",
    "Constraint",
    "FewValues",
    "Mask",
    "WeightQuantizer",
    "constrain",
    "constrained_layers",
    "constrained_weight",
    "constraints",
    "has_own_weight",
    "output_axis",
    "raw_weight",
    "refit",
    "take_off",
    "widen",
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

    def anew(self, weight: Tensor, axis: int = 0) -> Constraint | None:
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


class FewValues(Constraint):
    """Leaves a weight few values, each of which an integer code stands for."""

    @property
    def levels(self) -> Sequence[int]:
        """The codes that occur, in ascending order: -1, 0, 1 of ternary weights."""
        raise NotImplementedError

    def codes(self, weight: Tensor) -> Tensor:
        """Return the integer codes of ``weight``, which must lie on its values already (as after ``forward``)."""
        raise NotImplementedError

    def values(self, codes: Tensor) -> Tensor:
        """Return exactly the weight that ``codes``, of its shape, stand for."""
        raise NotImplementedError


class WeightQuantizer(FewValues):
    """Symmetric signed 8-bit integers with one scale per output channel; zero stays exactly zero.

    ``q = clamp(round(w / s), -127, 127)`` and ``w' = s q`` with ``s = max|w| / 127`` per channel (Krishnamoorthi
    2018, arXiv:1806.08342, section 2). The gradient passes straight through inside the range.

    ``portable`` widens a scale where needed so that the codes of two inputs that lie side by side sum to at most 128
    in either direction. x86 processors without VNNI multiply such pairs by 8-bit activations into 16 bits, which
    saturate above 32,767: 255 x 128 does not. Halving the range of all weights, the usual remedy, costs a whole bit.

    Args:
        scale: ``(channels,)`` positive.
        axis: axis of the output channels in the weight.
        portable: whether :meth:`refit` keeps pairs from saturating.
    """

    order: ClassVar[int] = 1
    scale: Tensor
    zero_point: Tensor
    limit = 127

    def __init__(self, scale: Tensor, axis: int = 0, *, portable: bool = True) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros(len(scale), dtype=torch.int32))
        self.axis = axis
        self.portable = portable

    @staticmethod
    def fit(weight: Tensor, axis: int = 0, *, portable: bool = True) -> WeightQuantizer:
        """Return the quantizer whose ranges just cover ``weight``."""
        quantizer = WeightQuantizer(torch.ones(weight.shape[axis]), axis, portable=portable)
        quantizer.refit(weight)
        return quantizer

    def refit(self, weight: Tensor) -> None:
        """Set the scales so that they just cover ``weight``."""
        channels = weight.detach().movedim(self.axis, 0)
        scale = channels.flatten(1).abs().amax(1) / self.limit
        if self.portable:
            # Two roundings may add one to a pair's sum, hence 127.5 and not 128.
            scale = torch.maximum(scale, _largest_pair(channels) / 127.5)
        self.scale = scale.clamp_min(1e-12)

    def widen(self, weight: Tensor) -> None:
        """Make room for weights that training has moved beyond the scales; no scale becomes smaller."""
        before = self.scale
        self.refit(weight)
        self.scale = torch.maximum(before, self.scale)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the nearest representable weights."""
        return torch.fake_quantize_per_channel_affine(
            weight, self.scale, self.zero_point, self.axis, -self.limit, self.limit
        )

    def codes(self, weight: Tensor) -> Tensor:
        """Return the int8 codes of ``weight``, which must lie on the grid already (as after :meth:`forward`)."""
        shape = [1] * weight.ndim
        shape[self.axis] = -1
        return torch.round(weight / self.scale.view(shape)).clamp(-self.limit, self.limit).to(torch.int8)

    @property
    def levels(self) -> Sequence[int]:
        """The codes from -127 to 127."""
        return range(-self.limit, self.limit + 1)

    def values(self, codes: Tensor) -> Tensor:
        """Return exactly the weight that ``codes``, of its shape, stand for."""
        shape = [1] * codes.ndim
        shape[self.axis] = -1
        return codes * self.scale.view(shape)

    def anew(self, weight: Tensor, axis: int = 0) -> WeightQuantizer:
        """Return the quantizer whose ranges just cover ``weight``."""
        return WeightQuantizer.fit(weight, axis, portable=self.portable)

    def select(self, dim: int, keep: Tensor) -> WeightQuantizer:
        """Return the quantizer of the kept slices; ranges stay, they still cover what is left."""
        scale = self.scale.index_select(0, keep) if dim == self.axis else self.scale.clone()
        return WeightQuantizer(scale, self.axis, portable=self.portable)


def _largest_pair(channels: Tensor) -> Tensor:
    """Return per output channel the largest sum, in either direction, of two weights that a kernel multiplies at once.

    Kernels run over positions first and input channels inside; an odd number of input channels is either padded or
    runs on into the next position, so both are looked at.
    """
    inputs = channels.movedim(1, -1)  # (outputs, positions..., inputs)
    width = inputs.shape[-1]
    layouts = [inputs.reshape(len(channels), -1, width)]
    if width % 2:
        layouts.append(inputs.reshape(len(channels), 1, -1))
    largest = torch.zeros(len(channels), device=channels.device)
    for layout in layouts:
        padded = torch.nn.functional.pad(layout, (0, layout.shape[-1] % 2)).unflatten(-1, (-1, 2))  # type: ignore[no-untyped-call]
        for sign in (1, -1):
            largest = torch.maximum(largest, (sign * padded).clamp_min(0).sum(-1).flatten(1).amax(1))
    return largest


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


def constrain(layer: nn.Module, stack: list[Constraint]) -> None:
    """Put ``stack`` on the weight of ``layer``, each in its place by :attr:`Constraint.order`.

    One that is there already and is of the same class gives way.
    """
    new = {type(constraint) for constraint in stack}
    kept = [constraint for constraint in take_off(layer) if type(constraint) not in new]
    for constraint in sorted([*kept, *stack], key=lambda c: c.order):
        parametrize.register_parametrization(layer, "weight", constraint.to(raw_weight(layer).device))


def take_off(layer: nn.Module, *, bake: bool = False) -> list[Constraint]:
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


def widen(model: nn.Module) -> None:
    """Keep the pairs of all portable quantizers from saturating after training has moved the weights."""
    for _, layer in constrained_layers(model):
        for constraint, weight in _seen_by(layer):
            if isinstance(constraint, WeightQuantizer) and constraint.portable:
                constraint.widen(weight)


def _seen_by(layer: nn.Module) -> Iterator[tuple[Constraint, Tensor]]:
    """Yield each constraint with what the ones before it leave of the weight; none counts what a mask removes."""
    stack = constraints(layer)
    weight = raw_weight(layer).detach()
    for mask in stack:
        if isinstance(mask, Mask):
            weight = mask(weight)
    for constraint in stack:
        yield constraint, weight
        with torch.no_grad():
            weight = constraint(weight)


def constrained_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the name and module of every layer that carries constraints."""
    for name, module in model.named_modules():
        if constraints(module):
            yield name, module
