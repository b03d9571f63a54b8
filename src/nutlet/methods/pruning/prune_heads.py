"""Removal of whole attention heads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.constraints.stack import constrained_weight, output_axis
from nutlet.errors import ModelError, NutletError, first_line
from nutlet.graph.attention import open_attention
from nutlet.graph.comparison import run
from nutlet.graph.coupling.group import Group
from nutlet.graph.coupling.groups import Coupling, refitted, remove_channels, silenced
from nutlet.graph.modules import replace
from nutlet.graph.scope import in_scope
from nutlet.graph.skip_reasons import layers_with_values
from nutlet.graph.statistics import batch_gradients, channels_first, observe
from nutlet.methods.base import Method, Plan, register
from nutlet.methods.pruning.criteria import SMALL_BATCH
from nutlet.methods.pruning.own_scores import OwnCriterion, own_scores
from nutlet.options import OpenShare
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["PruneHeads"]


@register
@dataclass(frozen=True, kw_only=True)
class PruneHeads(Method):
    """Remove the attention heads that matter least, with their part of every projection (Michel et al. 2019).

    Works on ``nn.MultiheadAttention``, that of ``nn.TransformerEncoderLayer`` included, and on attention that a forward
    writes out: heads along a dimension of their own, queries and keys multiplied, a softmax or
    ``scaled_dot_product_attention``, in one projection or three. Numbers of heads that lie in attributes follow. The
    first becomes a module with a dense layer for each projection, which later steps can work on; it runs without
    torch's fused kernel for whole encoder layers. Every attention keeps a head.

    Args:
        ratio: share of the heads that goes, above 0 up to but not including 1.
        criterion: ``taylor`` is the change of the loss, to first order, without the head's output, as mean square over
            small batches (Michel et al. 2019, arXiv:1905.10650, equation 2, take the mean size); ``activation`` the
            mean size of that output; ``magnitude`` the norm of the head's weights. The first two look at the
            calibration examples. Or a function ``(model, layers, context)`` of your own, with one score for each input
            of the layers that read the heads (:data:`~nutlet.methods.pruning.own_scores.Scorer`).
        distribution: ``uniform`` takes the same share of every attention, ``global`` ranks the heads of all together
            (sizes relative to the mean of their attention; changes of the loss as they are).

    Raises:
        ConfigError: ``ratio`` is out of range.

    >>> PruneHeads(ratio=0.5).to_dict()
    {'PruneHeads': {'ratio': 0.5}}
    """

    effect: ClassVar[str] = "width"
    sample: ClassVar[Mapping[str, Any]] = {"ratio": 0.25}
    use_when: ClassVar[str] = "a transformer whose attention is a good part of the work; many heads are never missed"
    recoverable: ClassVar[bool] = True

    ratio: OpenShare
    criterion: Literal["magnitude", "activation", "taylor"] | OwnCriterion = "taylor"
    distribution: Literal["uniform", "global"] = "uniform"

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the heads that each attention loses."""
        opened, notes = _opened(model, context.example)
        coupling = Coupling(opened, context.example, heads=True)
        notes += [f"{name}: its heads cannot go ({reason}); left alone" for name, reason in coupling.refused.items()]
        groups = {group.root: group for group in self._free(opened, coupling, notes)}
        weakest = self._weakest(self._scores(opened, groups, context))
        removed = {name: sorted(groups[name].places[k] for k in gone) for name, gone in weakest.items()}
        removed, attributes, refused = coupling.tried(removed)
        notes += [f"{name}: {reason}; left alone" for name, reason in refused.items()]
        if not removed:
            notes.append("nothing removed: the share is less than one head of any attention, or each has one only")
        notes += [f"{name}: {len(gone)} of {groups[name].channels} heads removed" for name, gone in removed.items()]
        plan = {"removed": removed, "attributes": attributes, "notes": notes}
        return plan | refitted(opened, plan, context.example, heads=True)

    def skip_reasons(self, model: nn.Module, example: Inputs) -> dict[str, str]:
        """Return the layers that are inside no attention whose heads may go."""
        opened, notes = _opened(model, example)
        coupling = Coupling(opened, example, heads=True)
        groups = self._free(opened, coupling, notes)
        inside = coupling.touched(groups)
        torchs = tuple(f"{g.root}." for g in groups if isinstance(_at(model, g.root), nn.MultiheadAttention))
        return {
            name: "" if name in inside or f"{name}.".startswith(torchs) else "in no attention whose heads may go"
            for name in layers_with_values(model)
        }

    def _free(self, model: nn.Module, coupling: Coupling, notes: list[str]) -> list[Group]:
        """Return the attentions of which everything is in scope that goes with a head."""
        modules = [name for name, _ in model.named_modules()]
        free = {"", *in_scope(modules, self, modules)}
        if not coupling.has_attention and not notes:
            raise ModelError(
                "PruneHeads found no attention; expected nn.MultiheadAttention, alone or in "
                "nn.TransformerEncoderLayer, or a forward that mixes values by the softmax of queries and keys, with "
                "the heads along a dimension of their own"
            )
        return [group for group in coupling.groups if free.issuperset([*group.producers, *group.read])]

    def _scores(self, model: nn.Module, groups: Mapping[str, Group], context: Context) -> dict[str, Tensor]:
        if self.criterion == "magnitude" or not groups:
            return {name: _relative(group.importance) for name, group in groups.items()}
        scores = {name: torch.zeros(group.channels) for name, group in groups.items()}
        readers = {layer: name for name, group in groups.items() for layer in group.read}
        if self.criterion == "activation":

            def note(layer: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
                own, ours = groups[readers[layer]].read[layer]
                sizes = channels_first(module, x).abs().mean(1)
                scores[readers[layer]].index_add_(0, torch.tensor(ours), sizes[own] * len(x))

            observe(model, readers, note, context.calibration("outputs of heads"))
            return {name: _relative(score) for name, score in scores.items()}
        if self.criterion != "taylor":
            layers = {layer: model.get_submodule(layer) for layer in readers}
            shapes = {n: (constrained_weight(layer).shape[1 - output_axis(layer)],) for n, layer in layers.items()}
            for layer, score in own_scores(self.criterion, model, layers, shapes, context).items():
                own, ours = groups[readers[layer]].read[layer]
                scores[readers[layer]].index_add_(0, torch.tensor(ours), score[own])
            return scores
        batches = context.calibration("gradients", SMALL_BATCH)
        for gradients in batch_gradients(model, readers, batches, context.loss):
            for layer, gradient in gradients.items():
                # Summed over what reads a head, w g is the derivative by a factor on its output.
                module, (own, ours) = model.get_submodule(layer), groups[readers[layer]].read[layer]
                change = (constrained_weight(module) * gradient).movedim(1 - output_axis(module), 0).flatten(1).sum(1)
                own_change = torch.zeros(len(scores[readers[layer]])).index_add_(0, torch.tensor(ours), change[own])
                scores[readers[layer]] += own_change.square()
        return scores

    def _weakest(self, scores: dict[str, Tensor]) -> dict[str, list[int]]:
        if not scores:
            return {}
        everything = torch.cat(list(scores.values())).sort().values
        bar = float(everything[min(round(len(everything) * self.ratio), len(everything) - 1)])
        weakest = {}
        for name, score in scores.items():
            wanted = int((score < bar).sum()) if self.distribution == "global" else round(len(score) * self.ratio)
            gone = score.argsort(stable=True)[: min(wanted, len(score) - 1)]
            if len(gone):
                weakest[name] = gone.tolist()
        return weakest

    def fitted(self, plan: Plan) -> list[str]:
        """Return the layers whose weight quantizers are fitted anew after the removal."""
        return list(plan.get("refitted", ()))

    def reference(self, model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Return the model with its attention opened, in which nothing reads the heads that go."""
        return silenced(_with_opened(copy.deepcopy(model), plan), example, plan["removed"], heads=True)

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Open the attention of the plan and remove its heads; constraints are carried."""
        model = _with_opened(model, plan)
        if plan["removed"]:
            remove_channels(model, example, plan["removed"], plan.get("attributes", {}), heads=True)
        return model


def _relative(score: Tensor) -> Tensor:
    return score / score.mean().clamp_min(1e-12)


def _at(model: nn.Module, name: str) -> nn.Module | None:
    return dict(model.named_modules()).get(name)


def _with_opened(model: nn.Module, plan: Plan) -> nn.Module:
    """Open the attention that loses heads, in place."""
    for name in plan["removed"]:
        if isinstance(before := model.get_submodule(name), nn.MultiheadAttention):
            attention = open_attention(before)
            if isinstance(attention, str):
                raise ModelError(
                    f"the heads of {name} cannot be removed: {attention}; expected the attention decided on"
                )
            replace(model, name, attention)
    return model


def _opened(model: nn.Module, example: Inputs) -> tuple[nn.Module, list[str]]:
    """Return a copy with every :class:`torch.nn.MultiheadAttention` opened, and why others could not be."""
    opened, notes = copy.deepcopy(model), []
    for name, before in [(n, m) for n, m in opened.named_modules() if isinstance(m, nn.MultiheadAttention)]:
        attention = open_attention(before)
        if isinstance(attention, str):
            notes.append(f"{name}: {attention}, left alone")
            continue
        replace(opened, name, attention)
        try:
            run(opened, example)
        except NutletError:
            raise
        except Exception as error:  # a model that reads the inside of its attention may fail in any way at all
            replace(opened, name, before)
            reason = f"{type(error).__name__}: {first_line(error)}"
            notes.append(f"{name}: the model does not run with it opened ({reason})")
    return opened, notes
