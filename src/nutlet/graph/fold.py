"""Batch norms folded into the layers before them (Jacob et al. 2018, arXiv:1712.05877, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from nutlet.constraints.stack import constraints, has_own_weight, output_axis, raw_weight, refit
from nutlet.graph.channels import scale_outputs
from nutlet.graph.modules import replace, shared_parameters
from nutlet.graph.record import Record, Site
from nutlet.graph.scope import Layer

__all__ = ["FoldedNorm", "fold", "foldable", "is_folded", "without_norms"]


class FoldedNorm(nn.Module):
    """Runs the forward of a norm whose own call is gone, so that what else it does (activations, drop paths) stays.

    Its children are those of the norm under their names; parameters and statistics of the norm are no part of it.

    >>> norm = nn.BatchNorm1d(2)
    >>> FoldedNorm(norm.train())(torch.ones(3, 2)).tolist()[0], list(FoldedNorm(norm).parameters())
    ([1.0, 1.0], [])
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self._modules = norm._modules  # the same mapping: what is replaced in one is replaced in the other
        self.behind = (norm,)  # in a tuple: no child of this module
        self.training = norm.training

    def forward(self, x: Tensor) -> Any:
        """Return what the norm's forward makes of ``x`` without normalizing it."""
        with _WithoutNorm():
            return self.behind[0].forward(x)

    def train(self, mode: bool = True) -> FoldedNorm:
        """Put the norm into the same mode: its forward may ask."""
        self.behind[0].training = mode
        super().train(mode)
        return self


class _WithoutNorm(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.batch_norm:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


def foldable(model: nn.Module, record: Record) -> list[tuple[str, str]]:
    """Return pairs ``(layer, batch norm)`` of module names where the norm reads nothing but the layer's output.

    A layer or norm that runs more than once, whose output is also read elsewhere, or whose weight is another layer's as
    well, made by a parametrization of somebody else, or on values that no factor may move, is left alone; so is a norm
    that works on another axis than the layer's outputs, or with other numbers than its own statistics and parameters.
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
            isinstance(norm, _BatchNorm)
            and isinstance(layer, Layer)
            and _normalizes_by_itself(norm, site)
            and _along_outputs(layer, source)
            and _runs_once(record, site)
            and _runs_once(record, source)
            and len(source.inputs) <= 1  # its weight is its own, not one that the forward made of it
            and record.consumers(source.name) == (site,)
            and has_own_weight(layer)
            and all(constraint.supports_scaling for constraint in constraints(layer))
            and raw_weight(layer) not in shared
            and source.name not in record.outputs
        ):
            pairs.append((source.module, site.module))
    return pairs


def _normalizes_by_itself(norm: _BatchNorm, call: Site) -> bool:
    """Whether the call takes the running statistics and parameters of ``norm``, in evaluation, and nothing else."""
    own = ["running_mean", "running_var", *(["weight", "bias"] if norm.affine else [])]
    wanted = tuple(f"{call.module}.{name}" if call.module else name for name in own)
    return (
        norm.running_mean is not None
        and call.parameters[1:] == wanted
        and not call.argument("training", 5, False)
        and call.argument("eps", 7, 1e-5) == norm.eps
    )


def _along_outputs(layer: nn.Module, call: Site) -> bool:
    """Whether axis 1 of what ``call`` returns, which norms work on, is that of the layer's outputs."""
    if isinstance(layer, nn.Linear):
        return call.op == "linear" and len(call.shape) == 2
    # A weight has as many axes as a batch; the convolution of a single example gives one less.
    return call.op.startswith("conv") and len(call.shape) == len(call.operands[1])


def _runs_once(record: Record, call: Site) -> bool:
    return sum(site.op == call.op for site in record.of_module(call.module)) == 1


def fold(model: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Fold each batch norm of ``pairs`` into its layer, in place; of the norm what else it does is left.

    ``w' = w g / sqrt(v + e)`` per output channel and ``b' = (b - m) g / sqrt(v + e) + beta``. Masks are carried
    (a scaled zero is zero), scales take the factor.
    """
    for layer_name, norm_name in pairs:
        layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
        assert isinstance(norm, _BatchNorm)
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
                constraint.scale_outputs(factor)
        replace(model, norm_name, nn.Identity() if type(norm).forward is _BatchNorm.forward else FoldedNorm(norm))


def is_folded(module: nn.Module) -> bool:
    """Whether ``module`` is what :func:`fold` leaves of a norm."""
    return isinstance(module, (nn.Identity, FoldedNorm))


def without_norms(record: Record, norms: set[str]) -> dict[str, str]:
    """Return for the call of each folded norm the site that takes its place: that of the layer before it."""
    return {
        site.name: site.inputs[0] for site in record.sites.values() if site.op == "batch_norm" and site.module in norms
    }
