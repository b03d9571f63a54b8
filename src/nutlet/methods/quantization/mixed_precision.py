"""Bits for each layer by what they cost it in accuracy."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.nn import functional as F

from nutlet.constraints.stack import constrain, constrained_weight, constraints, remove_constraints
from nutlet.errors import ConfigError
from nutlet.graph.activation_quantizers import ActivationGrid
from nutlet.graph.scope import weighted_layers
from nutlet.methods.base import Plan, register
from nutlet.methods.quantization.integers import (
    Bits,
    OnIntegers,
    attach_quantizer,
    grid_for,
    integer_plan,
    usual_grid,
)
from nutlet.tasks.outputs import to_logits
from nutlet.tasks.predict import predict
from nutlet.training.context import Context

__all__ = ["MixedPrecision"]


@register
@dataclass(frozen=True, kw_only=True)
class MixedPrecision(OnIntegers):
    """Give each layer the bits that cost least, under a budget for the whole model.

    Each layer is quantized alone to each width, and how far the outputs move on the calibration examples is measured
    (KL divergence from those of the model before). Then, from the widest on, the narrowing with the least added
    divergence for each bit it saves is taken until the budget holds, as if divergences added up (Dong et al. 2019,
    arXiv:1905.03696, choose likewise, by curvature). That costs layers x widths passes over the calibration examples.

    Args:
        bits: most bits of a weight on average over all layers in scope.
        choices: widths to choose from, 2 to 8.
        activations: quantize activations to 8 bits as well.

    Raises:
        ConfigError: a width outside 2 to 8, fewer than two of them, or a budget below the smallest.

    >>> MixedPrecision(bits=5).to_dict()
    {'MixedPrecision': {'bits': 5}}
    """

    effect: ClassVar[str] = "grid"
    use_when: ClassVar[str] = "one width for all layers loses too much, and a saved file of fewer than 8 bits is wanted"

    bits: float = 4.0
    choices: tuple[Bits, ...] = (2, 4, 8)
    activations: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.choices)) < 2 or not min(self.choices) <= self.bits <= max(self.choices):
            raise ConfigError(
                f"MixedPrecision.bits is {self.bits} with choices {self.choices}; expected two widths or more, and a "
                "budget between the smallest and the largest"
            )

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return what is folded, the grid of each weight, and the ranges of the activations."""
        scope = weighted_layers(model, self)
        widths = sorted(set(self.choices))
        # Layers of fewer values than the narrowest width has keep them, and take nothing of the budget.
        narrow = usual_grid(widths[0])
        layers = {name: layer for name, layer in scope.items() if grid_for(name, layer, narrow)[0] == narrow}
        lost = self._divergences(model, list(layers), widths, context)
        sizes = {name: constrained_weight(layer).numel() for name, layer in layers.items()}
        chosen = allocate_bits(lost, sizes, self.bits)
        grids = dict.fromkeys(scope, usual_grid(widths[-1])) | {
            name: usual_grid(width) for name, width in chosen.items()
        }
        activations = ActivationGrid() if self.activations else None
        plan = integer_plan(self, model, context, grids, activations=activations)
        if chosen:
            mean = sum(sizes[name] * width for name, width in chosen.items()) / sum(sizes.values())
            plan["notes"].append(f"{mean:.2f} bits on average: " + ", ".join(f"{n} {w}" for n, w in chosen.items()))
        return plan

    @staticmethod
    def _divergences(
        model: nn.Module, names: list[str], widths: list[int], context: Context
    ) -> dict[str, dict[int, float]]:
        trial = copy.deepcopy(model)
        examples = context.data.calibration
        wanted = F.log_softmax(to_logits(predict(trial, examples), context.outputs), 1)
        lost: dict[str, dict[int, float]] = {}
        with context.progress.task("sensitivity", total=len(names) * len(widths)) as task:
            for name in names:
                layer = trial.get_submodule(name)
                lost[name] = {}
                for width in widths:
                    stack = copy.deepcopy(constraints(layer))
                    attach_quantizer(layer, usual_grid(width))
                    outputs = F.log_softmax(to_logits(predict(trial, examples), context.outputs), 1)
                    lost[name][width] = float(F.kl_div(outputs, wanted, reduction="batchmean", log_target=True))
                    remove_constraints(layer)
                    constrain(layer, stack)
                    task.advance(note=f"{name} at {width} bits")
        return lost


def allocate_bits(lost: dict[str, dict[int, float]], sizes: dict[str, int], bits: float) -> dict[str, int]:
    """Return the width of each layer: from the widest on, what loses least for each bit it saves.

    Args:
        lost: layer to width to what that width loses there.
        sizes: layer to its number of weights.
        bits: most bits of a weight on average.

    >>> allocate_bits({"a": {2: 9.0, 8: 0.0}, "b": {2: 1.0, 8: 0.0}}, {"a": 10, "b": 10}, 5)
    {'a': 8, 'b': 2}
    """
    chosen = {name: max(widths) for name, widths in lost.items()}
    while sum(sizes[name] * width for name, width in chosen.items()) > bits * sum(sizes.values()):
        narrower = [(name, w) for name, width in chosen.items() for w in lost[name] if w < width]

        def price(step: tuple[str, int]) -> float:
            name, width = step
            saved = sizes[name] * (chosen[name] - width)
            return (max(lost[name][width] - lost[name][chosen[name]], 0.0)) / saved

        name, width = min(narrower, key=price)
        chosen[name] = width
    return chosen
