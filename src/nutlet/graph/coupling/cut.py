"""Taking channels out of a model's parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["Attributes", "Cuts", "cut", "put_attributes", "thin_copy"]

Cuts = Mapping[str, list[tuple[int, Tensor]]]
"""What stays of parameters and buffers, by name: dimensions, and the places along them."""
Attributes = dict[str, dict[str, Any]]
"""Values of attributes that a forward reads, by the path of their module and their name."""


def thin_copy(model: nn.Module, cuts: Cuts) -> nn.Module:
    """Return a copy of a model without constraints after ``cuts``; it shares the parameters that lose nothing."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    # What lies in the memo is taken for the copy.
    memo = {id(tensor): _chosen(tensor, cuts.get(name, [])) for name, tensor in tensors.items()}
    thinner = copy.deepcopy(model, memo)
    _settle(thinner, cuts)
    return thinner


def cut(model: nn.Module, cuts: Cuts) -> None:
    """Take away what does not stay, in place; ``model`` is without constraints."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    thinner = {id(tensors[name]): _chosen(tensors[name], places) for name, places in cuts.items()}
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(tensor) in thinner:
                setattr(module, name, thinner[id(tensor)])  # torch's recurrent layers take note of it themselves
    _settle(model, cuts)


def put_attributes(model: nn.Module, attributes: Attributes) -> None:
    """Give attributes of modules other values, of the type that they have."""
    for path, values in attributes.items():
        module = model.get_submodule(path)
        for name, value in values.items():
            before = getattr(module, name)
            setattr(module, name, type(before)(value) if isinstance(before, (tuple, list)) else value)


def _chosen(tensor: Tensor, places: list[tuple[int, Tensor]]) -> Tensor:
    chosen = tensor.detach()
    for dim, keep in places:
        chosen = chosen.index_select(dim, keep.to(chosen.device))
    if not places:
        return tensor
    return nn.Parameter(chosen, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else chosen


def _settle(model: nn.Module, cuts: Cuts) -> None:
    """Let torch's layers say of themselves what their parameters are now; some read it in their forward."""
    owners = dict.fromkeys(name.rpartition(".")[0] for name in cuts)
    for module in dict.fromkeys(model.get_submodule(name) for name in owners):
        for name, value in _sizes(module).items():
            setattr(module, name, value)


def _sizes(module: Any) -> dict[str, Any]:
    if isinstance(module, nn.Linear):
        return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        made, read = module.weight.shape[:2]
        groups = module.groups
        if groups in (module.in_channels, module.out_channels) and groups > 1:
            groups = groups * made // module.out_channels
        return {"out_channels": made, "in_channels": read * groups, "groups": groups}
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        read, made = module.weight.shape[:2]
        groups = read if module.groups == module.in_channels > 1 else module.groups
        return {"out_channels": made * groups, "in_channels": read, "groups": groups}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": len(module.weight if module.running_mean is None else module.running_mean)}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": tuple(module.weight.shape)}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": len(module.weight)}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": module.weight.shape[1]}
    if isinstance(module, nn.RNNBase):
        first = module.get_parameter("weight_ih_l0"), module.get_parameter("weight_hh_l0")
        return {"input_size": first[0].shape[1], "hidden_size": first[1].shape[1]}
    return {}
