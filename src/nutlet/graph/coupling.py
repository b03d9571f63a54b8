"""Which channels must be removed together, and their removal.

The dependency graph is Torch-Pruning's (Fang et al. 2023, arXiv:2301.12900); it knows how channels run through
residual additions, concatenations, depthwise convolutions and flattening. What it cannot follow in a given model
(a padded shortcut, say) is found out by trying each group on a copy, and that group is left alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.errors import ModelError, NutletError, first_line
from nutlet.graph.constraints import (
    constrain,
    constrained_layers,
    has_own_weight,
    output_axis,
    raw_weight,
    take_off,
)
from nutlet.graph.scope import Layer
from nutlet.predict import evaluating

__all__ = ["Group", "coupled_groups", "refused_removals", "remove_channels"]


@dataclass(frozen=True)
class Group:
    """Output channels that can only be removed together.

    Args:
        root: name of the layer whose output channels number the group.
        channels: number of channels.
        producers: names of all layers that lose output channels with the root.
        importance: ``(channels,)`` sum over all coupled weights of the L2 norm of what would go, each divided by its
            mean over the channels, so that layers of different scale have an equal say.
        cells: the channels, divided by which layers make them: the sides of a concatenation are separate cells, and
            each must keep a channel.
        made: for each producer, which of its own output channels go with which channels of the group.
    """

    root: str
    channels: int
    producers: tuple[str, ...]
    importance: Tensor
    cells: tuple[tuple[int, ...], ...]
    made: Mapping[str, tuple[list[int], list[int]]]

    def summed(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Return ``(channels,)`` the sum over all producers of the scores of their output channels."""
        total = torch.zeros(self.channels)
        for name, (own, ours) in self.made.items():
            total.index_add_(0, torch.tensor(ours), scores[name][own])
        return total


def coupled_groups(model: nn.Module, example: Tensor) -> tuple[list[Group], dict[str, str]]:
    """Return the groups whose channels can be removed, and the roots of those that cannot, each with the reason.

    A group can be removed when the model without some of its channels answers exactly as the whole model does once
    nothing reads those channels any more. (That it still runs is not enough: a shortcut padded with zero channels runs
    just as well when its channels are taken for the wrong ones.)
    """
    bare, stacks = _bare_copy(model)
    names = {module: name for name, module in bare.named_modules()}
    shape = _output(bare, example).shape
    usable: list[Group] = []
    refused: dict[str, str] = {}
    graph = _dependencies(bare, example)
    for members in list(graph.get_all_groups(root_module_types=list(Layer.__args__))):
        root = names[members[0].dep.target.module]
        group = _group(graph, members, names, stacks)
        gone = sorted({cell[k] for cell in group.cells for k in (0, -1) if len(cell) > 1 and (k == 0 or len(cell) > 2)})
        modules = {item.dep.target.module for item in members}
        made = [names[m] for m in modules if isinstance(m, Layer) and not has_own_weight(m)]
        if not gone or made:
            refused[root] = f"something else makes the weight of {min(made)}" if made else "each has one channel only"
            continue
        try:
            thinner, whole = _outcome_without(bare, example, root, gone)
        except NutletError:
            raise
        except Exception as error:  # the dependency graph, or the model without the channel, may fail in any way at all
            refused[root] = f"{type(error).__name__}: {first_line(error)}"
            continue
        # Another shape: these channels are the model's outputs, which are nobody's to remove.
        if thinner.shape == shape:
            if _agree(thinner, whole):
                usable.append(group)
            else:
                refused[root] = "without some of them, the model answers otherwise"
    return usable, refused


def refused_removals(model: nn.Module, example: Tensor, removed: Mapping[str, list[int]]) -> dict[str, str]:
    """Return the roots whose channels cannot go as they were chosen, each with the reason.

    That some channels of a group can be removed does not say that any can: where a grouped convolution does not lose as
    many from each of its groups, what is left slides into another one.

    Args:
        model: not changed.
        example: real inputs, batch first, that the answers are compared on.
        removed: output channels to remove, by the root of their group.
    """
    bare, _ = _bare_copy(model)
    refused = {}
    for root, channels in removed.items():
        try:
            thinner, whole = _outcome_without(bare, example, root, channels)
        except NutletError:
            raise
        except Exception as error:  # the model without the channels may fail in any way at all
            refused[root] = f"{type(error).__name__}: {first_line(error)}"
            continue
        if not _agree(thinner, whole):
            refused[root] = "without those chosen, the model answers otherwise than with nothing reading them"
    return refused


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
        layer = model.get_submodule(name)
        weight = raw_weight(layer).detach()
        for constraint in stack:
            if name in changed:
                # Other weights lie side by side now, and a quantizer's scale may depend on pairs.
                constraint.refit(weight)
            weight = constraint(weight)
        constrain(layer, stack)
    return changed


def _remove(
    model: nn.Module, example: Tensor, removed: dict[str, list[int]], stacks: dict[str, list[Any]]
) -> list[str]:
    names = {module: name for name, module in model.named_modules()}
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    graph = _dependencies(model, example)
    changed: dict[str, None] = {}
    for root, indices in removed.items():
        layer = model.get_submodule(root)
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        group = graph.get_pruning_group(layer, prune, list(indices))
        cuts = []
        for dep, gone in group:
            module = dep.target.module
            if isinstance(module, Layer):
                axis = _axis(module, graph.is_out_channel_pruning_fn(dep.handler))
                cuts.append((names[module], axis, module.weight.shape[axis], set(gone)))
        group.prune()
        for name, axis, size, gone in cuts:
            changed[name] = None
            # The input channels of a depthwise convolution are not an axis of its weight.
            if size > max(gone) and raw_weight(model.get_submodule(name)).shape[axis] < size:
                keep = torch.tensor([i for i in range(size) if i not in gone])
                stacks[name] = [constraint.select(axis, keep) for constraint in stacks.get(name, [])]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)  # thinner parameters are new ones
    return list(changed)


def _axis(layer: nn.Module, outputs: bool) -> int:
    """Return the axis of the output or input channels in the weight of a layer."""
    return output_axis(layer) if outputs else 1 - output_axis(layer)


def _group(graph: Any, members: Any, names: dict[nn.Module, str], stacks: dict[str, list[Any]]) -> Group:
    root = members[0].dep.target.module
    channels = len(members[0].idxs)
    score = torch.zeros(channels)
    made: dict[str, tuple[list[int], list[int]]] = {}
    for item in members:
        module = item.dep.target.module
        if not isinstance(module, Layer):
            continue
        name = names[module]
        weight = module.weight.detach()
        for constraint in stacks.get(name, []):
            weight = constraint(weight).detach()
        out = graph.is_out_channel_pruning_fn(item.dep.handler)
        if out:
            own, ours = made.setdefault(name, ([], []))
            own += item.idxs
            ours += item.root_idxs
        axis = _axis(module, out)
        if weight.shape[axis] <= max(item.idxs):
            continue  # a grouped convolution: its input channels are not an axis of its weight
        norms = weight.movedim(axis, 0).flatten(1).norm(dim=1)[list(item.idxs)]
        sums = torch.zeros(channels).index_add_(0, torch.tensor(list(item.root_idxs)), norms)
        score += sums / sums.mean().clamp_min(1e-12)
    cells: dict[tuple[str, ...], list[int]] = {}
    for channel in range(channels):
        makers = tuple(name for name, (_, ours) in made.items() if channel in ours)
        cells.setdefault(makers, []).append(channel)
    sides = tuple(tuple(cell) for cell in cells.values())
    return Group(names[root], channels, tuple(made), score, sides, made)


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
        try:
            return torch_pruning.DependencyGraph().build_dependency(model, example, verbose=False)
        except Exception as error:  # a layer it does not know may raise anything
            raise ModelError(
                f"how the channels of this model hang together could not be followed ({type(error).__name__}: "
                f"{first_line(error)}); expected layers that Torch-Pruning knows. Leave PruneChannels out, or replace "
                "the unusual layer (a bidirectional LSTM is one)"
            ) from error
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)


def _output(model: nn.Module, example: Tensor) -> Tensor:
    # With gradients, or transformer layers take a path in which no submodule runs.
    with evaluating(model), torch.enable_grad():
        return model(example).detach()  # type: ignore[no-any-return]


def _outcome_without(model: nn.Module, example: Tensor, root: str, gone: list[int]) -> tuple[Tensor, Tensor]:
    """Return the outputs without channels, and of the whole model when nothing reads them."""
    thinner, whole = copy.deepcopy(model), copy.deepcopy(model)
    _ignore(whole, example, root, gone)
    _remove(thinner, example, {root: gone}, {})
    return _output(_without_statistics(thinner), example), _output(_without_statistics(whole), example)


def _agree(one: Tensor, other: Tensor) -> bool:
    spread = float(other.abs().max())
    return one.shape == other.shape and float((one - other).abs().max()) <= 1e-4 * spread + 1e-6


def _ignore(model: nn.Module, example: Tensor, root: str, gone: list[int]) -> None:
    """Make the weights zero with which the layers after ``root`` read its channels ``gone``."""
    graph = _dependencies(model, example)
    layer = model.get_submodule(root)
    for dep, inputs in graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, gone):
        reader = dep.target.module
        if not isinstance(reader, Layer) or graph.is_out_channel_pruning_fn(dep.handler):
            continue
        with torch.no_grad():
            weight, groups = reader.weight, getattr(reader, "groups", 1)
            if output_axis(reader) == 1:
                weight[inputs] = 0.0
                continue
            # A grouped convolution numbers its inputs anew in each group.
            width, made = weight.shape[1], len(weight) // groups
            for i in inputs:
                weight[i // width * made : (i // width + 1) * made, i % width] = 0.0


def _without_statistics(model: nn.Module) -> nn.Module:
    """Keep only gain and shift of layer and group norms: their statistics change with the number of channels."""
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            module.forward = partial(_gain_and_shift, module)  # type: ignore[method-assign]
    return model


def _gain_and_shift(norm: nn.LayerNorm | nn.GroupNorm, x: Tensor) -> Tensor:
    shape = (1,) * (x.ndim - 2) if isinstance(norm, nn.GroupNorm) else ()
    if norm.weight is not None:
        x = x * norm.weight.view(*norm.weight.shape, *shape)
    if norm.bias is not None:
        x = x + norm.bias.view(*norm.bias.shape, *shape)
    return x
