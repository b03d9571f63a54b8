"""Batch-norm statistics measured anew."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nutlet.errors import ConfigError, ModelError
from nutlet.graph.scope import in_scope
from nutlet.methods.base import Method, Plan, register
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["ReestimateNorms"]


@register
@dataclass(frozen=True, kw_only=True)
class ReestimateNorms(Method):
    """Measure the running means and variances of batch norms anew, after steps that shifted what the norms see.

    Means over batches of training examples, as they are without augmentation, with all other modules in evaluation
    mode ("precise" batch norm: Wu & Johnson 2021, arXiv:2105.07576, section 3.1). Norms that were folded into their
    layers are no norms any more: put this before :class:`Quantize`, which folds them.

    Args:
        examples: how many training examples are looked at, drawn by the seed; all where there are fewer.
        batch_size: examples in a batch, whose own statistics are averaged.

    Raises:
        ConfigError: fewer than 2 examples in all or in a batch.

    >>> ReestimateNorms(examples=1000).to_dict()
    {'ReestimateNorms': {'examples': 1000}}
    """

    effect: ClassVar[str] = "values"
    use_when: ClassVar[str] = (
        "after pruning or factorizing a model with batch norms, where nothing is trained afterwards"
    )

    examples: int = 5000
    batch_size: int = 250

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("examples", "batch_size"):
            if getattr(self, option) < 2:
                raise ConfigError(f"ReestimateNorms.{option} is {getattr(self, option)}; expected 2 or more")

    def skip_reasons(self, model: nn.Module, example: Inputs) -> dict[str, str]:
        """Return why layers are left alone; a scope without a norm is refused here already."""
        in_scope(_norms(model), self, dict(model.named_modules()))
        return super().skip_reasons(model, example)

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the names of the norms, and their new statistics as values."""
        if not any(True for _ in model.parameters()):
            raise ModelError("ReestimateNorms found no parameters; expected a model with batch norms")
        norms = _norms(model)
        chosen = in_scope(norms, self, dict(model.named_modules()))
        if not norms:
            note = "nothing to do: no batch norm with running statistics is left in the model (Quantize folds them)"
            return {"norms": [], "notes": [note]}
        trial = copy.deepcopy(model).eval()
        measured: list[_BatchNorm] = []
        for name in chosen:
            norm = trial.get_submodule(name)
            assert isinstance(norm, _BatchNorm)
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over all batches
            measured.append(norm.train())
        train = context.data.train
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(context.seed))[: self.examples]
        with torch.no_grad():
            for rows in torch.split(order, self.batch_size):
                if len(rows) > 1:  # one example has no variance
                    trial(train.batch(rows)[0])
        values: dict[str, Tensor] = {}
        for name, norm in zip(chosen, measured, strict=True):
            if norm.num_batches_tracked:
                values |= {f"{name}.{buffer}": norm.get_buffer(buffer) for buffer in ("running_mean", "running_var")}
        return {"norms": chosen, "values": values, "notes": []}


def _norms(model: nn.Module) -> list[str]:
    """Return the batch norms that keep running statistics."""
    return [n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
