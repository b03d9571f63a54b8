"""Batch norms folded into the layers before them (Jacob et al. 2018, arXiv:1712.05877, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nutlet.graph.channels import scale_outputs
from nutlet.graph.constraints import constraints, has_own_weight, output_axis, raw_weight, refit
from nutlet.graph.modules import replace, shared_parameters
from nutlet.graph.scope import Layer
from nutlet.graph.sites import Record

__all__ = ["fold", "foldable"]


def foldable(model: nn.Module, record: Record) -> list[tuple[str, str]]:
    """Return pairs ``(layer, batch norm)`` of module names where the norm reads nothing but the layer's output.

    A layer or norm that runs more than once, whose output is also read elsewhere, or whose weight is another layer's as
    well, made by a parametrization of somebody else, or on values that no factor may move, is left alone.
    """
    modules = dict(model.named_modules())
    shared = shared_parameters(model)
    pairs = []
    for site in record.sites.values():
        if site.op != "batch_norm" or len(site.inputs) != 1:
            continue
        source = record.sites[site.inputs[0]]
        norm, layer = modules.get(site.module), modules.get(source.module)
        if (
            isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
            and norm.running_mean is not None
            and isinstance(layer, Layer)
            and len(record.of_module(site.module)) == 1
            and len(record.of_module(source.module)) == 1
            and record.consumers(source.name) == (site,)
            and has_own_weight(layer)
            and all(constraint.folds for constraint in constraints(layer))
            and raw_weight(layer) not in shared
            and source.name not in record.outputs
        ):
            pairs.append((source.module, site.module))
    return pairs


def fold(model: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Fold each batch norm of ``pairs`` into its layer, in place; the norm becomes an identity.

    ``w' = w g / sqrt(v + e)`` per output channel and ``b' = (b - m) g / sqrt(v + e) + beta``. Masks are carried
    (a scaled zero is zero), scales take the factor.
    """
    for layer_name, norm_name in pairs:
        layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
        assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        gain = torch.ones_like(mean) if norm.weight is None else norm.weight.detach()
        shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach()
        factor = gain / torch.sqrt(variance + norm.eps)
        scale_outputs(layer, factor)
        with torch.no_grad():
            old = layer.bias.detach() if isinstance(layer.bias, Tensor) else torch.zeros_like(mean)
            layer.bias = nn.Parameter((old - mean) * factor + shift)
        if output_axis(layer) == 1 and getattr(layer, "groups", 1) > 1:
            refit(layer)  # its outputs are no axis of the weight
        else:
            for constraint in constraints(layer):
                constraint.times(factor)
        replace(model, norm_name, nn.Identity())
