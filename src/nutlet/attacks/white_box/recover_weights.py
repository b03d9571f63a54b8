"""Exact recovery of a two-layer ReLU network from its logits, from the places where it bends along a line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.attacks.extraction.line import Ask, Line
from nutlet.errors import ModelError
from nutlet.options import Count
from nutlet.oracle import Access, Oracle

__all__ = ["RecoverWeights", "RecoveredMLP", "precision", "weight_error"]

_SAME = 1e-4
"""Relative error up to which an answer counts as foretold."""


class RecoveredMLP(nn.Module):
    """``f(x) = W2 relu(W1 x + b1) + b2`` in float64, for inputs of any shape that are flattened."""

    def __init__(self, first: Tensor, first_bias: Tensor, last: Tensor, last_bias: Tensor) -> None:
        super().__init__()
        self.first = nn.Linear(first.shape[1], first.shape[0], dtype=torch.float64)
        self.last = nn.Linear(last.shape[1], last.shape[0], dtype=torch.float64)
        for parameter, values in zip(self.parameters(), (first, first_bias, last, last_bias), strict=True):
            parameter.data = values.clone()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, classes)``."""
        scores: Tensor = self.last(self.first(x.flatten(1).double()).relu())
        return scores


@register_attack
@dataclass(frozen=True, kw_only=True)
class RecoverWeights(Attack):
    """Find every weight of ``f(x) = W2 relu(W1 x + b1) + b2``; no data, no labels, no training.

    Along a line the answers are linear but for one bend per neuron. Two lines that meet give a bend exactly, so a
    search in the angle ``atan t`` finds them all in some five queries each. Where neuron k bends the slope along the
    line changes by ``w2_k |a_k . v|`` and the gradient by ``w2_k (x) a_k sign(a_k . v)``: the difference of two
    gradients holds as many neurons as there are outputs to tell them apart, and one costs as many queries as there are
    inputs. What the ReLUs do not explain is linear, and is none of the network's: that gives the signs. A further
    line finds what bent too far out.

    Signs follow while there are no more neurons than inputs times outputs. Where the victim is another network
    ``share`` is near 0. In float32 the largest weight error of networks with 8 to
    16 neurons is some percent where it succeeds at all; of larger ones neurons are missed.

    Args:
        lines: most lines to search.
        checks: random inputs, the last queries, on which the recovered network is held against the victim; ``share``
            is the part of them that it foretells to a relative error of 1e-4.

    Raises:
        ConfigError: a value out of range.
    """

    use_when: ClassVar[str] = "the victim may be a two-layer ReLU network that shows logits in full precision"
    goal: ClassVar[Goal] = "weights"
    access: ClassVar[Access] = "logits"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi_label", "regression", "embedding")
    source: ClassVar[str] = "Carlini et al. 2020, arXiv:2003.04884; Jagielski et al. 2020, arXiv:1909.01838"

    lines: Count = 3
    checks: Count = 8

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield once, however many budgets there are: the network if it was found, and what is known of it."""
        generator = torch.Generator().manual_seed(knowledge.seed)
        victim = _Victim(oracle, knowledge.shape, max(budgets) - self.checks)
        size = math.prod(knowledge.shape)
        neurons, complete, eps = _Neurons.none(size, knowledge.classes), False, 1.0
        try:
            eps = precision(victim.ask(_draw(4, size, generator)))
            for _ in range(self.lines):
                start, direction = _draw(2, size, generator)
                found, rest = _along(Line(victim.without(neurons), start, direction, eps, loose=len(neurons) > 0))
                neurons = neurons.with_more(found)
                complete = rest is not None and neurons.explain(rest, eps)
                if complete or not len(found):
                    break
        except _Spent:
            pass
        victim.allowance += self.checks
        clone = neurons.module(victim) if len(neurons) else None
        facts: dict[str, float] = {"neurons": len(neurons), "digits": int(-math.log10(eps))}
        share = 0.0
        checks = _draw(self.checks, size, generator)
        if clone is not None:
            error = _relative_error(clone, victim, checks)
            share = float((error < _SAME).double().mean())
            facts["error"] = float(error.median())
        yield AttackResult(queries=oracle.queries, clone=clone, share=share, facts=facts)


class _Spent(Exception):
    """The next question would be more than the budget."""


class _Victim:
    """The oracle with a memory: what was asked and answered, in float64."""

    def __init__(self, oracle: Oracle, shape: tuple[int, ...], allowance: int) -> None:
        self.oracle, self.shape, self.allowance = oracle, shape, allowance
        self.asked: list[Tensor] = []
        self.answers: list[Tensor] = []

    def ask(self, x: Tensor) -> Tensor:
        if len(x) > self.allowance:
            raise _Spent
        self.allowance -= len(x)
        self.asked.append(x)
        self.answers.append(self.oracle.query(x.reshape(-1, *self.shape)).double())
        return self.answers[-1]

    def without(self, known: _Neurons) -> Ask:
        """Return the victim less the neurons that are known: the others bend as before."""
        return lambda x: self.ask(x) - known(x)


@dataclass(frozen=True, eq=False)
class _Neurons:
    """``sum_k w_k relu(a_k x + b_k)``: ``a`` ``(n, inputs)``, ``b`` ``(n,)``, ``w`` ``(n, outputs)``."""

    a: Tensor
    b: Tensor
    w: Tensor

    @staticmethod
    def none(inputs: int, outputs: int) -> _Neurons:
        shapes = ((0, inputs), (0,), (0, outputs))
        return _Neurons(*(torch.empty(shape, dtype=torch.float64) for shape in shapes))

    def __len__(self) -> int:
        return len(self.b)

    def __call__(self, x: Tensor) -> Tensor:
        return (x @ self.a.T + self.b).relu() @ self.w

    def with_more(self, other: _Neurons) -> _Neurons:
        return _Neurons(*(torch.cat(pair) for pair in zip(self._parts(), other._parts(), strict=True)))

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.a, self.b, self.w

    def explain(self, rest: Tensor, eps: float) -> bool:
        """Turn the neurons round so that they leave nothing of ``rest``, the linear part ``(outputs, inputs)``.

        ``relu(z) = z + relu(-z)``: turning neuron k moves ``w_k (x) a_k`` to the linear part, which a network without
        a direct connection does not have. The choice follows from a system of linear equations with a solution of
        zeros and ones; where it has none, neurons are missing.
        """
        if not len(self):
            return False
        moved = torch.einsum("ko,ki->oik", self.w, self.a).flatten(0, 1)
        turned = torch.linalg.lstsq(moved, -rest.reshape(-1, 1), driver="gelsd").solution[:, 0]
        sign = torch.where(turned > 0.5, -1.0, 1.0).double()
        self.a.mul_(sign[:, None])
        self.b.mul_(sign)
        left = rest.flatten() + moved @ (sign < 0).double()
        return bool(left.norm() < 100 * eps**0.5 * moved.norm())

    def module(self, victim: _Victim) -> RecoveredMLP:
        """Return the network; its last layer fits all answers by least squares."""
        scale = self.a.norm(dim=1).clamp_min(1e-300)
        a, b = self.a / scale[:, None], self.b / scale
        x, y = torch.cat(victim.asked), torch.cat(victim.answers)
        features = torch.cat([(x @ a.T + b).relu(), torch.ones(len(x), 1, dtype=torch.float64)], 1)
        weight = 1 / (1 + y.abs().amax(1, keepdim=True))  # errors of answers are relative
        last = torch.linalg.lstsq(features * weight, y * weight, driver="gelsd").solution
        return RecoveredMLP(a, b, last[:-1].T, last[-1])


def _draw(rows: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, size, generator=generator, dtype=torch.float64)


def precision(answers: Tensor) -> float:
    """Return the relative step in which numbers are given: of decimals, or of bfloat16, float16, float32, float64.

    >>> -math.log2(precision(torch.tensor([1 / 3, 2 / 7]))), precision(torch.tensor([0.25, 0.5]).double())
    (24.0, 0.01)
    """
    values = answers.double().flatten()
    largest = float(values.abs().max())
    for digits in range(6):
        scaled = values * 10**digits
        if bool(((scaled - scaled.round()).abs() < 1e-7).all()):
            return min(1.0, 0.5 * 10.0**-digits / max(largest, 0.5))
    mantissa = torch.frexp(values).mantissa
    return next((2.0**-bits for bits in (8, 11, 24) if not bool((mantissa * 2**bits).frac().any())), 2.0**-53)


def _relative_error(clone: nn.Module, victim: _Victim, x: Tensor) -> Tensor:
    """Return the largest error of each of fresh answers ``(N,)``, which the network has not been fitted to."""
    with torch.no_grad():
        foretold: Tensor = clone(x)
    truth = victim.ask(x)
    return (foretold - truth).abs().amax(1) / truth.abs().amax(1).clamp_min(1e-300)


def _along(line: Line) -> tuple[_Neurons, Tensor | None]:
    """Return the neurons that bend on a line, and the linear part where none of them is active."""
    bends = line.bends()
    none = _Neurons.none(len(line.start), len(line.slope))
    if not bends:
        return none, None
    times = torch.tensor([time for time, _ in bends], dtype=torch.float64)
    jumps = torch.stack([jump for _, jump in bends])
    edges = torch.cat([times[:1] - 1 - times[:1].abs(), times, times[-1:] + 1 + times[-1:].abs()])
    centres, halves = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    slopes = torch.cat([line.slope[None], line.slope + jumps.cumsum(0)])
    first = before = line.gradient(centres[0], halves[0], slopes[0])
    rows, begin = [], 0
    while begin < len(bends):
        end = _group(jumps, halves, begin)
        after = line.gradient(centres[end], halves[end], slopes[end])
        # Sum over the group of jump_k (x) a_k / (a_k . v).
        rows.append(torch.linalg.lstsq(jumps[begin:end].T, after - before, driver="gelsd").solution)
        before, begin = after, end
    a = torch.cat(rows)
    b = -(a * (line.start + times[:, None] * line.direction)).sum(1)
    return _Neurons(a, b, jumps), first


def _group(jumps: Tensor, halves: Tensor, begin: int) -> int:
    """Return where to measure the next gradient: after as many bends as the outputs tell apart, in a wide cell."""
    ends = [begin + 1]
    for end in range(begin + 2, min(begin + jumps.shape[1], len(jumps)) + 1):
        unit = torch.nn.functional.normalize(jumps[begin:end])
        if float(torch.linalg.svdvals(unit)[-1]) > 0.1:
            ends.append(end)
    ends = ends[len(ends) // 2 :]
    return max(ends, key=lambda end: float(halves[end]))


def weight_error(recovered: nn.Module, true: nn.Module) -> float:
    """Return the largest error of any weight, relative to the largest of its kind.

    Two networks ``W2 relu(W1 x + b1) + b2`` are the same function where neurons are permuted, or a row of ``W1`` and
    ``b1`` is scaled by a positive number and the column of ``W2`` by its inverse: rows are brought to length 1 and
    matched by direction first. (Turning a row's sign makes another function, and counts as an error.) A neuron that
    is missing is an error of all that it does; one that does nothing need not be found.

    Args:
        recovered, true: modules with two dense layers.

    Raises:
        ModelError: a module has not two dense layers, of the same inputs and outputs in both.

    >>> true, other = (nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)) for _ in range(2))
    >>> first, bias, last, last_bias = (p.detach() for p in true.parameters())
    >>> for p, values in zip(other.parameters(), (2 * first.flip(0), 2 * bias.flip(0), last.flip(1) / 2, last_bias)):
    ...     p.data = values
    >>> weight_error(other, true) < 1e-6
    True
    """
    (a, b, w, c), (ta, tb, tw, tc) = _canonical(recovered), _canonical(true)
    if a.shape[1] != ta.shape[1] or w.shape[1] != tw.shape[1]:
        raise ModelError(
            f"found networks of {a.shape[1]} inputs and {w.shape[1]} outputs, and of {ta.shape[1]} and {tw.shape[1]}; "
            "expected two of the same"
        )
    mine, its = (torch.cat([part[0], part[1][:, None]], 1) for part in ((a, b), (ta, tb)))
    distance = torch.cdist(its, mine)
    errors = [float((c - tc).abs().max() / tc.abs().max().clamp_min(1e-12))]
    for _ in range(len(its)):
        if distance.numel() == 0 or float(distance.min()) == math.inf:
            return max(*errors, 1.0)  # a neuron without a partner
        row, column = divmod(int(distance.argmin()), distance.shape[1])
        errors += [
            float((mine[column] - its[row]).abs().max() / its.abs().max()),
            float((w[column] - tw[row]).abs().max() / tw.abs().max()),
        ]
        distance[row], distance[:, column] = math.inf, math.inf
    return max(errors)


def _canonical(model: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows of length 1, their biases and output weights, of the neurons that do something; and ``b2``."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if len(layers) != 2 or layers[0].out_features != layers[1].in_features:
        raise ModelError(f"found {len(layers)} dense layers; expected two, the second on the first")
    first, last = layers
    a, w = first.weight.detach().double(), last.weight.detach().double().T
    b, c = (torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach().double() for layer in layers)
    scale = a.norm(dim=1)
    does = (scale > 0) & (w.abs().amax(1) > 0)
    a, b, w, scale = a[does], b[does], w[does], scale[does]
    return a / scale[:, None], b / scale, w * scale[:, None], c
