"""Low-rank factorization of dense layers and convolutions."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import constrain, constrained_weight, constraints, raw_weight, remove_constraints
from nutlet.errors import ConfigError, ModelError
from nutlet.graph import modules
from nutlet.graph.comparison import run
from nutlet.graph.finalize import stored_numbers
from nutlet.graph.macs import macs
from nutlet.graph.scope import weighted_layers
from nutlet.graph.statistics import input_moments, observe
from nutlet.graph.trace import trace
from nutlet.methods.base import Method, Plan, register
from nutlet.methods.budget import choose, descent
from nutlet.methods.low_rank import decompositions
from nutlet.methods.low_rank.decompositions import ITERATIVE, Decomposed, Piece, Ranks, chain, fits, limits, pieces
from nutlet.methods.low_rank.products import multiplied_out, unlike_weights
from nutlet.methods.low_rank.ranks import (
    Call,
    Choice,
    Cost,
    Written,
    by_cost,
    candidates,
    cheapest,
    costs,
    portions,
    spread,
)
from nutlet.options import Count, OpenShare, Range, UpToOne
from nutlet.tasks.inputs import Inputs
from nutlet.tasks.predict import evaluate
from nutlet.training.context import Context

__all__ = ["Factorize"]

Drop = Annotated[float, Range(0, 1, right_open=True, noun="a share", note="0.01 for one point")]
"""Accuracy that may be lost."""
TRIED = 8
"""How many ranks of these are tried for each layer, from a sixteenth of the largest that pays."""


@register
@dataclass(frozen=True, kw_only=True)
class Factorize(Method):
    """Replace a layer by a chain of thinner ones; where that does not pay, leave it.

    =========  =====================================================  ==============================================
    svd        dense: n → r → m; convolution: k x k to r, 1x1 to m    truncated SVD (Denton et al. 2014,
                                                                      arXiv:1404.0736)
    whitened   the same                                               least error on the outputs, from calibration
                                                                      data (SVD-LLM, Wang et al. 2024,
                                                                      arXiv:2403.07378)
    spatial    k x 1 to r, 1 x k to m                                 Jaderberg et al. 2014, arXiv:1405.3866
    tucker     1x1, k x k, 1x1                                        Tucker-2 (Kim et al. 2016, arXiv:1511.06530)
    cp         1x1, k x 1 and 1 x k depthwise, 1x1                    Lebedev et al. 2015, arXiv:1412.6553
    nmf        as svd, the first factor without negative values       Lee & Seung 1999, doi:10.1038/44565
    =========  =====================================================  ==============================================

    The first four know their error at every rank from one decomposition. cp and nmf are made anew at each of 8 ranks for
    every layer before they choose (unless ``rank`` says which), which takes minutes where layers are large.

    Where there is no kernel to split (dense layers, 1x1 convolutions), spatial, tucker and cp all are the SVD. A layer is
    replaced only where parameters become fewer and multiply-accumulates not more. Give at most one of ``energy``,
    ``rank``, ``parameters``, ``macs`` and ``drop``.

    Args:
        decomposition: one of the above.
        energy: keep the cheapest ranks that keep this share of the squared norm of each weight (of its outputs, where
            ``whitened``); 0.9 where none of the five is given.
        rank: keep this rank everywhere.
        parameters: share of the parameters of the whole model that is left. Each step goes to the layer that loses
            least for what it saves: of the squared norm of its weight (where ``whitened``, the share of its outputs'
            squared norm times that of its weight).
        macs: the same for the multiply-accumulates.
        drop: how much the mean validation score may fall, 0.01 for one point of accuracy, without training: the smallest
            model in the order of ``parameters`` is searched by bisection, 7 to 12 runs on the split that then chose.
        signed: what ``nmf`` does with a weight that has negative values: ``refuse``, or ``split`` it into ``W+ - W-``
            and factorize both parts with one non-negative first factor.

    Raises:
        ConfigError: a value out of range, more than one way to choose ranks, a rank larger than a matrix that ``include``
            names allows, a budget that even rank 1 exceeds, a signed weight for ``nmf``.

    >>> weight = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    >>> [round(float(s), 4) for s in torch.linalg.svdvals(weight)[:2]]
    [16.8481, 1.0684]
    """  # noqa: E501

    separable: ClassVar[tuple[str, ...]] = ("ranks",)
    effect: ClassVar[str] = "rank"
    use_when: ClassVar[str] = "large dense layers or wide convolutions carry most of the bytes"
    recoverable: ClassVar[bool] = True
    layer_types: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv1d, nn.Conv2d)

    decomposition: Literal["svd", "whitened", "spatial", "tucker", "cp", "nmf"] = "svd"
    energy: UpToOne | None = None
    rank: Count | None = None
    parameters: OpenShare | None = None
    macs: OpenShare | None = None
    drop: Drop | None = None
    signed: Literal["refuse", "split"] = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        ways = ("energy", "rank", "parameters", "macs", "drop")
        given = [name for name in ways if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(
                f"Factorize has {' and '.join(given)}; expected one of energy, rank, parameters, macs and drop"
            )
        if self.signed == "split" and self.decomposition != "nmf":
            raise ConfigError(
                f"Factorize.signed is for decomposition='nmf'; found {self.decomposition!r}, which takes any weight"
            )

    @property
    def _energy(self) -> float:
        return 0.9 if self.energy is None else self.energy

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the ranks of each layer that gets cheaper, and the values of the factors."""
        notes: list[str] = []
        layers = self._layers(model, context, notes)
        chosen = self._chosen(model, layers, context, notes)
        values: dict[str, Tensor] = {}
        for name, choice in chosen.items():
            layer = model.get_submodule(name)
            factors = _factors(copy.deepcopy(layer), self.decomposition, choice.ranks, layers[name].taken)
            values |= {f"{name}.{key}": value for key, value in factors.state_dict().items()}
            for constraint in constraints(layer):
                kinds = [{type(c) for c in constraints(factor)} for factor in factors]
                follows = all(type(constraint) in found for found in kinds)
                what = (
                    "holds for the thinner layers, fitted anew" if follows else "does not hold for the thinner layers"
                )
                notes.append(f"{name}: {type(constraint).__name__} {what}")
        if not chosen:
            notes.append("nothing factorized: no layer in scope would have become smaller")
        ranks = {name: list(choice.ranks) for name, choice in chosen.items()}
        return {"decomposition": self.decomposition, "ranks": ranks, "notes": notes, "values": values}

    def skip_reasons(self, model: nn.Module, example: Inputs) -> dict[str, str]:
        """Return why layers are not factorized, as far as their shape and their neighbours tell."""
        found = super().skip_reasons(model, example)
        free = {name: model.get_submodule(name) for name, reason in found.items() if not reason}
        shared = modules.shared_parameters(model)
        read = _read_by_others(model, free, example)
        for name, layer in free.items():
            if getattr(layer, "groups", 1) > 1:
                found[name] = "a grouped convolution"
            elif raw_weight(layer) in shared:
                found[name] = "another layer has the same weight"
            elif name in read:
                found[name] = "another module reads its weight"
            elif self.rank is not None and self.rank > (most := self._most(layer)):
                if self.include != ("*",):
                    rows, columns = constrained_weight(layer).flatten(1).shape
                    raise ConfigError(
                        f"Factorize.rank is {self.rank}, but {name} is a {rows} x {columns} matrix; "
                        f"expected at most {most} for {self.decomposition}"
                    )
                found[name] = f"rank at most {most}"
        return found

    def milder(self) -> Factorize:
        """Return it with twice the rank, with half of what would be lost, or with half of the drop allowed."""
        if self.rank is not None:
            return replace(self, rank=2 * self.rank)
        if self.drop is not None:
            return replace(self, drop=self.drop / 2)
        kept = next(name for name in ("parameters", "macs", "energy") if getattr(self, name) is not None)
        return replace(self, **{kept: round(min((1 + getattr(self, kept)) / 2, 0.9999), 4)})

    def _most(self, layer: nn.Module) -> int:
        """Return the largest rank that the decomposition can give ``layer``."""
        shape = tuple(constrained_weight(layer).shape)
        return min(limits(fits(self.decomposition, shape), shape))

    def fitted(self, plan: Plan) -> list[str]:
        """Return the chains, whose quantizers are fitted anew."""
        return list(plan["ranks"])

    def reference(self, model: nn.Module, plan: Plan, example: Inputs) -> nn.Module | None:
        """Return the model with each weight the product of its factors."""
        return multiplied_out(model, plan)

    def faults(self, model: nn.Module, plan: Plan) -> dict[str, str]:
        """Return the layers whose product is no projection of the weight, or worse than the best of its rank."""
        return unlike_weights(model, plan)

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Replace each layer of the plan by its chain; the weights in it are set after."""
        for name, ranks in plan["ranks"].items():
            modules.replace(model, name, _factors(model.get_submodule(name), plan["decomposition"], tuple(ranks)))
        return model

    def _layers(self, model: nn.Module, context: Context, notes: list[str]) -> dict[str, Written]:
        """Return the layers that can be factorized, each with its choices, and say why others are left."""
        found = dict(self._free(model, context, notes))
        calls: dict[str, list[Call]] = {}

        def note(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
            calls.setdefault(name, []).append((tuple(x.shape), tuple(output.shape)))

        observe(model, found, note, [context.data.calibration.batch(slice(0, 2))])
        ranks = {}
        for name, layer in found.items():
            if name not in calls:
                notes.append(f"{name}: the model does not call it, left as it is")
            elif cheaper := self._cheaper(name, layer, calls[name], notes):
                ranks[name] = cheaper
        result = {}
        with context.progress.task("decomposing", total=len(ranks)) as task:
            for name, taken in self._taken(model, {name: found[name] for name in ranks}, context):
                weight = constrained_weight(found[name])
                norm, shape = float(weight.double().square().sum()), tuple(weight.shape)
                choices = [Choice(r, norm * taken.error(r), *cost) for r, cost in ranks[name].items()]
                whole = Choice((), 0.0, *costs([Piece(shape, tuple(range(len(shape) - 2)))], calls[name]))
                result[name] = Written(taken, norm, [whole, *choices])
                task.advance()
        return {name: result[name] for name in ranks}

    def _free(self, model: nn.Module, context: Context, notes: list[str]) -> Iterator[tuple[str, nn.Module]]:
        """Yield the layers that nothing speaks against."""
        reasons = self.skip_reasons(model, context.example)
        for name, layer in weighted_layers(model, self).items():
            if reasons[name]:
                notes.append(f"{name}: {reasons[name]}, left as it is")
            else:
                yield name, layer

    def _cheaper(
        self, name: str, layer: nn.Module, calls: list[Call], notes: list[str]
    ) -> dict[Ranks, tuple[int, float]]:
        """Return the ranks in question that make the layer cheaper, with their costs."""
        shape = tuple(constrained_weight(layer).shape)
        kind = fits(self.decomposition, shape)
        asked = candidates(kind, shape) if self.rank is None else [(self.rank,) * len(limits(kind, shape))]
        parameters, macs = costs([Piece(shape, tuple(range(len(shape) - 2)))], calls)
        found = {ranks: costs(pieces(kind, shape, ranks), calls) for ranks in asked}
        cheaper = {ranks: cost for ranks, cost in found.items() if cost[0] < parameters and cost[1] <= macs}
        if not cheaper:
            which = "no rank" if self.rank is None else f"rank {self.rank} not"
            size = " x ".join(str(side) for side in shape)
            notes.append(f"{name}: {which} cheaper than {size} as it is, left as it is")
        if kind in ITERATIVE:
            cheaper = {ranks: cheaper[ranks] for ranks in spread(list(cheaper), TRIED)}
        return cheaper

    def _taken(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> Iterator[tuple[str, Decomposed]]:
        """Yield each layer with its decomposition."""
        for some in portions(layers) if self.decomposition == "whitened" else [dict(layers)]:
            moments = {}
            if self.decomposition == "whitened":
                moments = input_moments(model, some, context.calibration("moments of inputs"))
            for name, layer in some.items():
                weight = constrained_weight(layer)
                kind = fits(self.decomposition, tuple(weight.shape))
                negative = int((weight < 0).sum())
                if kind == "nmf" and negative and self.signed == "refuse":
                    raise ConfigError(
                        f"Factorize: {negative:,} of the {weight.numel():,} values in the weight of {name} are "
                        "negative; expected none for decomposition='nmf'. signed='split' factorizes the positive and "
                        "the negative part, W = W+ - W-; `include` chooses layers"
                    )
                yield name, getattr(decompositions, kind)(weight, *([moments.pop(name)[0]] if moments else []))

    def _chosen(
        self, model: nn.Module, layers: dict[str, Written], context: Context, notes: list[str]
    ) -> dict[str, Choice]:
        """Return what becomes of the layers that change."""
        if self.rank is not None:
            return {name: layer.choices[1] for name, layer in layers.items()}
        if self.parameters is not None:
            return self._in_budget("parameters", self.parameters, model, layers, context, notes)
        if self.macs is not None:
            return self._in_budget("macs", self.macs, model, layers, context, notes)
        if self.drop is not None:
            return self._searched(self.drop, model, layers, context, notes)
        chosen = {}
        for name, layer in layers.items():
            choice = cheapest(layer.choices[1:], (1 - self._energy + 1e-7) * layer.norm)
            if choice is None:
                notes.append(f"{name}: {self._energy:.0%} of it take no fewer parameters, left as it is")
            else:
                chosen[name] = choice
        return chosen

    def _in_budget(
        self, what: Cost, share: float, model: nn.Module, layers: dict[str, Written], context: Context, notes: list[str]
    ) -> dict[str, Choice]:
        total = macs(trace(model, context.example)) if what == "macs" else stored_numbers(model)
        chosen, saved = choose(by_cost(layers, what), total * (1 - share))
        if saved < total * (1 - share):
            raise ConfigError(
                f"Factorize.{what} is {share}, but the lowest ranks leave {1 - saved / total:.2f} of the {what}; "
                f"raise `{what}`, widen the scope, or remove structure first"
            )
        kept = [name for name in layers if name not in chosen]
        if kept:
            notes.append(f"left as they are, the budget is met without: {', '.join(kept)}")
        return {name: layers[name].choices[k] for name, k in chosen.items()}

    def _searched(
        self, drop: float, model: nn.Module, layers: dict[str, Written], context: Context, notes: list[str]
    ) -> dict[str, Choice]:
        """Bisect for the longest beginning of the descent whose model is good enough."""
        validation = context.data.validation
        least = evaluate(model, validation) - drop
        steps = descent(by_cost(layers, "parameters"))
        trials = []

        def first(count: int) -> dict[str, Choice]:
            return {step.layer: layers[step.layer].choices[step.option] for step in steps[:count]}

        def too_far(count: int) -> bool:
            trial = copy.deepcopy(model)
            for name, choice in first(count).items():
                layer = trial.get_submodule(name)
                modules.replace(trial, name, _factors(layer, self.decomposition, choice.ranks, layers[name].taken))
            trials.append(count)
            task.advance()
            return evaluate(trial, validation) < least - 1e-9

        with context.progress.task("searching ranks", total=len(steps).bit_length()) as task:
            good = bisect_left(range(1, len(steps) + 1), True, key=too_far)
        notes.append(f"ranks searched with {len(trials)} models on {len(validation):,} validation examples")
        return first(good)


def _factors(layer: nn.Module, decomposition: str, ranks: Ranks, taken: Decomposed | None = None) -> nn.Sequential:
    """Return the chain for ``layer``, which loses its constraints; without ``taken`` the weights mean nothing."""
    earlier = remove_constraints(layer, bake=True)
    shape = tuple(raw_weight(layer).shape)
    kind = fits(decomposition, shape)
    most = limits(kind, shape)
    if len(ranks) != len(most) or not all(1 <= rank <= limit for rank, limit in zip(ranks, most, strict=True)):
        raise ModelError(f"found the ranks {ranks} for a weight {shape}; expected from 1 up to {most} for {kind}")
    factors = chain(layer, pieces(kind, shape, ranks))
    if taken is not None:
        with torch.no_grad():
            for factor, weight in zip(factors, taken.cut(ranks), strict=True):
                raw_weight(factor).copy_(weight.reshape(raw_weight(factor).shape))
    for factor in factors:
        again = (constraint.fit_like(raw_weight(factor).detach()) for constraint in earlier)
        constrain(factor, [constraint for constraint in again if constraint is not None])
    return factors.train(layer.training)


def _read_by_others(model: nn.Module, names: Iterable[str], example: Inputs) -> list[str]:
    """Return the layers whose ``weight`` another module reads, as attention reads that of its output projection."""
    trial = copy.deepcopy(model)
    watched = {name: _Watched(trial.get_submodule(name)) for name in names}
    for name, layer in watched.items():
        modules.replace(trial, name, layer)
    run(trial, example)
    return [name for name, layer in watched.items() if layer.read]


class _Watched(nn.Module):
    """A layer that runs, and notes what of it is asked for from outside; a factorized one would not have it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        """Give what the layer has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(self.layer, name)
            self.read.add(name)
            return value

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result
