"""Removal of whole attention heads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.errors import ConfigError, ModelError, NutletError, first_line
from nutlet.graph.attention import Attention, open_attention
from nutlet.graph.constraints import constrained_weight
from nutlet.graph.modules import replace
from nutlet.graph.reasons import layers_with_values
from nutlet.graph.scope import in_scope
from nutlet.graph.statistics import observing, weight_gradients
from nutlet.method import Context, Method, Plan, register
from nutlet.methods.pruning.criteria import SMALL_BATCH
from nutlet.predict import evaluating

__all__ = ["PruneHeads"]


@register
@dataclass(frozen=True, kw_only=True)
class PruneHeads(Method):
    """Remove the attention heads that matter least, with their part of every projection (Michel et al. 2019).

    Works on ``nn.MultiheadAttention``, that of ``nn.TransformerEncoderLayer`` included. Each becomes a module with a
    dense layer for each projection, which later steps can work on; it runs without torch's fused kernel for whole
    encoder layers. Every attention keeps a head.

    Args:
        ratio: share of the heads that goes, above 0 up to but not including 1.
        criterion: ``taylor`` is the change of the loss, to first order, without the head's output, as mean square over
            small batches (Michel et al. 2019, arXiv:1905.10650, equation 2, take the mean size); ``activation`` the
            mean size of that output; ``magnitude`` the norm of the head's weights. The first two look at the
            calibration examples.
        distribution: ``uniform`` takes the same share of every attention, ``global`` ranks the heads of all together
            (sizes relative to the mean of their attention; changes of the loss as they are).

    Raises:
        ConfigError: ``ratio`` is out of range.

    >>> PruneHeads(ratio=0.5).to_dict()
    {'PruneHeads': {'ratio': 0.5}}
    """

    effect: ClassVar[str] = "width"
    sample: ClassVar[Mapping[str, Any]] = {"ratio": 0.25}
    when: ClassVar[str] = "a transformer whose attention is a good part of the work; many heads are never missed"
    recoverable: ClassVar[bool] = True

    ratio: float
    criterion: Literal["magnitude", "activation", "taylor"] = "taylor"
    distribution: Literal["uniform", "global"] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < 1:
            raise ConfigError(f"PruneHeads.ratio is {self.ratio}; expected a share above 0 and below 1")

    def decide(self, model: nn.Module, context: Context) -> Plan:
        """Return the heads that each attention loses."""
        notes: list[str] = []
        trial = copy.deepcopy(model)
        opened = {name: attention for name in self._found(model) if (attention := _opened(trial, name, context, notes))}
        scores = self._scores(trial, opened, context)
        if self.criterion != "taylor":
            scores = {name: score / score.mean().clamp_min(1e-12) for name, score in scores.items()}
        removed = self._removed(scores)
        if not removed:
            notes.append("nothing removed: the share is less than one head of any attention, or each has one only")
        notes += [f"{name}: {len(gone)} of {len(scores[name])} heads removed" for name, gone in removed.items()]
        return {"removed": removed, "notes": notes}

    def reasons(self, model: nn.Module, example: Tensor) -> dict[str, str]:
        """Return the layers that are inside no attention whose heads may go."""
        holders = tuple(f"{name}." for name in self._found(model))
        inside = {name: f"{name}.".startswith(holders) for name in layers_with_values(model)}
        return {name: "" if within else "in no attention whose heads may go" for name, within in inside.items()}

    def _found(self, model: nn.Module) -> list[str]:
        modules = {name: module for name, module in model.named_modules() if name}
        free = set(in_scope(modules, self, modules))
        found = [n for n, m in modules.items() if isinstance(m, (nn.MultiheadAttention, Attention))]
        if not found:
            raise ModelError(
                "PruneHeads found no attention; expected nn.MultiheadAttention, alone or in nn.TransformerEncoderLayer"
            )
        # A head goes with its part of all that is inside.
        return [n for n in in_scope(found, self, modules) if all(m in free for m in modules if m.startswith(n + "."))]

    def _scores(self, model: nn.Module, found: dict[str, Attention], context: Context) -> dict[str, Tensor]:
        if self.criterion == "magnitude" or not found:
            return {name: _norms(attention) for name, attention in found.items()}
        examples = context.data.calibration
        scores = {name: torch.zeros(attention.num_heads) for name, attention in found.items()}
        layers = {f"{name}.out_proj": name for name in found}
        if self.criterion == "activation":

            def note(layer: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
                heads = x.view(*x.shape[:-1], len(scores[layers[layer]]), -1)
                scores[layers[layer]] += heads.abs().mean(-1).flatten(0, -2).mean(0) * len(x)

            with observing(model, layers, note), evaluating(model), torch.no_grad():
                for x, _ in examples.batches():
                    model(x)
            return scores
        for batch in examples.batches(SMALL_BATCH):
            for layer, (gradient, _) in weight_gradients(model, layers, [batch], context.loss).items():
                # Summed over what reads a head, w g is the derivative by a factor on its output.
                change = constrained_weight(model.get_submodule(layer)) * gradient
                score = scores[layers[layer]]
                score += change.view(len(change), len(score), -1).sum((0, 2)).square()
        return scores

    def _removed(self, scores: dict[str, Tensor]) -> dict[str, list[int]]:
        if not scores:
            return {}
        everything = torch.cat(list(scores.values())).sort().values
        bar = float(everything[min(round(len(everything) * self.ratio), len(everything) - 1)])
        removed = {}
        for name, score in scores.items():
            wanted = int((score < bar).sum()) if self.distribution == "global" else round(len(score) * self.ratio)
            gone = score.argsort(stable=True)[: min(wanted, len(score) - 1)]
            if len(gone):
                removed[name] = sorted(gone.tolist())
        return removed

    @staticmethod
    def execute(model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
        """Put thinner attention in the place of each; constraints are carried."""
        for name, gone in plan["removed"].items():
            attention = open_attention(model.get_submodule(name))
            if isinstance(attention, str):
                raise ModelError(
                    f"the heads of {name} cannot be removed: {attention}; expected the attention decided on"
                )
            replace(model, name, attention.keep([k for k in range(attention.num_heads) if k not in gone]))
        return model


def _opened(model: nn.Module, name: str, context: Context, notes: list[str]) -> Attention | None:
    """Open the attention ``name`` of ``model`` in place, or say why it is left alone."""
    before = model.get_submodule(name)
    attention = open_attention(before)
    if isinstance(attention, str):
        notes.append(f"{name}: {attention}, left alone")
        return None
    replace(model, name, attention)
    try:
        with evaluating(model), torch.no_grad():
            model(context.example)
    except NutletError:
        raise
    except Exception as error:  # a model that reads the inside of its attention may fail in any way at all
        replace(model, name, before)
        notes.append(f"{name}: the model does not run with it opened ({type(error).__name__}: {first_line(error)})")
        return None
    return attention


def _norms(attention: Attention) -> Tensor:
    total = torch.zeros(attention.num_heads)
    for layer, axis in ((attention.q_proj, 0), (attention.k_proj, 0), (attention.v_proj, 0), (attention.out_proj, 1)):
        slices = constrained_weight(layer).movedim(axis, 0).reshape(attention.num_heads, -1)
        total += torch.linalg.vector_norm(slices, dim=1)
    return total
