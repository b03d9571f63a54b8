"""What an audit works with, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import tiny
from nutlet.auditing.protocol import Protocol
from nutlet.auditing.setup import budgets_for, evaluation_of, open_artifact, transfer_of
from nutlet.data.examples import Examples
from nutlet.errors import ConfigError, DataError
from nutlet.oracle import Disclosure, Ledger


def test_a_budget_beyond_the_transfer_set_is_refused_and_the_usual_ones_are_cut() -> None:
    examples = tiny.tiny_data((10,)).train
    with pytest.raises(DataError, match=r"64 inputs, fewer than the budget of 100 .*--transfer"):
        budgets_for((10, 100), examples)
    assert budgets_for((10, 64), examples) == (10, 64)
    assert budgets_for((), examples) == (64,)


def test_a_transfer_set_that_overlaps_the_evaluation_set_is_refused() -> None:
    data = tiny.tiny_data((10,))
    with pytest.raises(DataError, match="32 of 32 inputs of the transfer set are in the evaluation set"):
        transfer_of(data, data.validation, "v", data.validation)


def test_a_stray_double_is_left_out_and_said() -> None:
    data = tiny.tiny_data((10,))
    many = torch.randn(400, 10, generator=torch.Generator().manual_seed(5))
    given = Examples(torch.cat([many, data.validation.x[:1]]), torch.zeros(401, dtype=torch.long))
    found = transfer_of(data, given, "g", data.validation)
    assert found.removed == 1
    assert len(found.examples) == 400
    assert found.kind == "another set"
    assert transfer_of(data, given, "g", data.validation, same_task=True).kind == "same distribution"


def test_other_shapes_and_missing_inputs_are_refused() -> None:
    data = tiny.tiny_data((10,))
    wide = replace(data.train, x=torch.randn(64, 11))
    with pytest.raises(DataError, match=r"shape \(11,\)"):
        transfer_of(data, wide, "w", data.validation)
    with pytest.raises(DataError, match="no transfer set"):
        transfer_of(data.validation, None, "", data.validation)


def test_the_judges_inputs_are_listed_apart() -> None:
    model, data = tiny.tiny("mlp")
    ledger = Ledger()
    artifact = open_artifact(model, "after", evaluation_of(data), ledger)
    assert ledger.evaluation == len(data.validation)
    assert ledger.queries == 0
    assert artifact.outputs.shape == (32, 4)
    assert artifact.bytes is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": (1,)}, r"queries is \(1,\); expected a list, each entry a number of queries from 2"),
        ({"seeds": 0}, "seeds is 0; expected a whole number from 1 to 100"),
        ({"effort": 0}, r"effort is 0; expected a number above 0 up to 1,000 \(1 is a full audit\)"),
        ({"shadow_models": 1}, "shadow_models is 1; expected a whole number of 2 or more"),
        ({"price_per_query": -1}, "price_per_query is -1; expected a finite amount of money of 0 or more"),
        ({"attacks": ("Knokoff",)}, "did you mean 'Knockoff'"),
        ({"first_seed": -1}, "first_seed is -1; expected a whole number from 0"),
    ],
)
def test_a_protocol_refuses_what_cannot_be_meant(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Protocol(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["probs", "top-", "top-x", "rounded", "top-0"])
def test_answers_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Disclosure.parse(text)
