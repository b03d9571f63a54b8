"""What a method says before the work about the layers it would leave alone is true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import tiny
from conformance.examples import EXAMPLES, MODELS, body_of, brief
from conformance.test_odd_models import ODD, Normed, Tied
from nutlet.compression.pipeline import compress
from nutlet.data.examples import Data
from nutlet.errors import NutletError
from nutlet.graph.finalize import finalize
from nutlet.graph.skip_reasons import MADE_ELSEWHERE, layers_with_values
from nutlet.methods import Factorize, FineTune
from nutlet.methods.base import Method

Make = Callable[[str], tuple[nn.Module, Data]]
every_method = pytest.mark.parametrize("name", [brief(name) for name in sorted(EXAMPLES)])


def values(layer: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a layer itself, not of layers inside it."""
    return {
        name: tensor.clone()
        for name, tensor in layer.state_dict().items()
        if "." not in name or name.startswith("parametrizations.")
    }


def check_reasons(method: Method, model: nn.Module, data: Data) -> dict[str, str]:
    """Assert that layers with a reason keep their values, and that a refusal is known before."""
    example = data.calibration.batch(slice(0, 2))[0]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        reasons = method.skip_reasons(model, example)
    except NutletError as error:
        with pytest.raises(type(error)):
            compress(model, [method], data)
        return {}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()), "the model changed"
    assert list(reasons) == list(layers_with_values(model)), "a reason, or none, for every layer"
    old = {name: values(layer) for name, layer in layers_with_values(model).items()}
    refusal = None
    try:
        result = body_of(finalize(compress(model, [method], data).model))
    except NutletError as error:
        refusal = str(error)
    if refusal is not None:
        # Only for a weight that somebody else makes, which is named before; the message says how to leave it out.
        assert "weight_norm" in refusal, refusal
        assert MADE_ELSEWHERE in reasons.values(), refusal
        return reasons
    modules = dict(result.named_modules(remove_duplicate=False))
    for name, reason in reasons.items():
        if reason:
            assert name in modules, f"{name} is gone, in spite of: {reason}"
            new = values(modules[name])
            assert [(key, v.shape) for key, v in new.items()] == [(key, v.shape) for key, v in old[name].items()]
            assert all(torch.equal(new[key], old[name][key]) for key in new), f"{name} changed, in spite of: {reason}"
    return reasons


@pytest.mark.parametrize(
    ("name", "kind"),
    [pytest.param(name, kind, marks=brief(name).marks) for name in sorted(EXAMPLES) for kind in MODELS[name]],
)
def test_layers_with_a_reason_are_not_touched(name: str, kind: str, make: Make) -> None:
    model, data = make(kind)
    reasons = check_reasons(EXAMPLES[name], model, data)
    assert "" in reasons.values(), "it does nothing on a model of plain layers"


@every_method
@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_excluded_layers_are_not_touched(name: str, kind: str, make: Make) -> None:
    model, data = make(kind)
    out = ("block1", "depthwise") if kind == "cnn" else ("block1", "fc2")
    check_reasons(replace(EXAMPLES[name], exclude=out), model, data)


@every_method
@pytest.mark.parametrize("kind", [*ODD, Normed], ids=lambda kind: kind.__name__)
def test_reasons_on_odd_models(name: str, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    data = tiny.tiny_data(ODD.get(kind, (10,)))
    model = kind().eval() if kind is Normed else tiny.settled(kind(), data.calibration.x)
    check_reasons(EXAMPLES[name], model, data)


@every_method
def test_a_layer_out_of_scope_may_share_its_weight(name: str) -> None:
    torch.manual_seed(0)
    data = tiny.tiny_data((10,))
    model = tiny.settled(Tied(), data.calibration.x)
    check_reasons(replace(EXAMPLES[name], exclude=("c",)), model, data)
    check_reasons(replace(EXAMPLES[name], exclude=("b",)), model, data)


def test_frozen_layers_and_norms_alone(make: Make) -> None:
    model, data = make("cnn")
    model.get_submodule("stem").requires_grad_(False)
    assert check_reasons(FineTune(epochs=1, batch_size=16), model, data)["stem"] == "its parameters are frozen"
    reasons = check_reasons(FineTune(epochs=1, batch_size=16, include=("norm",)), model, data)
    assert reasons["fc"] == "out of scope"


@every_method
def test_a_pattern_that_matches_nothing_is_known_before(name: str, make: Make) -> None:
    model, data = make("mlp")
    with pytest.raises(NutletError, match="nowhere"):
        replace(EXAMPLES[name], exclude=("nowhere",)).skip_reasons(model, data.calibration.x[:2])


@every_method
def test_a_gentler_method_is_another_one_of_its_kind(name: str) -> None:
    milder = EXAMPLES[name].milder()
    assert milder is None or (type(milder) is type(EXAMPLES[name]) and milder != EXAMPLES[name])


@every_method
def test_passes_are_a_range(name: str, make: Make) -> None:
    model, data = make("mlp")
    low, high = EXAMPLES[name].calibration_passes(model, data.calibration.x[:2])
    assert 0 <= low <= high


def test_what_a_method_knows_itself(make: Make) -> None:
    model, data = make("cnn")
    found = Factorize(rank=10).skip_reasons(model, data.calibration.x[:2])
    assert found["depthwise"] == "a grouped convolution"
    assert found["fc"] == "rank at most 4"
    assert found["block1.conv1"] == "rank at most 8"
    assert found["mix"] == ""
