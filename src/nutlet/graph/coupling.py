"""Which channels must be removed together, and their removal.

The dependency graph is Torch-Pruning's (Fang et al. 2023, arXiv:2301.12900); it knows how channels run through
residual additions, concatenations, depthwise convolutions and flattening. What it cannot follow in a given model
(a padded shortcut, say) is found out by trying each group on a copy, and that group is left alone.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.graph.constraints import constrain, constrained_layers, raw_weight, take_off
from nutlet.graph.scope import Layer
from nutlet.predict import evaluating

__all__ = ["Group", "coupled_groups", "remove_channels"]


@dataclass(frozen=True)
class Group:
    """Output channels that can only be removed together.

    Args:
        root: name of the layer whose output channels number the group.
        channels: number of channels.
        producers: names of all layers that lose output channels with the root.
        importance: ``(channels,)`` sum over all coupled weights of the L2 norm of what would go, each divided by its
            mean over the channels, so that layers of different scale have an equal say.
    """

    root: str
    channels: int
    producers: tuple[str, ...]
    importance: Tensor


def coupled_groups(model: nn.Module, example: Tensor) -> tuple[list[Group], list[str]]:
    """Return the groups whose channels can be removed, and the roots of those that cannot.

    A group can be removed when the model still runs without one of its channels and returns the same shape.
    """
    bare, stacks = _bare_copy(model)
    names = {module: name for name, module in bare.named_modules()}
    shape = _output_shape(bare, example)
    usable, refused = [], []
    graph = _dependencies(bare, example)
    for members in list(graph.get_all_groups(root_module_types=_layer_types())):
        root = names[members[0].dep.target.module]
        without = _shape_without(bare, example, root)
        if without == shape:
            usable.append(_group(graph, members, names, stacks))
        elif without is None:
            refused.append(root)
        # Another shape: these channels are the model's outputs, which are nobody's to remove.
    return usable, refused


def remove_channels(model: nn.Module, example: Tensor, removed: dict[str, list[int]]) -> list[str]:
    """Remove output channels ``removed[root]`` with everything coupled to them, in place; constraints are carried.

    Returns:
        Names of the layers that became thinner.
    """
    stacks = {}
    for name, layer in list(constrained_layers(model)):
        stacks[name] = take_off(layer)
    changed = _remove(model, example, removed, stacks)
    for name, stack in stacks.items():
        constrain(model.get_submodule(name), stack)
    return changed


def _remove(
    model: nn.Module, example: Tensor, removed: dict[str, list[int]], stacks: dict[str, list[Any]]
) -> list[str]:
    names = {module: name for name, module in model.named_modules()}
    graph = _dependencies(model, example)
    changed: dict[str, None] = {}
    for root, indices in removed.items():
        layer = model.get_submodule(root)
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        group = graph.get_pruning_group(layer, prune, list(indices))
        shapes: dict[str, list[tuple[tuple[int, ...], list[int]]]] = {}
        for dep, gone in group:
            module = dep.target.module
            if module in names and hasattr(module, "weight") and module.weight is not None:
                shapes.setdefault(names[module], []).append((tuple(module.weight.shape), list(gone)))
        group.prune()
        for name, before in shapes.items():
            changed[name] = None
            _select(stacks, name, before, raw_weight(model.get_submodule(name)).shape)
    return list(changed)


def _select(
    stacks: dict[str, list[Any]], name: str, before: list[tuple[tuple[int, ...], list[int]]], after: torch.Size
) -> None:
    """Take from a layer's constraints the slices that were taken from its weight, found by the axis that shrank."""
    for dim, size in enumerate(after):
        for shape, gone in before:
            if name in stacks and shape[dim] != size == shape[dim] - len(set(gone)):
                keep = torch.tensor([i for i in range(shape[dim]) if i not in set(gone)])
                stacks[name] = [constraint.select(dim, keep) for constraint in stacks[name]]
                break


def _group(graph: Any, members: Any, names: dict[nn.Module, str], stacks: dict[str, list[Any]]) -> Group:
    root = members[0].dep.target.module
    channels = len(members[0].idxs)
    score = torch.zeros(channels)
    producers: dict[str, None] = {}
    for item in members:
        module = item.dep.target.module
        if not isinstance(module, Layer):
            continue
        name = names[module]
        weight = module.weight.detach()
        for constraint in stacks.get(name, []):
            weight = constraint(weight)
        out = graph.is_out_channel_pruning_fn(item.dep.handler)
        if out:
            producers[name] = None
        axis = 0 if out != isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)) else 1
        if weight.shape[axis] <= max(item.idxs):
            continue  # a grouped convolution: its input channels are not an axis of its weight
        norms = weight.movedim(axis, 0).flatten(1).norm(dim=1)[list(item.idxs)]
        own = torch.zeros(channels).index_add_(0, torch.tensor(list(item.root_idxs)), norms)
        score += own / own.mean().clamp_min(1e-12)
    return Group(names[root], channels, tuple(producers), score)


def _bare_copy(model: nn.Module) -> tuple[nn.Module, dict[str, list[Any]]]:
    """Copy without constraints, which Torch-Pruning cannot see through, and the constraints by layer name."""
    bare = copy.deepcopy(model)
    stacks = {name: take_off(layer) for name, layer in list(constrained_layers(bare))}
    for parameter in bare.parameters():
        parameter.requires_grad_(True)  # the graph is traced through autograd
    return bare, stacks


def _dependencies(model: nn.Module, example: Tensor) -> Any:
    import torch_pruning

    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    with warnings.catch_warnings(), evaluating(model), torch.enable_grad():
        warnings.simplefilter("ignore")  # it warns of every parameter outside a known layer; the trial decides
        graph = torch_pruning.DependencyGraph().build_dependency(model, example, verbose=False)
    for parameter in frozen:
        parameter.requires_grad_(False)
    return graph


def _output_shape(model: nn.Module, example: Tensor) -> torch.Size:
    with evaluating(model), torch.no_grad():
        return model(example).shape  # type: ignore[no-any-return]


def _shape_without(model: nn.Module, example: Tensor, root: str) -> torch.Size | None:
    """Return the output's shape after removing the root's first channel, or None where the model no longer runs."""
    trial = copy.deepcopy(model)
    try:
        _remove(trial, example, {root: [0]}, {})
        return _output_shape(trial, example)
    except Exception:  # the dependency graph, or the model without the channel, may fail in any way at all
        return None


def _layer_types() -> list[type]:
    return list(Layer.__args__)
