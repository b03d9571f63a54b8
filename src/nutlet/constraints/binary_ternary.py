"""Weights of two or three values: a sign, or a sign and zero."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.constraints.quantizer import LEAST_SCALE, Quantizer, along, fitting, looked_up, scale_grad

__all__ = ["Binarizer", "TrainedTernarizer"]


class Binarizer(Quantizer):
    """The sign of a weight, times a scale: ``w' = s sign(w)``, with ``sign(0) = 1``.

    Without a scale this is BinaryConnect (Courbariaux et al. 2015, arXiv:1511.00363); with ``s = mean|w|`` the binary
    weights nearest to ``w`` (Rastegari et al. 2016, arXiv:1603.05279, section 3.1). Training learns the scale further.

    Args:
        scale: ``(channels,)`` or ``(1,)``, positive; fixed at one for ``granularity="none"``.
        axis: axis of the output channels in the weight.
        granularity: what has one scale.
    """

    order: ClassVar[int] = 1
    scale: Tensor

    def __init__(self, scale: Tensor, axis: int, granularity: Literal["none", "tensor", "channel"]) -> None:
        super().__init__()
        if granularity == "none":
            self.register_buffer("scale", scale)
        else:
            self.scale = nn.Parameter(scale)
        self.axis = axis
        self.granularity = granularity

    @staticmethod
    def fit(weight: Tensor, axis: int = 0, granularity: Literal["none", "tensor", "channel"] = "channel") -> Binarizer:
        """Return the binarizer nearest to ``weight``."""
        binarizer = Binarizer(weight.new_ones(weight.shape[axis] if granularity == "channel" else 1), axis, granularity)
        binarizer.refit(weight)
        return binarizer

    @property
    def levels(self) -> range:
        """Minus one and one."""
        return range(-1, 2, 2)

    @property
    def integer(self) -> bool:
        """Always."""
        return True

    @property
    def supports_scaling(self) -> bool:
        """Whether a factor per channel can go into the scales."""
        return self.granularity == "channel"

    @property
    def step(self) -> Tensor:
        """The scale as it is applied."""
        return self.scale.abs().clamp_min(LEAST_SCALE)

    def codes(self, weight: Tensor) -> Tensor:
        """Return the signs, int16."""
        return torch.where(weight.detach() < 0, -1, 1).to(torch.int16)

    def values(self, codes: Tensor) -> Tensor:
        """Return the signs times their scales."""
        share = (len(self.scale) / codes.numel()) ** 0.5
        return codes.float() * scale_grad(self.step, share).view(along(self.axis, codes.ndim))

    def restored(self, stored: Tensor) -> Tensor:
        """Return the weight of stored signs."""
        return stored.float() * self.step.detach().view(along(self.axis, stored.ndim))

    def refit(self, weight: Tensor) -> None:
        """Set the scales to the mean magnitude of what is not zero."""
        if self.granularity == "none" or not fitting():
            return
        rows = weight.detach().movedim(self.axis, 0).reshape(len(self.scale), -1)
        mean = rows.abs().sum(1) / (rows != 0).sum(1).clamp_min(1)
        with torch.no_grad():
            self.scale.copy_(mean.clamp_min(LEAST_SCALE))

    def fit_like(self, weight: Tensor, axis: int = 0) -> Binarizer:
        """Return the binarizer of another weight."""
        return Binarizer.fit(weight, axis, self.granularity)

    def scale_outputs(self, factor: Tensor) -> None:
        """Follow a weight whose output channels are multiplied by ``factor``."""
        with torch.no_grad():
            self.scale.copy_((self.step * factor.abs()).clamp_min(LEAST_SCALE))

    def select(self, dim: int, keep: Tensor) -> Binarizer:
        """Return the binarizer of the kept slices."""
        scale = self.scale.detach()
        own = self.granularity == "channel" and dim == self.axis
        return Binarizer(scale.index_select(0, keep) if own else scale.clone(), self.axis, self.granularity)


class TrainedTernarizer(Quantizer):
    """Zero, and one value on either side that training learns (TTQ, Zhu et al. 2017, arXiv:1612.01064).

    Weights of at most ``threshold`` in magnitude become zero, 0.05 of the largest as in the paper. The gradient of a
    scale is that of all its weights together, slowed as LSQ slows it; the dense weight takes the gradient unscaled
    where the paper multiplies it by the scale, for with few epochs it would hardly move.

    Args:
        scale: ``(2,)``: of the positive and of the negative weights.
        threshold: ``()``.
    """

    share: ClassVar[float] = 0.05
    threshold: Tensor

    def __init__(self, scale: Tensor, threshold: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)
        self.register_buffer("threshold", threshold)

    @staticmethod
    def fit(weight: Tensor, axis: int = 0) -> TrainedTernarizer:
        """Return the ternarizer of ``weight``, each scale the mean of its weights."""
        ternarizer = TrainedTernarizer(weight.new_ones(2), weight.new_zeros(()))
        ternarizer.refit(weight)
        return ternarizer

    @property
    def supports_scaling(self) -> bool:
        """Never: a factor for each channel would make new values."""
        return False

    @property
    def levels(self) -> range:
        """Minus one, zero and one."""
        return range(-1, 2)

    @property
    def step(self) -> Tensor:
        """The scales as they are applied."""
        return self.scale.abs().clamp_min(LEAST_SCALE)

    def codes(self, weight: Tensor) -> Tensor:
        """Return the signs, int16, zero within the threshold."""
        # A scale that has been trained below the threshold would be coded as zero when it is coded again.
        threshold = torch.minimum(self.threshold, self.step.detach().min() / 2)
        return (weight.detach() > threshold).to(torch.int16) - (weight.detach() < -threshold).to(torch.int16)

    def values(self, codes: Tensor) -> Tensor:
        """Return the scale of each sign, or zero."""
        positive, negative = scale_grad(self.step, codes.numel() ** -0.5)
        return torch.where(codes > 0, positive, torch.where(codes < 0, -negative, torch.zeros_like(negative)))

    def restored(self, stored: Tensor) -> Tensor:
        """Return the weight of stored signs."""
        positive, negative = self.step.detach()
        return looked_up(torch.stack([-negative, torch.zeros_like(negative), positive]), stored + 1)

    def refit(self, weight: Tensor) -> None:
        """Set threshold and scales anew."""
        if not fitting():
            return
        weight = weight.detach()
        threshold = self.share * weight.abs().max()
        sides = [side[side > threshold] for side in (weight, -weight)]
        with torch.no_grad():
            self.threshold.copy_(threshold)
            self.scale.copy_(torch.stack([s.mean() if len(s) else threshold.clamp_min(LEAST_SCALE) for s in sides]))

    def fit_like(self, weight: Tensor, axis: int = 0) -> TrainedTernarizer:
        """Return the ternarizer of another weight."""
        return TrainedTernarizer.fit(weight)

    def select(self, dim: int, keep: Tensor) -> TrainedTernarizer:
        """Return the ternarizer of the kept slices: the same."""
        return TrainedTernarizer(self.scale.detach().clone(), self.threshold.clone())
