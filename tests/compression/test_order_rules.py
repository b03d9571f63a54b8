"""Advice on the order of steps."""

from __future__ import annotations

import re

import pytest

import tiny
from nutlet.compression import order_rules as order
from nutlet.compression.order_rules import FIGURES, RULES, advise
from nutlet.compression.pipeline import compress
from nutlet.methods import Distill, DropBlocks, Factorize, FineTune, PruneChannels, PruneWeights, Quantize
from nutlet.methods.base import EFFECTS, Method

GOOD = [
    DropBlocks(drop=1),
    PruneChannels(ratio=0.3),
    Distill(epochs=1),
    Factorize(),
    Distill(epochs=1),
    PruneWeights(sparsity=0.5),
    FineTune(epochs=1),
    Quantize(fold=False),
    FineTune(epochs=1),
]


def test_the_documented_order_gets_no_advice() -> None:
    assert advise(GOOD) == []
    assert advise([]) == advise([FineTune()]) == []


def test_rules_speak_of_effects_that_exist_and_say_what_is_better() -> None:
    for (first, second), sentence in RULES.items():
        assert {first, second} <= set(EFFECTS)
        assert "{second}" in sentence
        assert (second, first) not in RULES, "both orders cannot be bad"
    assert set(FIGURES) <= set(RULES)


@pytest.mark.parametrize(
    ("steps", "number", "says"),
    [
        ([Quantize(), PruneChannels(ratio=0.3)], 2, "PruneChannels after Quantize: .*scales.*; PruneChannels first"),
        ([Quantize(), Factorize()], 2, "rounded a second time"),
        ([Quantize(fold=False), Distill(), PruneWeights(sparsity=0.5)], 3, "PruneWeights after Quantize: .*chance"),
        ([PruneWeights(sparsity=0.5), Factorize()], 2, "mask is dissolved"),
        ([Factorize(), PruneChannels(ratio=0.3)], 2, "PruneChannels first"),
        ([Quantize(), Distill()], 2, "Distill after Quantize: .*batch norms.*0.02 may diverge.*fold: false"),
        ([FineTune(), Quantize()], 1, "FineTune as the first step: nothing before it"),
    ],
)
def test_bad_orders_are_named_with_a_better_one(steps: list[Method], number: int, says: str) -> None:
    (advice,) = advise(steps)
    assert advice.step == number
    assert re.search(says, advice.text)


def test_training_on_folded_norms_is_fine_with_a_small_step() -> None:
    assert advise([Quantize(), Distill(lr=1e-4)]) == advise([Quantize(learn=True), Distill()]) == []


def test_one_sentence_for_each_kind_of_earlier_step() -> None:
    steps = [Quantize(), PruneWeights(sparsity=0.2), Quantize(), PruneChannels(ratio=0.3)]
    assert [(advice.step, advice.text.partition(":")[0]) for advice in advise(steps)] == [
        (2, "PruneWeights after Quantize"),
        (4, "PruneChannels after Quantize"),
        (4, "PruneChannels after PruneWeights"),
    ]


def test_figures_follow_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(order.FIGURES, ("mask", "rank"), "0.6 points in bench/x")
    assert advise([PruneWeights(sparsity=0.5), Factorize()])[0].text.endswith("Factorize first; 0.6 points in bench/x")


def test_compress_says_it_and_keeps_it(capsys: pytest.CaptureFixture[str]) -> None:
    from nutlet.progress import Progress

    model, data = tiny.tiny("mlp")
    steps = [Quantize(activations=False), PruneWeights(sparsity=0.3)]
    result = compress(model, steps, data, progress=Progress())
    assert "order: PruneWeights after Quantize" in capsys.readouterr().err
    assert result.steps[2].notes[0].startswith("PruneWeights after Quantize")
    assert result.steps[1].notes == ()
