"""One change at a time: what is measured, and that nothing of it stays."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from nutlet.constraints.stack import Mask, constrain, constrained_weight, constraints
from nutlet.methods.sensitivity import divergence_from, reconstrained, sensitivities
from nutlet.progress import Progress
from nutlet.training.context import Context

QUIET = Progress(quiet=True)


def all_zero(layer: nn.Module) -> None:
    constrain(layer, [Mask(torch.zeros_like(constrained_weight(layer), dtype=torch.bool))])


@contextmanager
def scaled(model: nn.Module, factor: float) -> Iterator[nn.Module]:
    model.weight.data *= factor
    yield model
    model.weight.data /= factor


def test_each_change_is_measured_alone_and_taken_back() -> None:
    model = nn.Linear(2, 1)
    before = copy.deepcopy(model.state_dict())
    found = sensitivities(
        {(factor,): scaled(model, factor) for factor in (2.0, 4.0)},
        lambda changed: float(changed.weight.data.norm() / before["weight"].norm()),
        QUIET,
        "scaling",
    )
    assert found == {(2.0,): pytest.approx(2.0), (4.0,): pytest.approx(4.0)}
    assert torch.equal(model.weight, before["weight"])


def test_a_change_that_fails_is_told_and_left_out() -> None:
    model, told = nn.Linear(2, 1), []

    def measure(changed: nn.Module) -> float:
        if changed.weight.norm() > 100:
            raise RuntimeError("too large")
        return 1.0

    def changes() -> dict[str, object]:
        return {"little": scaled(model, 1.0), "much": scaled(model, 1e6)}

    found = sensitivities(changes(), measure, QUIET, "", lambda name, error: told.append(f"{name}: {error}"))
    assert found == {"little": 1.0}
    assert told == ["much: too large"]
    with pytest.raises(RuntimeError, match="too large"):
        sensitivities(changes(), measure, QUIET, "")


def test_divergence_is_that_of_the_distributions_on_the_calibration_examples() -> None:
    model, data = tiny.tiny("mlp")
    measure = divergence_from(model, Context(data=data, teacher=model))
    assert measure(model) == pytest.approx(0.0, abs=1e-7)
    changed = copy.deepcopy(model)
    all_zero(next(layer for layer in changed.modules() if isinstance(layer, nn.Linear)))
    with torch.no_grad():
        p, q = (m.eval()(data.calibration.x).double().softmax(1) for m in (model, changed))
    expected = float((p * (p / q).log()).sum(1).mean())
    assert expected > 0.01
    assert measure(changed) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fails", [False, True])
def test_constraints_are_put_back(fails: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    constrain(model[0], [Mask(torch.tensor([[True, False, True]] * 2))])
    before, x = constrained_weight(model[0]).clone(), torch.ones(1, 3)

    def put(layer: nn.Module) -> None:
        all_zero(layer)
        if fails:
            raise RuntimeError

    outputs: list[Tensor] = []
    try:
        with reconstrained(model, "0", put) as changed:
            outputs.append(changed(x))
    except RuntimeError:
        assert fails
    assert fails or torch.equal(outputs[0][0], model[0].bias)
    assert [type(c) for c in constraints(model[0])] == [Mask]
    assert torch.equal(constrained_weight(model[0]), before)
    torch.testing.assert_close(model(x), F.linear(x, before, model[0].bias))
