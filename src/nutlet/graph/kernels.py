"""What the integer kernels of a runtime take: where activation quantizers are placed, and how weights are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["KERNELS", "WEIGHTED", "KernelProfile"]

WEIGHTED = frozenset({"conv1d", "conv2d", "conv3d", "linear"}) | {f"conv_transpose{d}d" for d in (1, 2, 3)}
"""Operations with a weight of their own."""


@dataclass(frozen=True)
class KernelProfile:
    """The 8-bit kernels of one runtime; by default those of ONNX Runtime on x86 and Arm.

    Operations are named as a trace names them (:class:`nutlet.graph.record.Site`).

    Args:
        integer_ops: operations that are computed on integers.
        fused_tails: operations that are fused into the integer operation before them.
        pairs_saturate: whether some processors add pairs of products in 16 bits, which saturate, as those of x86
            without VNNI do: then codes are chosen so that no pair can (``reduce_range``).
    """

    integer_ops: frozenset[str] = WEIGHTED | {
        "matmul", "bmm", "add", "cat", "avg_pool2d", "adaptive_avg_pool2d", "mean", "pad",
    }  # fmt: skip
    fused_tails: frozenset[str] = frozenset({"batch_norm", "relu", "relu6", "hardtanh", "clamp"})
    pairs_saturate: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON, of which :meth:`from_dict` makes an equal one."""
        return {
            "integer_ops": sorted(self.integer_ops),
            "fused_tails": sorted(self.fused_tails),
            "pairs_saturate": self.pairs_saturate,
        }

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> KernelProfile:
        """Rebuild what :meth:`to_dict` returned."""
        sets = {name: frozenset(value[name]) for name in ("integer_ops", "fused_tails")}
        return KernelProfile(**sets, pairs_saturate=bool(value["pairs_saturate"]))


KERNELS = KernelProfile()
"""The profile where nobody names a runtime."""
