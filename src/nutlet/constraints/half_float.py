"""Weights of 16-bit floats."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nutlet.constraints.quantizer import Quantizer

__all__ = ["HalfFloat"]

_LARGEST = 65504.0


class HalfFloat(Quantizer):
    """Floats of 16 bits, IEEE half precision or bfloat16; the file keeps them so, the runtime computes in float32.

    Args:
        dtype: ``float16`` (11 bits of precision, up to 65,504) or ``bfloat16`` (8 bits, the range of float32).
    """

    def __init__(self, dtype: Literal["float16", "bfloat16"]) -> None:
        super().__init__()
        self.dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]

    @staticmethod
    def fit(weight: Tensor, axis: int = 0, *, dtype: Literal["float16", "bfloat16"]) -> HalfFloat:
        """Return the format; it is the same for every weight."""
        return HalfFloat(dtype)

    @property
    def supports_scaling(self) -> bool:
        """Never: a product needs more bits."""
        return False

    @property
    def levels(self) -> range:
        """The 16 bits of a float, read as an integer."""
        return range(-(2**15), 2**15)

    def codes(self, weight: Tensor) -> Tensor:
        """Return the 16 bits of each weight, int16."""
        return self.stored(weight).view(torch.int16)

    def values(self, codes: Tensor) -> Tensor:
        """Return the floats of 16 bits."""
        return codes.contiguous().view(self.dtype).float()

    def stored(self, weight: Tensor) -> Tensor:
        """Return the weight in 16 bits, the largest float there is in the place of larger ones."""
        kept = weight.detach().contiguous()
        if self.dtype == torch.float16:
            kept = kept.clamp(-_LARGEST, _LARGEST)
        return kept.to(self.dtype) + 0.0  # no negative zeros: they do not compress

    def restored(self, stored: Tensor) -> Tensor:
        """Return the weight in float32."""
        return stored.float()

    def select(self, dim: int, keep: Tensor) -> HalfFloat:
        """Return the same format."""
        return self.fit_like(keep)

    def fit_like(self, weight: Tensor, axis: int = 0) -> HalfFloat:
        """Return the same format."""
        return HalfFloat("float16" if self.dtype == torch.float16 else "bfloat16")
