"""Where two models of one origin differ: modules that can be exchanged, and results along the depth."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nutlet.graph.comparison import run
from nutlet.graph.fold import foldable, is_folded
from nutlet.graph.kernels import WEIGHTED
from nutlet.graph.modules import replace
from nutlet.graph.placement import moves_values
from nutlet.graph.trace import InstrumentedModel, Record, trace
from nutlet.tasks.inputs import Inputs

__all__ = ["SiteError", "activation_errors", "bare", "changed_places", "with_places"]


@dataclass(frozen=True)
class SiteError:
    """How far a result inside the model has moved.

    Args:
        site: name of the call, ``module.path/op/k``.
        error: norm of the difference over the norm of what it was (relative L2).
        cosine: cosine of the angle between both, over all examples.
    """

    site: str
    error: float
    cosine: float


def bare(model: nn.Module) -> nn.Module:
    """Return a copy without activation quantizers."""
    trial = copy.deepcopy(model)
    return trial.unwrap() if isinstance(trial, InstrumentedModel) else trial


def changed_places(before: nn.Module, after: nn.Module, example: Inputs) -> dict[str, tuple[str, ...]]:
    """Return the modules whose values or kind differ and that fit into each other's place, by name.

    Each comes with the names of all modules that have to be exchanged with it: a layer and the norm that was folded
    into it belong together.

    Args:
        before: without activation quantizers.
        after: likewise.
        example: two inputs.
    """
    places = list(_differing(before, after, ""))
    folded = {norm: layer for layer, norm in foldable(before, trace(before, example))}
    together: dict[str, tuple[str, ...]] = {}
    for place in places:
        layer = folded.get(place)
        if layer is None or not is_folded(after.get_submodule(place)):
            together.setdefault(place, (place,))
        elif layer in places:
            together[layer] = (layer, place)
    return together


def _differing(before: nn.Module, after: nn.Module, path: str) -> Iterator[str]:
    old, new = _own(before), _own(after)
    if path and _kind(before) != _kind(after):
        yield path  # a whole in the place of another: factors, an identity
        return
    both = old.keys() & new.keys()
    # Folding gives a layer a bias; it fits into its place all the same.
    fits = all(old[name].shape == new[name].shape for name in both)
    if path and fits and (len(both) < len(old | new) or not all(torch.equal(old[name], new[name]) for name in both)):
        yield path
    others = dict(after.named_children())
    for name, child in before.named_children():
        if name in others and name != "parametrizations":
            yield from _differing(child, others[name], f"{path}.{name}" if path else name)


def _kind(module: nn.Module) -> str:
    # By name: taking constraints off gives a layer a class of its own.
    return parametrize.type_before_parametrizations(module).__name__


def _own(module: nn.Module) -> dict[str, Tensor]:
    """Return the values with which a module itself computes, seen through its constraints."""
    made = dict(module.named_children())["parametrizations"] if parametrize.is_parametrized(module) else nn.ModuleDict()
    assert isinstance(made, nn.ModuleDict)
    own = {name: getattr(module, name).detach() for name in made}
    own |= {name: p.detach() for name, p in module.named_parameters(recurse=False)}
    return dict(sorted((own | dict(module.named_buffers(recurse=False))).items()))


def with_places(before: nn.Module, after: nn.Module, places: Sequence[str]) -> nn.Module:
    """Return a copy of ``before`` with the modules ``places`` of ``after``."""
    trial = copy.deepcopy(before)
    for place in places:
        replace(trial, place, copy.deepcopy(after.get_submodule(place)))
    return trial


class _Tap(nn.Module):
    """Lets a tensor through and keeps a copy."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach().clone()
        return x


def activation_errors(before: nn.Module, after: nn.Module, x: Inputs) -> list[SiteError]:
    """Return how far the results of calls that both models make have moved, in order of execution.

    Calls whose results have another shape, or that a folded norm gave another meaning, are left out.

    Args:
        before: with or without activation quantizers.
        after: likewise.
        x: inputs, batch first.

    Raises:
        ModelError: a model takes another path for other inputs.
    """
    old, new = trace(before, x), trace(after, x)
    names = [name for name in old.sites if _comparable(name, old, new)]
    first, second = _results(before, names, x), _results(after, names, x)
    return [_error(name, first[name].flatten().double(), second[name].flatten().double()) for name in names]


def _comparable(name: str, old: Record, new: Record) -> bool:
    if name not in new.sites or moves_values(old.sites[name]):
        return False
    # The batch of a record of activation quantizers may be another one.
    same = old.sites[name].shape[1:] == new.sites[name].shape[1:]
    readers = [[reader.op for reader in record.consumers(name)] for record in (old, new)]
    return same and (old.sites[name].op not in WEIGHTED or readers[0] == readers[1])


def _results(model: nn.Module, names: Sequence[str], x: Inputs) -> dict[str, Tensor]:
    trial = copy.deepcopy(model)
    edits = dict(trial.by_site) if isinstance(trial, InstrumentedModel) else {}
    body = trial.unwrap() if isinstance(trial, InstrumentedModel) else trial
    taps = {name: _Tap() for name in names}
    watched = edits | {name: nn.Sequential(edits[name], tap) if name in edits else tap for name, tap in taps.items()}
    observed = InstrumentedModel(body, trace(body, x), watched)
    run(observed, x)
    return {name: tap.seen for name, tap in taps.items()}


def _error(name: str, old: Tensor, new: Tensor) -> SiteError:
    length, other = float(old.norm()), float(new.norm())
    error = float((new - old).norm()) / max(length, 1e-12)
    cosine = float(old @ new) / (length * other) if length and other else float(length == other)
    return SiteError(name, min(error, 1e6), max(-1.0, min(1.0, cosine)))
