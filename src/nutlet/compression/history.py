"""What each step of a chain did, as plain data: the history kept beside the compressed model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["LayerSize", "Size", "Step"]


@dataclass(frozen=True)
class LayerSize:
    """Storage of one weighted layer.

    Args:
        name: module path.
        kind: class name of the layer.
        shape: shape of its weight.
        bits: bits in which the exporter stores one weight.
        bytes: bytes of its weight, bias, scales and statistics as the exporter stores them.
        sparsity: share of weights that are exactly zero.
        macs: multiply-accumulates for one example.
        bytes_packed: bytes of the same in the file that ``Compressed.save`` writes.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bits: int
    bytes: int
    sparsity: float
    macs: int
    bytes_packed: int


@dataclass(frozen=True)
class Size:
    """Size and work of a model at one moment.

    Args:
        parameters: number of stored values.
        bytes: bytes of the stored tensors; zeros count in full, for a mask over dense zeros saves nothing.
        bytes_packed: bytes of the tensors as ``Compressed.save`` writes them: codes in as few bits as they need,
            nothing where a mask removed weights.
        macs: multiply-accumulates for one example.
        effective_macs: the same, counting only weights that are not zero (no common runtime skips the others).
        layers: the weighted layers, in order of use.
    """

    parameters: int
    bytes: int
    bytes_packed: int
    macs: int
    effective_macs: int
    layers: tuple[LayerSize, ...]


@dataclass(frozen=True)
class Step:
    """One step of the chain and what it did; step 0 is the original.

    Args:
        method: ``{name: options}`` as in the recipe; empty for the original.
        plan: what was decided and is replayed on loading.
        accuracy: top-1 on the validation examples, 0 to 1.
        size: size after the step.
        seconds: how long the step took.
        notes: what it did to earlier constraints, what it left alone and why.
        threads: that computed it; with other numbers sums are rounded differently. None where it was not noted down.
    """

    method: dict[str, Any]
    plan: dict[str, Any]
    accuracy: float
    size: Size
    seconds: float
    notes: tuple[str, ...] = ()
    threads: int | None = None

    @property
    def name(self) -> str:
        """Name of the method, or ``original``."""
        return next(iter(self.method), "original")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(value: dict[str, Any]) -> Step:
        """Rebuild from :meth:`to_dict`."""
        size = dict(value["size"])
        size.pop("bytes_zstd", None)  # earlier versions packed every step with it; now only the shipped file is
        size["layers"] = tuple(LayerSize(**{**layer, "shape": tuple(layer["shape"])}) for layer in size["layers"])
        return Step(**{**value, "size": Size(**size), "notes": tuple(value["notes"])})
