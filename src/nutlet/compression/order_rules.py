"""Advice on the order of steps, from what each of them does to a model.

Every order runs: constraints are carried, recomputed or dissolved. Some orders cost accuracy or bytes for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nutlet.methods.base import Method

__all__ = ["Advice", "advise"]


@dataclass(frozen=True)
class Advice:
    """Why a step would better stand elsewhere.

    Args:
        step: number of the step in the recipe, the first is 1.
        text: one sentence, with the better order.
    """

    step: int
    text: str


RULES: dict[tuple[str, str], str] = {
    ("grid", "depth"): "the ranges of activations are set again without those blocks; {second} first",
    ("grid", "width"): "channels are chosen by rounded weights, and scales and ranges are set again; {second} first",
    ("grid", "rank"): "the factors of rounded weights are rounded a second time, with new scales; {second} first",
    ("grid", "mask"): "rounded weights share their magnitudes, so which of them go is partly chance; {second} first",
    ("grid", "values"): "values that are adjusted after rounding are rounded a second time; {second} first",
    ("shared values", "width"): "channels are chosen by values that many weights share; {second} first",
    ("shared values", "rank"): "factors have other values, which are shared anew; {second} first",
    ("shared values", "mask"): "shared values tie in magnitude, so which go is partly chance; {second} first",
    ("shared values", "grid"): "the grid rounds the shared values once more; take one of the two, or {second} first",
    ("mask", "depth"): "zeros in the blocks that go count for nothing; {second} first",
    ("mask", "width"): "zeros go with the channels, and what is left is less sparse than was asked for; {second} first",
    ("mask", "rank"): "the mask is dissolved, for the factors are dense; {second} first",
    ("rank", "width"): "channels are chosen and coupled through the factors; {second} first",
    ("rank", "depth"): "the blocks that go were factorized for nothing; {second} first",
    ("width", "depth"): "the blocks that go were made thinner for nothing; {second} first",
}
"""What is known to be a bad order, by the effects of the earlier and the later step; ``{second}`` is the later one."""

FIGURES: dict[tuple[str, str], str] = {
    ("grid", "mask"): "measured, three values before a mask of 80 %: 8.0 points lost, after it 2.2; "
    "at 4 and 8 bits the mask did no worse as the second",
    ("grid", "width"): "measured, 4 bits before half of the work goes: 5.0 points lost, after it 3.4",
    ("grid", "rank"): "measured, three values before low rank: 5.5x smaller, after it 17.9x",
    ("grid", "values"): "measured, three values before a correction of biases: 1.8 points lost, after it 0.6",
    ("mask", "rank"): "measured, a mask of 80 % before low rank: 1.7x smaller, after it 6.9x",
    ("mask", "width"): "measured, a mask of 80 % before half of the work goes: 7.0x smaller, after it 8.9x",
}
"""What the order cost on the Fashion-MNIST convnet, with a short recovery: rows of bench/order.py, in docs/order.md."""

_REPLACED = "the student replaces the model, and what was done to it before is lost; {second} first"
_GENTLE = 1e-3
_NO_NORMS = (
    "{first} has folded the batch norms, and without them training at a learning rate of {lr:g} may diverge; "
    "give {first} `fold: false` where it has that, or lower `lr` to {gentle:g} or less"
)
_NOTHING_TO_RECOVER = "nothing before it has changed the model: it trains the original; put it behind what it repairs"


def advise(steps: Sequence[Method]) -> list[Advice]:
    """Return one sentence for each step that would better stand elsewhere, or be set otherwise where it stands.

    >>> from nutlet.methods import Factorize, PruneChannels
    >>> advise([PruneChannels(ratio=0.5), Factorize()])
    []
    >>> advise([Factorize(), PruneChannels(ratio=0.5)])[0].text
    'PruneChannels after Factorize: channels are chosen and coupled through the factors; PruneChannels first'
    """
    found = []
    for number, step in enumerate(steps, 1):
        before = steps[: number - 1]
        if step.effect == "training" and not before and any(other.effect != "training" for other in steps):
            found.append(Advice(number, f"{type(step).__name__} as the first step: {_NOTHING_TO_RECOVER}"))
        folding = next((other for other in before if other.folds_norms), None)
        lr = getattr(step, "lr", 0.0)
        if folding is not None and lr > _GENTLE:
            first = type(folding).__name__
            why = _NO_NORMS.format(first=first, lr=lr, gentle=_GENTLE)
            found.append(Advice(number, f"{type(step).__name__} after {first}: {why}"))
        told: set[str] = set()
        for earlier in before:
            pair = earlier.effect, step.effect
            replaced = step.effect == "student" and earlier.effect not in ("", "training")
            rule = _REPLACED if replaced else RULES.get(pair)
            if rule is None or earlier.effect in told:
                continue
            told.add(earlier.effect)
            first, second = type(earlier).__name__, type(step).__name__
            why = rule.format(first=first, second=second)
            found.append(Advice(number, "; ".join([f"{second} after {first}: {why}", *_measured(pair)])))
    return found


def _measured(pair: tuple[str, str]) -> list[str]:
    return [FIGURES[pair]] if pair in FIGURES else []
