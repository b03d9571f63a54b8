"""Channels that one module makes and layers read: where they can be scaled without changing the model's answers."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nutlet.constraints import formats
from nutlet.constraints.stack import constrained_layers, dense_weight, raw_weight, remove_constraints
from nutlet.data.examples import Examples
from nutlet.graph.channels import by_group, scale_inputs, scale_outputs
from nutlet.graph.fold import foldable
from nutlet.graph.kernels import WEIGHTED
from nutlet.graph.modules import shared_parameters
from nutlet.graph.trace import Record, Site, trace
from nutlet.tasks.inputs import Inputs
from nutlet.tasks.predict import predict

__all__ = ["Link", "links"]

HOMOGENEOUS = frozenset(
    {"relu", "leaky_relu", "prelu", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"}
    | {"adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d", "mean", "pad"}
    | {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "flatten", "view", "reshape", "contiguous"}
    | {"squeeze", "unsqueeze", "transpose", "permute"}
)
"""Operations with ``f(s x) = s f(x)`` for positive s, channel by channel."""
CLIPPING = frozenset({"relu6", "hardtanh", "clamp", "hardswish"})


@dataclass(frozen=True)
class Link:
    """Channels on their way from what makes them to all that read them, through ReLU, pooling and the like alone.

    Args:
        layer: the dense layer or convolution that makes them; None where a norm over each example does.
        norm: the norm behind the layer, or that one; its gain and bias are scaled in place of the layer's.
        readers: the layers that read them.
    """

    layer: str | None
    norm: str | None
    readers: tuple[str, ...]

    def channels(self, model: nn.Module) -> int:
        """Return how many channels there are."""
        if self.layer is None:
            return len(model.get_submodule(str(self.norm)).get_parameter("weight"))
        layer = model.get_submodule(self.layer)
        weight = by_group(layer, raw_weight(layer))
        return weight.shape[0] * weight.shape[1]

    def scale(self, model: nn.Module, factor: Tensor) -> None:
        """Make the channels ``factor`` times as large, ``(channels,)`` positive, and let readers take so much less."""
        source = model.get_submodule(str(self.norm or self.layer))
        if self.norm is None:
            scale_outputs(source, factor)
        else:
            source.get_parameter("weight").data.mul_(factor)
        if isinstance(bias := getattr(source, "bias", None), Tensor):  # an RMS norm has none
            bias.data.mul_(factor)
        for name in self.readers:
            reader = model.get_submodule(name)
            scale_inputs(reader, (1 / factor).repeat_interleave(_inputs(reader) // len(factor)))

    def made(self, model: nn.Module) -> Tensor:
        """Return the largest weight that makes each channel, a batch norm's gain included: ``(channels,)``."""
        layer = model.get_submodule(str(self.layer))
        largest = by_group(layer, dense_weight(layer)).abs().amax((2, 3)).flatten()
        if self.norm is None:
            return largest
        norm = model.get_submodule(self.norm)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        return largest * norm.weight.detach().abs() / torch.sqrt(norm.get_buffer("running_var") + norm.eps)

    def read(self, model: nn.Module) -> Tensor:
        """Return the largest weight with which a reader takes each channel: ``(channels,)``."""
        count = self.channels(model)
        readers = [model.get_submodule(name) for name in self.readers]
        taken = [by_group(reader, dense_weight(reader)).abs().amax((1, 3)) for reader in readers]
        return torch.stack([t.view(count, -1).amax(1) for t in taken]).amax(0)


def links(
    model: nn.Module, example: Inputs, examples: Examples, layers: Collection[str], notes: list[str]
) -> list[Link]:
    """Return all links between modules of which the layers are among ``layers``.

    Each is tried: with channels scaled by powers of two, the model without constraints answers the same to the bit.

    Args:
        model: not changed.
        example: two inputs, for the walk.
        examples: what the trials are made with.
        layers: names of layers that may change.
        notes: gets a sentence on each link that just misses.
    """
    free = {name for name in layers if _chosen_freely(model.get_submodule(name))}
    notes += [f"{name}: no factor may move the values it shares, left as it is" for name in layers if name in free]
    layers = [name for name in layers if name not in free]
    trial = copy.deepcopy(model)
    for _, layer in list(constrained_layers(trial)):
        remove_constraints(layer, bake=True)
    expected = predict(trial, examples)
    found = []
    for link in _by_data_flow(model, trace(model, example), layers, notes):
        count = link.channels(trial)
        same = all(_inputs(trial.get_submodule(name)) % count == 0 for name in link.readers)
        if same:
            factor = torch.exp2(torch.randint(-2, 3, (count,), generator=torch.Generator().manual_seed(0)).float())
            link.scale(trial, factor)
            close = 1e-6 * float(expected.abs().max())
            same = torch.allclose(predict(trial, examples), expected, rtol=1e-6, atol=close)
            link.scale(trial, 1 / factor)  # exact
        if same:
            found.append(link)
        else:
            names = ", ".join(filter(None, [link.layer, link.norm, *link.readers]))
            notes.append(f"{names}: their channels do not correspond, left as they are")
    return found


def _chosen_freely(layer: nn.Module) -> bool:
    """Whether the layer is on values that are no grid: a codebook, say."""
    return any(c.order == 0 for c in formats(layer))


def _inputs(layer: nn.Module) -> int:
    weight = by_group(layer, raw_weight(layer))
    return weight.shape[0] * weight.shape[2]


def _by_data_flow(model: nn.Module, record: Record, layers: Collection[str], notes: list[str]) -> Iterator[Link]:
    shared = shared_parameters(model)
    behind = dict(foldable(model, record))
    modules = dict(model.named_modules())

    def usable(name: str) -> bool:
        return len(record.of_module(name)) == 1 and not shared & {*modules[name].parameters()}

    for site in record.sites.values():
        module, layer, norm, end = modules.get(site.module), None, None, site
        if site.op in WEIGHTED and site.module in layers:
            layer, norm = site.module, behind.get(site.module)
            end = record.of_module(norm)[0] if norm else site
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(module.normalized_shape) == 1:
            norm = site.module
        else:
            continue
        if not all(usable(name) for name in (layer, norm) if name) or (norm and modules[norm].weight is None):
            continue
        readers = _readers(record, end, notes)
        if readers and all(name in layers and usable(name) for name in readers):
            yield Link(layer, norm, tuple(dict.fromkeys(readers)))


def _readers(record: Record, site: Site, notes: list[str]) -> list[str]:
    """Return the layers that read ``site``; none where anything else does."""
    if site.name in record.outputs:
        return []
    readers = []
    for user in record.consumers(site.name):
        if user.op in CLIPPING:
            notes.append(f"{site.module}: {user.op} clips what it gives, left as it is; ReLU in its place would do")
        if user.op in WEIGHTED and user.inputs == (site.name,):
            further = [user.module]
        else:
            further = _readers(record, user, notes) if user.op in HOMOGENEOUS else []
        if not further:
            return []
        readers += further
    return readers
