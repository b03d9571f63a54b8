"""Cross-layer equalisation: weight ranges of neighbouring layers made equal, the function unchanged."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nutlet.data import Examples
from nutlet.graph.activations import WEIGHTED
from nutlet.graph.channels import by_group, scale_inputs, scale_outputs
from nutlet.graph.constraints import Mask, constrained_layers, constraints, raw_weight, refit, take_off
from nutlet.graph.fold import foldable
from nutlet.graph.modules import shared_parameters
from nutlet.graph.scope import weighted_layers
from nutlet.graph.sites import Record, walk
from nutlet.method import Context, Method, Plan, register
from nutlet.predict import predict

__all__ = ["Equalize"]

HOMOGENEOUS = frozenset(
    {"relu", "leaky_relu", "prelu", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"}
    | {"adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d", "mean", "pad"}
    | {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "flatten", "view", "reshape", "contiguous"}
    | {"squeeze", "unsqueeze", "transpose", "permute"}
)
"""Operations with ``f(s x) = s f(x)`` for positive s, channel by channel."""
CLIPPED = frozenset({"relu6", "hardtanh", "clamp", "hardswish"})
SWEEPS = 100


@register
@dataclass(frozen=True, kw_only=True)
class Equalize(Method):
    """Give each channel between two layers the same range of weights on both sides of it.

    Where only the second layer reads the first and nothing but ReLU, pooling and the like stands between, a channel
    may be made ``1/s`` as large by the first layer and ``s`` times as important to the second: the model computes the
    same. ``s_i = sqrt(r1_i r2_i) / r2_i`` makes the ranges ``r`` of the weights equal on both sides (Nagel et al.
    2019, arXiv:1906.04721, section 4.1). Where a batch norm follows the first layer, its gain is scaled instead of the
    weight, and the ranges are those after folding. A chain of such pairs is swept until nothing changes.

    It helps most where one scale serves many channels: grids with one scale per tensor, and activations. Masks are
    carried; grids that are there already are fitted anew, and only then does the model answer a little otherwise.

    >>> Equalize(exclude=("head",)).to_dict()
    {'Equalize': {'exclude': ['head']}}
    """

    effect: ClassVar[str] = "values"
    when: ClassVar[str] = (
        "before a Quantize that costs accuracy, where channels of a layer differ much in range; no data"
    )

    def decide(self, model: nn.Module, context: Context) -> Plan:
        """Return the pairs of layers, each with the batch norm after the first or None."""
        plan: Plan = {"pairs": [], "notes": []}
        layers = weighted_layers(model, self)
        record = walk(model, context.example)
        found = [*_candidates(model, record, layers, plan["notes"])]
        exact = _Trial(model, context.data.calibration.subset(slice(0, 16)))
        for first, norm, second in found:
            if exact(first, norm, second):
                plan["pairs"].append([first, norm, second])
            else:
                plan["notes"].append(f"{first}, {second}: their channels do not correspond, left as they are")
        for name in dict.fromkeys(name for first, norm, second in plan["pairs"] for name in (first, second)):
            if any(not isinstance(c, Mask) for c in constraints(layers[name])):
                plan["notes"].append(f"{name}: its quantizer was fitted to the scaled weights")
        if not plan["pairs"]:
            plan["notes"].append("nothing equalized: no two layers in scope with only ReLU or pooling between them")
        return plan

    @staticmethod
    def execute(model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
        """Scale both sides of every pair."""
        for _ in range(SWEEPS):
            change = 0.0
            for first, norm, second in plan["pairs"]:
                made, read = _ranges(model, first, norm, second)
                # Of a channel that one side makes or reads next to nothing of, the bias would become huge.
                alive = torch.minimum(made, read) > 1e-6 * torch.maximum(made, read)
                factor = torch.where(alive, (read / made).sqrt(), torch.ones_like(made))
                _scale(model, first, norm, second, factor)
                change = max(change, float((factor - 1).abs().max()))
            if change < 1e-4:
                break
        for name in dict.fromkeys(name for first, _, second in plan["pairs"] for name in (first, second)):
            refit(model.get_submodule(name))
        return model


def _candidates(
    model: nn.Module, record: Record, layers: dict[str, nn.Module], notes: list[str]
) -> Iterator[tuple[str, str | None, str]]:
    """Yield ``(first, batch norm or None, second)`` by the data flow; ``notes`` tells of those that just miss."""
    shared = shared_parameters(model)
    norms = {site: norm for site, norm in foldable(model, record) if model.get_submodule(norm).weight is not None}

    def usable(name: str) -> bool:
        return name in layers and len(record.of_module(name)) == 1 and not shared & {*layers[name].parameters()}

    for site in record.sites.values():
        if site.op not in WEIGHTED or not usable(site.module):
            continue
        end, norm = site, None
        while end.name not in record.outputs and len(record.consumers(end.name)) == 1:
            (user,) = record.consumers(end.name)
            if user.op in WEIGHTED:
                if usable(user.module) and user.inputs == (end.name,):
                    yield site.module, norm, user.module
                break
            if user.op == "batch_norm" and end is site and norms.get(site.module) == user.module:
                norm = user.module
            elif user.op in CLIPPED:
                notes.append(f"{site.module}: {user.op} clips what it gives, left as it is; ReLU in its place would do")
                break
            elif user.op not in HOMOGENEOUS:
                break
            end = user


class _Trial:
    """Whether the model without constraints answers the same, to the bit, with channels scaled by powers of two."""

    def __init__(self, model: nn.Module, examples: Examples) -> None:
        self.model = copy.deepcopy(model)
        for _, layer in list(constrained_layers(self.model)):
            take_off(layer, bake=True)
        self.examples = examples
        self.expected = predict(self.model, examples)

    def __call__(self, first: str, norm: str | None, second: str) -> bool:
        made, read = _channels(self.model, first, second)
        if read % made:
            return False
        generator = torch.Generator().manual_seed(0)
        factor = torch.exp2(torch.randint(-2, 3, (made,), generator=generator).float())
        _scale(self.model, first, norm, second, factor)
        found = predict(self.model, self.examples)
        _scale(self.model, first, norm, second, 1 / factor)  # exact
        return torch.allclose(found, self.expected, rtol=1e-6, atol=1e-6 * float(self.expected.abs().max()))


def _channels(model: nn.Module, first: str, second: str) -> tuple[int, int]:
    """Return how many channels the first gives and the second takes: a multiple, where positions were flattened."""
    made = by_group(model.get_submodule(first), raw_weight(model.get_submodule(first)))
    read = by_group(model.get_submodule(second), raw_weight(model.get_submodule(second)))
    return made.shape[0] * made.shape[1], read.shape[0] * read.shape[2]


def _ranges(model: nn.Module, first: str, norm: str | None, second: str) -> tuple[Tensor, Tensor]:
    """Return the largest magnitude, ``(channels,)``, of what makes each channel and of what reads it."""
    layers = [model.get_submodule(name) for name in (first, second)]
    made, read = (by_group(layer, _masked(layer)).abs() for layer in layers)
    largest = made.amax((2, 3)).flatten()
    if norm is not None:
        module = model.get_submodule(norm)
        gain = module.get_parameter("weight").detach() / torch.sqrt(module.get_buffer("running_var") + module.eps)  # type: ignore[operator]
        largest = largest * gain.abs()
    return largest, read.amax((1, 3)).view(len(largest), -1).amax(1)


def _masked(layer: nn.Module) -> Tensor:
    """Return the dense weight with zeros where it is masked."""
    weight = raw_weight(layer).detach()
    for mask in constraints(layer):
        if isinstance(mask, Mask):
            weight = mask(weight)
    return weight


def _scale(model: nn.Module, first: str, norm: str | None, second: str, factor: Tensor) -> None:
    """Make the channels between two layers ``factor`` times as large, and the second take so much less of them."""
    source, reader = model.get_submodule(first), model.get_submodule(second)
    if norm is None:
        scale_outputs(source, factor)
    else:
        source = model.get_submodule(norm)
        source.get_parameter("weight").data.mul_(factor)
    if isinstance(source.bias, Tensor):
        source.bias.data.mul_(factor)
    made, read = _channels(model, first, second)
    scale_inputs(reader, (1 / factor).repeat_interleave(read // made))
