"""The counter before a victim, what it shows, and the victims behind it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from nutlet.content_hash import fingerprint
from nutlet.errors import BudgetError, ConfigError, ModelError, StorageError
from nutlet.measurement import Runtime
from nutlet.oracle import (
    CachedSource,
    Disclosure,
    FileSource,
    Ledger,
    ModuleSource,
    Oracle,
    as_probabilities,
    source_of,
)

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
LOGITS = 3 * X


class Counting:
    """A victim that gives its inputs as logits, and remembers how many it was sent at a time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return 3 * x


def test_each_client_has_a_count_of_its_own() -> None:
    source = Counting()
    first = Oracle(source, budget=10)
    second = first.client("second", budget=15)
    first.query(X[:4])
    second.query(X[:12])
    first.query(X[:6])
    assert (first.queries, first.left, second.queries, second.left) == (10, 0, 12, 3)
    assert first.ledger is second.ledger
    assert first.ledger == Ledger({"attacker": 10, "second": 12})
    assert first.ledger.queries == sum(source.sizes) == 22
    unlimited = first.client("third")
    unlimited.query(X)
    assert (unlimited.left, unlimited.queries) == (None, 20)


def test_past_the_budget_nothing_is_sent() -> None:
    source = Counting()
    oracle = Oracle(source, budget=10, client="thief")
    oracle.query(X[:6])
    with pytest.raises(BudgetError, match=r"thief asked for 5 more answers after 6; expected at most 10 in all"):
        oracle.query(X[:5])
    assert (oracle.queries, source.sizes) == (6, [6])
    oracle.query(X[:4])
    with pytest.raises(BudgetError):
        oracle.query(X[:1])
    with pytest.raises(BudgetError, match="about no inputs"):
        oracle.query(X[:0])
    assert source.sizes == [6, 4]


def test_what_fails_is_not_counted() -> None:
    def fails(x: Tensor) -> Tensor:
        raise ModelError("out of order")

    oracle = Oracle(fails, budget=10)
    with pytest.raises(ModelError, match="out of order"):
        oracle.query(X[:10])
    assert (oracle.queries, oracle.left) == (0, 10)


def test_an_evaluation_is_listed_apart() -> None:
    oracle = Oracle(Counting(), budget=5, answers=Disclosure("labels"))
    torch.testing.assert_close(oracle.evaluate_uncounted(X), LOGITS.softmax(1))  # the judge sees everything
    assert (oracle.queries, oracle.left, oracle.ledger.evaluation, oracle.ledger.queries) == (0, 5, 20, 0)


def test_ledgers_of_several_processes_add_up() -> None:
    ledger = Ledger({"a": 1, "b": 2}, evaluation=3)
    ledger.add(Ledger({"b": 10, "c": 20}, evaluation=30))
    assert ledger == Ledger({"a": 1, "b": 12, "c": 20}, evaluation=33)


def test_many_inputs_go_in_parts() -> None:
    source = Counting()
    x = torch.randn(600, 4)
    torch.testing.assert_close(Oracle(source).query(x), (3 * x).softmax(1))
    assert source.sizes == [256, 256, 88]


PROBABILITIES = LOGITS.softmax(1)


def test_what_each_kind_of_answer_shows() -> None:
    oracle = Oracle(Counting())

    def shown(text: str) -> Tensor:
        return oracle.client(text, answers=Disclosure.parse(text)).query(X)

    assert torch.equal(shown("logits"), LOGITS)
    torch.testing.assert_close(shown("probabilities"), PROBABILITIES)
    assert torch.equal(shown("labels"), nn.functional.one_hot(LOGITS.argmax(1), 4).float())
    torch.testing.assert_close(shown("rounded-1"), (PROBABILITIES * 10).round() / 10)
    top = shown("top-2")
    assert ((top > 0).sum(1) == 2).all()
    torch.testing.assert_close(top[top > 0], PROBABILITIES[top > 0])
    torch.testing.assert_close(top.sum(1), PROBABILITIES.topk(2, 1).values.sum(1))
    torch.testing.assert_close(shown("top-9"), PROBABILITIES)


@pytest.mark.parametrize(
    ("text", "access"),
    [("labels", "labels"), ("probabilities", "probabilities"), ("logits", "logits"), ("top-3", "probabilities"),
     ("rounded-2", "probabilities")],
)  # fmt: skip
def test_names_of_answers(text: str, access: str) -> None:
    assert str(Disclosure.parse(text)) == text
    assert Disclosure.parse(text).access == access


@pytest.mark.parametrize("text", ["scores", "top-", "top-x", "top-0", "rounded-10", "labels-2", ""])
def test_answers_that_there_are_not(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Disclosure.parse(text)
    with pytest.raises(ConfigError, match="expected one of"):
        Disclosure(text)  # type: ignore[arg-type]


def test_logits_are_known_by_the_first_answers() -> None:
    sums_to_one = torch.tensor([[0.3, 0.2, 0.5]])
    logits = torch.tensor([[4.0, -1.0, 0.5]])
    given = [logits, sums_to_one]
    oracle = Oracle(lambda x: given.pop(0))
    torch.testing.assert_close(oracle.query(X[:1]), logits.softmax(1))
    # Settled: what could be probabilities is still read as logits.
    torch.testing.assert_close(oracle.query(X[:1]), sums_to_one.softmax(1))
    other = Oracle(lambda x: sums_to_one)
    assert torch.equal(other.query(X[:1]), sums_to_one)
    assert torch.equal(other.client("another").query(X[:1]), sums_to_one)
    assert other.client("another").outputs == "probabilities"


def test_what_the_outputs_are_can_be_said() -> None:
    rows = torch.tensor([[0.3, 0.7]])
    torch.testing.assert_close(Oracle(lambda x: rows, outputs="logits").query(X[:1]), rows.softmax(1))
    assert torch.equal(as_probabilities(2 * rows, "probabilities"), 2 * rows)
    # A negative score is no probability, even where the row sums to one.
    odd = torch.tensor([[1.5, -0.5]])
    torch.testing.assert_close(as_probabilities(odd), odd.softmax(1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.full((20, 4), torch.nan), "NaN or infinity for 20 of 20 inputs"),
        (torch.eye(20) / 0, "NaN or infinity for 20 of 20"),
        (torch.zeros(19, 4), r"float32 of shape \(19, 4\) for 20 inputs; expected"),
        (torch.zeros(20), r"shape \(20,\)"),
        (torch.zeros(20, 4, 1), r"shape \(20, 4, 1\)"),
        (torch.zeros(20, 4, dtype=torch.long), "int64"),
        ([[0.5, 0.5]] * 20, "gave list"),
        (None, "gave NoneType"),
    ],
)
def test_what_is_no_answer_is_refused(given: Any, message: str) -> None:
    oracle = Oracle(lambda x: given)
    with pytest.raises(ModelError, match=message):
        oracle.query(X)
    assert oracle.queries == 0


def test_minus_infinity_is_a_logit() -> None:
    logits = torch.tensor([[0.0, -torch.inf]])
    assert torch.equal(Oracle(lambda x: logits).query(X[:1]), torch.tensor([[1.0, 0.0]]))


def test_a_module_keeps_its_mode_and_answers_in_evaluation() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    module[1].eval()
    modes = [part.training for part in module.modules()]
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    source = source_of(module)
    assert isinstance(source, ModuleSource)
    answers = source(X)
    assert torch.equal(answers, source(X))
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in module.named_buffers())
    (answers * nn.Parameter(torch.ones(4))).sum().backward()  # can stand in a loss
    torch.testing.assert_close(answers, module.eval()(X))
    assert source.fingerprint() == ModuleSource(module).fingerprint()
    with torch.no_grad():
        module[0].weight += 1
    assert source.fingerprint() != fingerprint(nn.Linear(4, 4))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The same small network twice: one takes batches of any size, one of three only."""
    weight = torch.linspace(-1, 1, 12).view(4, 3).numpy()
    paths = {}
    for name, size in (("any", "N"), ("three", 3)):
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"], axis=1)],
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, 3])],
            [numpy_helper.from_array(weight, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        paths[name] = tmp_path / f"{name}.onnx"
        onnx.save_model(model, paths[name])
    return paths


def test_a_file_answers_as_its_runtime_does(files: dict[str, Path]) -> None:
    runtime = Runtime(files["any"], threads=1)
    expected = torch.from_numpy(runtime.run(X.numpy()))
    source = source_of(str(files["any"]))
    assert isinstance(source, FileSource)
    assert torch.equal(source(X), expected)
    oracle = Oracle(source, budget=20)
    torch.testing.assert_close(oracle.query(X), expected)
    assert oracle.outputs == "probabilities"
    # In sevens of three, the last of them padded.
    fixed = FileSource(files["three"])
    torch.testing.assert_close(fixed(X), expected)
    assert fixed(X[:1]).shape == (1, 3)
    assert source.fingerprint() != fixed.fingerprint()


def test_a_file_travels_with_its_content(files: dict[str, Path]) -> None:
    source = FileSource(files["three"])
    expected = source(X)
    content = pickle.dumps(source)
    files["three"].unlink()
    moved = pickle.loads(content)
    assert torch.equal(moved(X), expected)
    assert moved.fingerprint() == source.fingerprint()


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        source_of(tmp_path / "none.onnx")


def test_a_function_is_taken_as_it_is(tmp_path: Path) -> None:
    source = Counting()
    assert source_of(source) is source
    kept = CachedSource(ModuleSource(nn.Linear(4, 3)), tmp_path)
    assert source_of(kept) is kept
