"""A module's answers on examples, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from nutlet.errors import ModelError
from nutlet.tasks.base import Scores
from nutlet.tasks.forward import adapted, is_adapted, picked
from nutlet.tasks.inputs import Inputs, NamedInputs

if TYPE_CHECKING:  # tasks know nothing of data, which carry their task
    from nutlet.data.examples import Examples

__all__ = ["answered", "evaluate", "evaluating", "gives_several", "let_go", "predict", "scores"]

_NO_RESULTS = frozenset(vars(nn.Module())) - {"_buffers"}
"""What each module has: parameters, modules and hooks, of which no forward leaves any."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode for the block, and each of its modules back into its own mode after it.

    What a forward left on the model is let go with the block, see :func:`let_go`.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        let_go(model)


def let_go(model: nn.Module) -> None:
    """Detach the results that a forward left on modules (features kept for Grad-CAM), in place.

    With the graph of a computation behind them they cannot be copied, and hold its memory.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if name in _NO_RESULTS or not isinstance(value, (Tensor, list, tuple, dict)):
                continue
            if any(map(_is_result, tree_leaves(value))):
                vars(module)[name] = tree_map_only(_is_result, Tensor.detach, value)


def _is_result(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_leaf


def gives_several(model: nn.Module, inputs: Inputs) -> bool:
    """Whether forward gives something else than one tensor, and nothing tells yet which is read."""
    if is_adapted(model) or isinstance(inputs, NamedInputs):
        return False
    try:
        with evaluating(model), torch.no_grad():
            return not isinstance(model(inputs.clone()), Tensor)
    except Exception:  # the forward is the user's code: it fails again where that is said
        return False


def predict(model: nn.Module, examples: Examples, *, batch: int = 256) -> Tensor:
    """Return the outputs ``(N, ...)`` for all examples, float32 on the CPU.

    Raises:
        ModelError: the outputs are not one tensor with a row for each example, ``(N, classes)`` in classification.
    """
    return torch.cat([outputs for outputs, _ in answered(model, examples, batch)])


def scores(model: nn.Module, examples: Examples, *, batch: int = 256) -> Scores:
    """Return how well each example is answered, ``(N,)``, see :meth:`~nutlet.tasks.base.Task.score`.

    Outputs are let go batch by batch: those of all examples may not fit into memory.
    """
    return np.concatenate([examples.task.score(*row) for row in answered(model, examples, batch)])


def evaluate(model: nn.Module, examples: Examples) -> float:
    """Return the mean score of the task: of classes top-1 accuracy, 0 to 1, where NaN is a wrong answer."""
    return float(scores(model, examples).mean())


def answered(model: nn.Module, examples: Examples, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield outputs ``(B, ...)``, float32 on the CPU, and targets, batch by batch.

    Raises:
        ModelError: see :func:`predict`.
    """
    place = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    example = examples.batch(slice(0, 1))[0]
    with adapted(model, example, examples.task.output), evaluating(model), torch.inference_mode():
        for x, targets in examples.batches(batch):
            y = picked(model(x.to(place)), examples.task.output)
            flat = examples.task.name == "classification"
            if not isinstance(y, Tensor) or y.ndim < 2 or (flat and y.ndim != 2) or len(y) != len(x):
                found = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
                raise ModelError(
                    f"the module returns {found} for {len(x)} examples; expected one tensor "
                    f"({'N, classes' if flat else 'N, ...'}): wrap it in a module that returns only the scores"
                )
            yield y.float().cpu(), targets
