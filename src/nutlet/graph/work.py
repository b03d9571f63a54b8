"""Multiply-accumulates, counted at the sites of a walk."""

from __future__ import annotations

from math import prod

from nutlet.graph.sites import Record, Site

__all__ = ["macs", "site_macs"]


def site_macs(site: Site) -> int:
    """Return the multiply-accumulates of one call, for one example.

    Convolutions, dense layers, matrix products, attention and LSTM/GRU are counted; element-wise work is not.
    """
    if not site.operands or not site.shape:
        return 0
    batch = max(site.operands[0][0] if site.operands[0] else 1, 1)
    first, rest = site.operands[0], site.operands[1:]
    if site.op.startswith("conv_transpose") and rest:
        return prod(first) * prod(rest[0][1:]) // batch
    if site.op.startswith("conv") and site.op != "contiguous" and rest:
        return prod(site.shape) * prod(rest[0][1:]) // batch
    if site.op in ("linear", "matmul", "bmm") and rest:
        return prod(site.shape) * first[-1] // batch
    if site.op in ("addmm", "baddbmm") and len(rest) > 1:
        return prod(site.shape) * rest[0][-1] // batch
    if site.op == "scaled_dot_product_attention" and len(rest) > 1:
        return prod(first) * rest[0][-2] * 2 // batch
    if site.op == "multi_head_attention_forward" and site.name.endswith("/0"):
        length, width = first[0], first[-1]  # (L, N, E): sequence first inside this call
        return 4 * length * width * width + 2 * length * length * width
    if site.op in ("lstm", "gru") and site.name.endswith("/0"):
        steps = prod(site.shape[:-1]) // batch
        return steps * sum(prod(shape) for shape in rest if len(shape) == 2)
    return 0


def macs(record: Record) -> int:
    """Return the multiply-accumulates of a whole forward pass, for one example."""
    return sum(site_macs(site) for site in record.sites.values())
