"""Multiply-accumulates, counted at the sites of a walk."""

from __future__ import annotations

from math import prod

from nutlet.graph.trace import Record, Site

__all__ = ["macs", "site_macs"]


def site_macs(site: Site, batch: int) -> int:
    """Return the multiply-accumulates of one call, for one example.

    Convolutions, dense layers, matrix products, attention and recurrent layers are counted, and whatever else comes
    down to matrix products (``einsum``, say) as torch counts those; element-wise work is not.

    Args:
        site: the call.
        batch: how many examples the walk was made with, :attr:`Record.batch`.
    """
    return _call_macs(site) // max(batch, 1)


def macs(record: Record) -> int:
    """Return the multiply-accumulates of a whole forward pass, for one example."""
    return sum(site_macs(site, record.batch) for site in record.sites.values())


def _call_macs(site: Site) -> int:
    if not site.operands:
        return 0
    own = _by_shapes(site)
    return site.flops // 2 if own is None else own


def _by_shapes(site: Site) -> int | None:
    """Return the multiply-accumulates of calls whose shapes tell them, None for others."""
    first, rest = site.operands[0], site.operands[1:]
    if site.op.startswith("conv_transpose") and rest:
        return prod(first) * prod(rest[0][1:])
    if site.op.startswith("conv") and site.op != "contiguous" and rest:
        return prod(site.shape) * prod(rest[0][1:])
    if site.op in ("linear", "matmul", "mm", "bmm", "mv", "dot") and rest:
        return prod(site.shape) * first[-1]
    if site.op in ("addmm", "baddbmm") and len(rest) > 1:
        return prod(site.shape) * rest[0][-1]
    if site.op == "scaled_dot_product_attention" and len(rest) > 1:
        scores = prod(first[:-1]) * rest[0][-2]
        return scores * (first[-1] + rest[1][-1])
    if site.op == "multi_head_attention_forward" and site.name.endswith("/0") and len(rest) > 1:
        # (L, N, E) and (S, N, E): sequence first inside this call
        queries, keys, width = prod(first[:-1]), prod(rest[0][:-1]), first[-1]
        projections = 2 * queries * width * width + keys * width * (rest[0][-1] + rest[1][-1])
        return projections + 2 * queries * rest[0][0] * width
    if site.op == "bilinear" and len(rest) > 1:
        return prod(site.shape) * prod(rest[1][1:])
    if site.op in ("lstm", "gru", "rnn_tanh", "rnn_relu") and site.name.endswith("/0"):
        steps = prod(first[:-1])
        return steps * sum(prod(shape) for shape in rest if len(shape) == 2)
    return None
