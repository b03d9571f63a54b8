"""Every ordered pair of methods, each with every other and with itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from conformance.examples import (
    EXAMPLES,
    METHODS,
    MODELS,
    REPRESENTATIVES,
    alone,
    body_of,
    check_constraints,
    check_exported,
    check_finalized,
    check_saved,
)
from nutlet.compression.compressed import Compressed
from nutlet.compression.pipeline import compress
from nutlet.constraints import Quantizer
from nutlet.constraints.stack import (
    Mask,
    constrained_weight,
    constraints,
)
from nutlet.data.examples import Data
from nutlet.errors import NutletError
from nutlet.graph.placement import runs_on_integers
from nutlet.graph.scope import Layer
from nutlet.graph.trace import InstrumentedModel
from nutlet.methods.base import Method

Make = Callable[[str], tuple[nn.Module, Data]]
SHARED = ("cnn", "mlp")


def models_of(*names: str) -> tuple[str, ...]:
    """Return the models that a chain runs on: those that some method needs, or those that all can work on.

    Where two methods need different ones there is none, and no such chain.
    """
    needed = [set(MODELS[name]) for name in names if MODELS[name] != SHARED] or [set(SHARED)]
    return tuple(sorted(set.intersection(*needed)))


TAKEN = sorted({*METHODS, *REPRESENTATIVES})
REPRESENTED = [
    (first, second)
    for i, first in enumerate(TAKEN)
    for j, second in enumerate(TAKEN)
    if models_of(first, second)
    and (
        {first, second} <= set(REPRESENTATIVES)
        # Of a method and a representative one order, the other of the next.
        or ({first, second} & set(REPRESENTATIVES) and (i < j) == bool((i + j) % 2))
    )
]
QUICK = [(*pair, models_of(*pair)[k % len(models_of(*pair))]) for k, pair in enumerate(REPRESENTED)]
"""Representatives of a kind in every order, and each method with every representative; the models take turns."""
VARIED = [
    pair
    for variant in sorted(set(EXAMPLES) - set(TAKEN))
    for other in REPRESENTATIVES
    for pair in ((variant, other), (other, variant))
    if models_of(*pair)
]
RUNS = [(*pair, kind) for pair in product(TAKEN, repeat=2) for kind in models_of(*pair)]
RUNS += [(*pair, models_of(*pair)[k // 2 % len(models_of(*pair))]) for k, pair in enumerate(VARIED)]
"""Every ordered pair of methods on every model, and each variant of a method with every representative."""

every_model = pytest.mark.parametrize("kind", SHARED)


def run(make: Make, kind: str, first: str, second: str) -> tuple[Compressed, Compressed, nn.Module, Data]:
    """Return the result of the first method, of both, the original and the data."""
    model, data = make(kind)
    return alone(first, kind), compress(model, [EXAMPLES[first], EXAMPLES[second]], data), model, data


@pytest.mark.parametrize(("first", "second", "kind"), QUICK)
def test_pair(first: str, second: str, kind: str, make: Make, tmp_path: Path) -> None:
    check_pair(first, second, kind, make, tmp_path)


def check_pair(
    first: str, second: str, kind: str, make: Make, tmp_path: Path
) -> tuple[Compressed, Compressed, nn.Module, Data]:
    """Run both methods, check what came out, and return what :func:`run` does."""
    one, both, model, data = run(make, kind, first, second)
    assert both.recipe == [EXAMPLES[first], EXAMPLES[second]]
    assert both.model(data.train.x).shape == (64, 4)
    check_constraints(body_of(both.model))
    _check_first_survives(one, both)
    _check_second_acted(one, both)
    check_saved(both, model, data, tmp_path)
    check_finalized(both.model, data)
    return one, both, model, data


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in body_of(model).named_modules() if isinstance(module, Layer)}


def _kinds(layer: nn.Module) -> set[type[nn.Module]]:
    return {type(constraint) for constraint in constraints(layer)}


def _levels(layer: nn.Module) -> float:
    """Return how many values a weight of ``layer`` may take, as codes of its coarsest format."""
    return min((len(c.levels) for c in constraints(layer) if isinstance(c, Quantizer)), default=math.inf)


def _check_first_survives(one: Compressed, both: Compressed) -> None:
    """Assert that what the first step put on a layer is on what the second made of it."""
    before, after = _layers(one.model), _layers(both.model)
    for name, old in before.items():
        new = {n: layer for n, layer in after.items() if n == name or n.startswith(name + ".")}
        # A mask does not fit the factors of its matrix; they have few values all the same.
        if new.keys() == {name}:
            assert _kinds(old) & {Mask} <= _kinds(new[name]), f"{name} lost its mask"
        assert all(_levels(layer) <= _levels(old) for layer in new.values()), f"{name} lost its quantizer"
        if name in new and constrained_weight(old).shape == constrained_weight(new[name]).shape:
            for mask in (c for c in constraints(old) if isinstance(c, Mask)):
                assert not bool(constrained_weight(new[name])[~mask.mask].any()), f"{name}: a weight was revived"
    if isinstance(one.model, InstrumentedModel):
        # Activations stay integers wherever the weights they meet do.
        integers = any(runs_on_integers(layer) for layer in after.values())
        assert isinstance(both.model, InstrumentedModel) == integers
        assert not integers or both.model.by_site


def _check_second_acted(one: Compressed, both: Compressed) -> None:
    """Assert that the second step did what its plan says, and changed nothing of the structure without one."""
    before, after, step = _layers(one.model), _layers(both.model), both.steps[-1]
    size, was = step.size, one.steps[-1].size
    if not set(step.plan) - {"activations"}:
        assert {n: layer.weight.shape for n, layer in after.items()} == {n: m.weight.shape for n, m in before.items()}
        old, new = one.model.state_dict(), both.model.state_dict()
        assert list(old) == list(new)
        assert any(not torch.equal(old[n], new[n]) for n in old), "training changed nothing"
    if step.plan.get("dropped") or step.plan.get("removed"):
        assert size.macs < was.macs
    if step.plan.get("removed"):
        assert size.bytes < was.bytes
    if "ranks" in step.plan:
        assert step.plan["ranks"] or step.notes
        assert (size.parameters < was.parameters) == bool(step.plan["ranks"])
    if "masked" in step.plan:
        assert all(Mask in _kinds(after[name]) for name in step.plan["masked"])
        shares = [_share_of_zeros([layers[name] for name in step.plan["masked"]]) for layers in (before, after)]
        assert shares[1] >= 0.49, "half of what is masked was to go"
        assert shares[1] <= 0.51 or shares[0] > 0, "more than half is gone"
    if "weights" in step.plan:
        assert all(_levels(layer) < math.inf for layer in after.values())


def _share_of_zeros(layers: list[nn.Module]) -> float:
    weights = torch.cat([constrained_weight(layer).flatten() for layer in layers])
    return float((weights == 0).float().mean())


@pytest.mark.parametrize(("first", "second", "kind"), QUICK[3::16])
def test_some_pairs_export_with_parity(first: str, second: str, kind: str, make: Make, tmp_path: Path) -> None:
    _, both, _, data = run(make, kind, first, second)
    check_exported(both, data, tmp_path, error=0.05, agreement=0.93)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second", "kind"), RUNS)
def test_every_pair(first: str, second: str, kind: str, make: Make, tmp_path: Path) -> None:
    _, both, _, data = check_pair(first, second, kind, make, tmp_path)
    check_exported(both, data, tmp_path, error=0.05, agreement=0.93)


@pytest.mark.slow
@every_model
@pytest.mark.parametrize("seed", range(3))
def test_long_chains(seed: int, kind: str, make: Make, tmp_path: Path) -> None:
    names = [name for name in TAKEN if kind in MODELS[name]]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    model, data = make(kind)
    chain: list[Method] = []
    for name in [names[i] for i in order]:
        with suppress(NutletError):  # what others have left may not suit it: it says so, and is left out
            result = compress(model, [*chain, EXAMPLES[name]], data, workdir=tmp_path / "steps")
            chain.append(EXAMPLES[name])
    assert len(chain) > len(names) / 2
    check_constraints(body_of(result.model))
    check_saved(result, model, data, tmp_path)
    check_finalized(result.model, data)
    # So little is left of the model that one code more or less of an activation is much.
    check_exported(result, data, tmp_path, error=0.2, agreement=0.9)
