"""What every registered method must do, on a tiny CNN and a tiny MLP."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from conformance.cases import CASES, Case
from conformance.examples import (
    EXAMPLES,
    METHODS,
    MODELS,
    alone,
    body_of,
    check_constraints,
    check_exported,
    check_finalized,
    check_saved,
    same_state,
)
from nutlet.compression.pipeline import compress
from nutlet.compression.recipe import dump_recipe, load_recipe
from nutlet.constraints.stack import constrained_weight
from nutlet.data.examples import Data
from nutlet.errors import ConfigError, NutletError
from nutlet.graph.scope import Layer
from nutlet.methods import PruneChannels, Student, known_methods, method_from_dict
from nutlet.methods.base import Method

Make = Callable[[str], tuple[nn.Module, Data]]
every_method = pytest.mark.parametrize("name", sorted(EXAMPLES))
every_run = pytest.mark.parametrize(
    ("name", "kind"),
    [
        # The models take turns for variants of a method.
        pytest.param(name, kind, marks=[] if name in METHODS or (j + k) % 2 else [pytest.mark.slow])
        for k, name in enumerate(sorted(EXAMPLES))
        for j, kind in enumerate(MODELS[name])
    ],
)

thorough_run = pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if name in METHODS else [pytest.mark.slow])
        for name in sorted(EXAMPLES)
        for kind in MODELS[name]
    ],
)
"""What variants of a method share with it is tried on the method alone in `make test`."""


def test_every_registered_method_is_tested_and_the_reverse() -> None:
    ours = {name for name, kind in known_methods().items() if kind.__module__.startswith("nutlet.")}
    assert ours == {type(case.method).__name__ for case in CASES}
    assert len(EXAMPLES) == len(CASES), "two cases have one name"
    kinds = [case.kind for case in CASES if case.kind]
    assert len(set(kinds)) == len(kinds), "a kind has two representatives"


@every_method
def test_says_what_it_is_for(name: str) -> None:
    kind = type(EXAMPLES[name])
    assert kind.use_when
    assert kind.__doc__
    options = {o.name for o in dataclasses.fields(kind)} - {o.name for o in dataclasses.fields(Method)}
    documented = "".join(base.__doc__ or "" for base in kind.__mro__)
    assert all(f"{option}:" in documented for option in options), "an option without documentation"


@every_method
def test_round_trips_through_dict_and_yaml(name: str, tmp_path: Path) -> None:
    scoped = dataclasses.replace(EXAMPLES[name], include=("a.*", "b"), exclude=("c",))
    for method in (EXAMPLES[name], scoped):
        assert method_from_dict(method.to_dict()) == method
        (tmp_path / "recipe.yaml").write_text(dump_recipe([method]))
        assert load_recipe(tmp_path / "recipe.yaml") == [method]
        assert yaml.safe_load(dump_recipe([method])) == {"steps": [method.to_dict()]}
        assert hash(method) == hash(method_from_dict(method.to_dict()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refuses_unknown_options_and_bad_values(case: Case) -> None:
    ((name, options),) = case.method.to_dict().items()
    longest = max((o.name for o in dataclasses.fields(case.method)), key=len)
    misspelt = longest[:-2] + longest[-1] + longest[-2]
    with pytest.raises(ConfigError, match=longest):
        method_from_dict({name: {**options, misspelt: 1}})
    for bad in case.refused:
        with pytest.raises(ConfigError, match=rf"{name}"):
            method_from_dict({name: bad})
    for scope in ("conv1", [1], 3, None):
        with pytest.raises(ConfigError, match="include"):
            method_from_dict({name: {**options, "include": scope}})


@every_run
def test_keeps_the_contract_and_the_model_it_was_given(name: str, kind: str, make: Make) -> None:
    model, data = make(kind)
    before = copy.deepcopy(model)
    modes = [module.training for module in model.train().modules()]
    result = compress(model, [EXAMPLES[name]], data)
    assert same_state(model, before)
    assert [module.training for module in model.modules()] == modes
    assert repr(model) == repr(before)
    assert not result.model.training
    for batch in (1, 3, 32):
        outputs = result.model(data.train.batch(slice(0, batch))[0])
        assert outputs.shape == (batch, 4)
        assert outputs.dtype == torch.float32
        assert bool(torch.isfinite(outputs).all())
    assert all(p.grad is None for p in result.model.parameters())
    assert any(p.requires_grad for p in result.model.parameters()), "the result must still be trainable"
    check_constraints(body_of(result.model))


@thorough_run
def test_is_trainable_after(name: str, kind: str, make: Make) -> None:
    _, data = make(kind)
    result = copy.deepcopy(alone(name, kind).model).train()
    result(data.train.x).square().sum().backward()
    grads = [p.grad for p in result.parameters() if p.requires_grad]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in grads)
    assert sum(bool(g.any()) for g in grads if g is not None) > len(grads) / 2


@thorough_run
def test_same_seed_same_bytes(name: str, kind: str, make: Make) -> None:
    model, data = make(kind)
    torch.manual_seed(1)
    first = compress(model, [EXAMPLES[name]], data, seed=3)
    torch.manual_seed(2)
    second = compress(model, [EXAMPLES[name]], data, seed=3)
    assert same_state(first.model, second.model)
    assert [s.plan for s in first.steps] == [s.plan for s in second.steps]
    assert [(s.accuracy, s.size, s.notes) for s in first.steps] == [(s.accuracy, s.size, s.notes) for s in second.steps]


@every_run
def test_saved_and_loaded_is_the_same(name: str, kind: str, make: Make, tmp_path: Path) -> None:
    model, data = make(kind)
    loaded = check_saved(alone(name, kind), model, data, tmp_path / "one")
    check_saved(loaded, model, data, tmp_path / "two")
    for file in ("compressed.json", "recipe.yaml", "model.packed"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@every_run
def test_finalized_equals_simulated(name: str, kind: str, make: Make) -> None:
    _, data = make(kind)
    check_finalized(alone(name, kind).model, data)


@thorough_run
def test_leaves_excluded_layers_alone(name: str, kind: str, make: Make) -> None:
    model, data = make(kind)
    inner = {"cnn": "block1.conv1", "mlp": "block1.fc1", "attention": "block1.attention.out_proj"}[kind]
    for pattern in (inner, "block1.*", "block1"):
        method = dataclasses.replace(EXAMPLES[name], exclude=(pattern,))
        result = body_of(compress(model, [method], data).model)
        old, new = model.get_submodule(inner), result.get_submodule(inner)
        assert isinstance(new, type(old))
        if isinstance(method, (PruneChannels, Student)):  # its inputs follow the layers before it
            assert constrained_weight(new).shape[0] == constrained_weight(old).shape[0]
        else:
            assert torch.equal(constrained_weight(new), constrained_weight(old))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_changes_only_what_is_included(case: Case, make: Make) -> None:
    model, data = make(case.models[-1])
    method = dataclasses.replace(case.method, include=("block2*",), **case.acting)
    result = body_of(compress(model, [method], data).model)
    for layer, old in model.named_modules():
        if isinstance(old, Layer) and not layer.startswith("block2"):
            assert torch.equal(constrained_weight(result.get_submodule(layer)), constrained_weight(old))
    assert same_state(result, model) == case.idle


@every_method
def test_refuses_a_pattern_that_matches_nothing(name: str, make: Make) -> None:
    model, data = make(MODELS[name][-1])
    for option in ("include", "exclude"):
        method = dataclasses.replace(EXAMPLES[name], **{option: ("blokc1.fc1",)})
        with pytest.raises(ConfigError, match=r"blokc1\.fc1.*block1\.(fc|conv)1"):
            compress(model, [method], data)


@every_method
def test_a_model_without_layers_is_refused_with_a_sentence(name: str, make: Make) -> None:
    _, data = make("mlp")
    with pytest.raises(NutletError, match="expected"):
        compress(nn.Sequential(nn.Softmax(1)), [EXAMPLES[name]], data)


@every_run
def test_exports_with_parity(name: str, kind: str, make: Make, tmp_path: Path) -> None:
    _, data = make(kind)
    check_exported(alone(name, kind), data, tmp_path, error=0.03, agreement=0.95)


@pytest.mark.parametrize("distribution", ["global", "uniform"])
def test_ties_are_pruned_to_the_share_that_was_asked_for(distribution: str, make: Make) -> None:
    _, data = make("mlp")
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    method = method_from_dict({"PruneWeights": {"sparsity": 0.5, "distribution": distribution}})
    result = compress(model, [method], data)
    weights = torch.cat([constrained_weight(result.model[k]).flatten() for k in (0, 2)])
    # Ranked in order, the last layer would lose everything, and keeps one.
    assert len(weights) // 2 - int((weights == 0).sum()) in (0, 1)
