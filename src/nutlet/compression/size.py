"""Size and work of a model in memory, as the exporter would store it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nutlet.compression.history import LayerSize, Size
from nutlet.constraints.stack import constrained_weight
from nutlet.formats.packed.pack import Packed, pack
from nutlet.graph.finalize import finalize
from nutlet.graph.macs import site_macs
from nutlet.graph.scope import Layer
from nutlet.graph.trace import InstrumentedModel, trace
from nutlet.tasks.inputs import Inputs

__all__ = ["size_of"]


def size_of(model: nn.Module, example: Inputs) -> Size:
    """Return the size of ``model`` with its constraints finalized and its quantized weights as integers.

    Args:
        model: any module or intermediate result of a chain; it is not changed.
        example: two inputs, batch first.

    >>> size = size_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(2, 4))
    >>> size.parameters, size.bytes, size.macs
    (15, 60, 12)
    """
    record = trace(model, example)
    work: dict[str, int] = {}
    for site in record.sites.values():
        work[site.module] = work.get(site.module, 0) + site_macs(site, record.batch)
    packed = pack(model)
    final = finalize(model)
    body, prefix = (final.model, "model.") if isinstance(final, InstrumentedModel) else (final, "")
    seen: set[int] = set()
    layers = []
    parameters = 0
    effective = sum(work.values())
    for name, module in body.named_modules():
        if "parametrizations" in name:
            continue
        stored = _stored(module)
        own = [t for t in stored if t.data_ptr() not in seen]
        seen.update(t.data_ptr() for t in own)
        weight = constrained_weight(module) if isinstance(module, Layer) else None
        sparsity = 0.0 if weight is None else 1 - float(torch.count_nonzero(weight)) / weight.numel()
        macs = work.get(name, 0)
        effective -= round(macs * sparsity)
        if not own:
            continue
        parameters += sum(t.numel() for t in own)
        layers.append(
            LayerSize(
                name=name,
                kind=parametrize.type_before_parametrizations(module).__name__,
                shape=tuple((own[0] if weight is None else weight).shape),
                bits=stored[0].element_size() * 8,
                bytes=sum(t.numel() * t.element_size() for t in own),
                sparsity=sparsity,
                macs=macs,
                bytes_packed=_bytes_of(prefix + name, packed),
            )
        )
    return Size(
        parameters=parameters,
        bytes=sum(layer.bytes for layer in layers),
        bytes_packed=len(packed.content),
        macs=sum(work.values()),
        effective_macs=effective,
        layers=tuple(layers),
    )


def _stored(module: nn.Module) -> list[Tensor]:
    """Return the tensors a module itself keeps, those of its parametrizations included, the weight first."""
    kept = [
        tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if _is_own(name)
        and tensor.numel()
        and not (tensor.dtype == torch.int64 and tensor.ndim == 0)  # a counter that no exporter writes
    ]
    return sorted(kept, key=lambda t: -t.ndim)


def _bytes_of(path: str, packed: Packed) -> int:
    """Return the packed bytes of the tensors that :func:`_stored` returns for the module at ``path``."""
    start = path.rstrip(".") + "." if path else ""
    return sum(
        size for name, size in packed.sizes.items() if name.startswith(start) and _is_own(name.removeprefix(start))
    )


def _is_own(name: str) -> bool:
    """Whether a tensor is kept by a module itself or its parametrizations, by its name in the module's state."""
    return "." not in name or name.startswith("parametrizations.")
