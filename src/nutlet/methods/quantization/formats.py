"""Which layers take a format of few values, and putting it on them: what all quantization methods share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from nutlet.constraints import Quantizer, WeightQuantizer, formats
from nutlet.constraints.stack import constrain, constrained_weight, output_axis, remove_constraints
from nutlet.graph.scope import weighted_layers
from nutlet.graph.trace import trace
from nutlet.methods.base import Method, Plan
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["Coding", "Fit", "edge_layers", "layers_to_code", "put_format"]

Fit = Callable[[Tensor, int], Quantizer]
"""``(weight, axis of the output channels) -> constraint``."""


@dataclass(frozen=True, kw_only=True)
class Coding(Method):
    """Base of the methods that put the weights of layers on few values and change nothing else.

    Their plans have one separable key, which names the layers.
    """

    def fitted(self, plan: Plan) -> list[str]:
        """Return the layers of the plan."""
        return self.parts(plan)

    def reference(self, model: nn.Module, plan: Plan, example: Inputs) -> nn.Module | None:
        """Return the model as it is."""
        return copy.deepcopy(model)


def edge_layers(model: nn.Module, layers: dict[str, nn.Module], example: Inputs) -> set[str]:
    """Return the first and the last of ``layers`` to run: few weights, and the errors there cost most."""
    order = [site.module for site in trace(model, example).sites.values() if site.module in layers]
    return {order[0], order[-1]} if order else set()


def layers_to_code(
    method: Method, model: nn.Module, context: Context, levels: int, order: int, *, edges: bool = True
) -> tuple[dict[str, nn.Module], list[str]]:
    """Return the layers in scope that a format is to be put on, and notes about the others.

    A layer that has fewer values already keeps its format; an integer grid (order 1) goes on top of freely chosen
    values (order 0) all the same, so that integer kernels can compute with them.

    Args:
        method: whose scope it is.
        model: not changed.
        context: of the method.
        levels: how many values the format has.
        order: its place in the stack.
        edges: the first and the last layer as well.
    """
    layers = weighted_layers(model, method)
    notes = []
    if not edges:
        for name in sorted(edge_layers(model, layers, context.example)):
            del layers[name]
            notes.append(f"{name}: the first and the last layer keep their precision, see `edges`")
    for name, layer in list(layers.items()):
        fewer = [c for c in formats(layer) if len(c.levels) < levels and c.order >= order]
        if fewer:
            del layers[name]
            notes.append(f"{name}: has {len(fewer[-1].levels)} values already and keeps them")
    return layers, notes


def put_format(layer: nn.Module, fit: Fit, levels: int, order: int) -> None:
    """Put a format on ``layer``: in the place of one of its order, before or after one of another.

    Freely chosen values of which there are no fewer than the format has codes go as well: they would limit nothing.

    Args:
        layer: changed in place.
        fit: makes the format.
        levels: how many values it has.
        order: its place in the stack.
    """
    stack, axis = remove_constraints(layer), output_axis(layer)
    constrain(layer, [c for c in stack if not isinstance(c, Quantizer) or (c.order < order and len(c.levels) < levels)])
    constrain(layer, [fit(constrained_weight(layer), axis)])
    weight = constrained_weight(layer)
    # Those of a higher order: integers, which few free values now lie on.
    grids = [c.grid.for_free_values() for c in stack if isinstance(c, WeightQuantizer) and c.order > order]
    constrain(layer, [WeightQuantizer.fit(weight, axis, grid) for grid in grids])
