"""Where activations are quantized, by what the calls do.

Placement follows what integer kernels want: the input, and the end of each convolution, dense layer, addition,
concatenation and average *after* its batch norm and ReLU, where another such operation reads it. Calls that only move
values (views, slices, max pools, reflecting pads, nearest neighbours) pass the quantization of their input on. Values
that something else than arithmetic reads (indices, conditions, steps) are never rounded.
"""

from __future__ import annotations

from torch import nn

from nutlet.constraints import formats
from nutlet.graph.kernels import KERNELS, WEIGHTED, KernelProfile
from nutlet.graph.record import Record, Site

__all__ = ["moves_values", "place", "read_exactly", "runs_on_integers", "source_of"]

DATA_MOVEMENT = frozenset(
    {"view", "reshape", "flatten", "unflatten", "getitem", "get", "chunk", "split", "narrow", "select", "unbind"}
    | {"transpose", "permute", "movedim", "squeeze", "unsqueeze", "contiguous", "expand", "repeat", "expand_as"}
    | {"max_pool1d", "max_pool2d", "max_pool3d", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"}
    | {"adaptive_max_pool1d", "adaptive_max_pool2d", "detach", "clone", "roll", "flip", "swapaxes", "swapdims"}
    | {"moveaxis", "tile", "repeat_interleave", "index_select", "gather", "pixel_shuffle", "pixel_unshuffle"}
    | {"channel_shuffle", "tensor_split", "hsplit", "vsplit", "ravel", "view_as", "reshape_as"}
)
"""Operations whose results are values of their input."""
STEADY = frozenset({"add", "sub", "mul", "div", "neg", "abs", "clamp", "relu", "to", "float", "double", "type"})
"""Operations that carry a small change of their input on as a small change: what decides behind them decides by it."""


def runs_on_integers(layer: nn.Module | None) -> bool:
    """Whether the weight of ``layer`` is on a grid that integer kernels take."""
    kinds = [] if layer is None else formats(layer)
    return bool(kinds) and kinds[-1].integer


def moves_values(site: Site) -> bool:
    """Whether every value of the result is one of the input's, or one that was not there before is none.

    >>> site = Site("/pad/0", "", "pad", ("/input/0",), ((1, 2),), (1, 4), arguments={1: (1, 1), "mode": "reflect"})
    >>> moves_values(site)
    True
    """
    if site.op == "pad":
        return str(site.argument("mode", 2, "constant")) != "constant"
    if site.op in ("interpolate", "upsample"):
        return str(site.argument("mode", 3, "nearest")).startswith("nearest")
    return site.op in DATA_MOVEMENT


def read_exactly(record: Record) -> frozenset[str]:
    """Return the sites whose values may not be rounded, because something decides by what follows from them."""
    found: set[str] = set()
    waiting = list(record.exact)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        site = record.sites[name]
        if site.op in STEADY or moves_values(site):
            waiting += site.inputs
    return frozenset(found)


def place(model: nn.Module, record: Record, kernels: KernelProfile = KERNELS) -> dict[str, str | None]:
    """Return the sites to quantize for ``kernels``, each with the site whose scale it must share, or ``None``.

    A weighted call counts as an integer operation where its layer :func:`runs_on_integers`, another one
    where all its inputs come from integer operations; so the scope of the weights is the scope of the activations.
    The model's output stays in floating point: its integer kernel writes floats at no cost, and ties are avoided.
    """
    modules = dict(model.named_modules())
    integer: set[str] = set()
    for site in record.sites.values():
        if site.op in WEIGHTED:
            # A weight that the forward computes (standardizes, say) is no longer on its grid.
            if runs_on_integers(modules.get(site.module)) and len(site.inputs) == 1:
                integer.add(site.name)
        elif _has_integer_kernel(site, kernels):
            feeding = [_computed(record, name, kernels) for name in site.inputs]
            if feeding and all(source.name in integer or source.op == "input" for source in feeding):
                integer.add(site.name)
    exact = read_exactly(record)
    single = sum(site.op == "input" for site in record.sites.values()) == 1
    weighted = {name for name in integer if record.sites[name].op in WEIGHTED}
    chosen: dict[str, str | None] = {}
    for site in record.sites.values():
        if site.op == "input" and not single and not _read_by(record, site, weighted):
            continue  # a mask that is added, say: one value of it would take the range of all
        if site.op != "input" and site.name not in integer:
            continue
        end = _tail_end(record, site, kernels)
        if end.name not in record.outputs | exact and _read_by(record, end, integer):
            shared = source_of(record, site.inputs[0]).name if _pads_zeros(site) and end is site else None
            chosen[end.name] = shared if shared in chosen else None
    for name in integer:
        site = record.sites[name]
        if site.op in WEIGHTED and (source := source_of(record, site.inputs[0]).name) not in exact:
            chosen.setdefault(source, None)
    return {name: chosen[name] for name in record.sites if name in chosen}


def source_of(record: Record, name: str) -> Site:
    """Return the site that computed the values at ``name``, which others may have moved since."""
    site = record.sites[name]
    while moves_values(site) and site.inputs:
        site = record.sites[site.inputs[0]]
    return site


def _has_integer_kernel(site: Site, kernels: KernelProfile) -> bool:
    """Whether runtimes compute the call on integers; where windows hang over the edge they do not agree on the mean."""
    if site.op == "avg_pool2d":
        return not site.argument("ceil_mode", 4, False) and site.argument("divisor_override", 6) is None
    return site.op in kernels.integer_ops and not moves_values(site)


def _pads_zeros(site: Site) -> bool:
    """Whether the call pads with zeros, which are exact in any scale; another constant wants a range of its own."""
    return site.op == "pad" and not moves_values(site) and not site.argument("value", 3, 0)


def _computed(record: Record, name: str, kernels: KernelProfile) -> Site:
    """Return the site that computed the values at ``name``, before what is fused into it and what moves values."""
    site = record.sites[name]
    while (moves_values(site) or site.op in kernels.fused_tails) and site.inputs:
        site = record.sites[site.inputs[0]]
    return site


def _tail_end(record: Record, site: Site, kernels: KernelProfile) -> Site:
    """Follow batch norm and activation functions that alone read the result."""
    while site.name not in record.outputs:
        users = record.consumers(site.name)
        if len(users) != 1 or users[0].op not in kernels.fused_tails:
            break
        site = users[0]
    return site


def _read_by(record: Record, site: Site, readers: set[str]) -> bool:
    """Whether one of the sites ``readers`` reads the result, directly or through calls that only move values."""
    return any(
        user.name in readers
        or (moves_values(user) and user.name not in record.outputs and _read_by(record, user, readers))
        for user in record.consumers(site.name)
    )
