"""What layers see and give on data: inputs, second moments of inputs, outputs and gradients.

All of it is gathered with hooks in one pass over the examples, in evaluation mode; the model is left as it was.
Positions of a convolution (and of a sequence) count as examples of their own: each is one product with the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.constraints.stack import constrained_weight
from nutlet.tasks.inputs import Inputs
from nutlet.tasks.outputs import class_loss
from nutlet.tasks.predict import evaluating

__all__ = [
    "WITH_ROWS",
    "Batches",
    "Loss",
    "batch_gradients",
    "channels_first",
    "input_moments",
    "input_rows",
    "observe",
    "run_through",
    "weight_gradients",
    "without_rows",
]

WITH_ROWS = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Kinds of layers whose inputs can be laid out in rows."""

Batches = Iterable[tuple[Inputs, Tensor]]
"""``(inputs, targets)``, each batch first."""
Loss = Callable[[Any, Tensor, Tensor], Tensor]
Note = Callable[[str, nn.Module, Tensor, Tensor], object]
"""``(name, layer, input, output)`` of one call."""


def run_through(model: nn.Module, batches: Batches) -> int:
    """Run ``model`` on the inputs of all batches, in evaluation mode and without gradients; return how many there were.

    What is to be learned from it, hooks or modules within the model note down.
    """
    seen = 0
    with evaluating(model), torch.no_grad():
        for x, _ in batches:
            model(x)
            seen += len(x)
    return seen


def observe(model: nn.Module, names: Iterable[str], note: Note, batches: Batches) -> None:
    """Call ``note`` with what each named layer takes and gives, for every batch."""

    def hook(name: str) -> Any:
        def told(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            # What is computed here is no part of the model, whatever mode is watching its calls.
            with torch._C.DisableTorchFunction():
                note(name, layer, args[0].detach(), output.detach())

        return told

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        run_through(model, batches)
    finally:
        for handle in handles:
            handle.remove()


def channels_first(layer: nn.Module, x: Tensor) -> Tensor:
    """Return inputs or outputs of ``layer`` as ``(channels, positions)``, all examples side by side.

    >>> channels_first(nn.Conv2d(2, 3, 3), torch.zeros(4, 2, 5, 5)).shape
    torch.Size([2, 100])
    """
    return x.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)


def input_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs as the weight meets them, ``(groups, rows, n)`` for a weight ``(m, n)`` once flattened.

    Args:
        layer: of one of the kinds in :data:`WITH_ROWS`.
        x: ``(..., n)`` or ``(B, C, H, W)``, ``(B, C, L)``.

    >>> input_rows(nn.Conv2d(2, 3, 3, padding=1), torch.zeros(4, 2, 5, 5)).shape
    torch.Size([1, 100, 18])
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    # What the layer itself pads with, "same" included: two numbers for each axis, the last axis first.
    padding = list(layer._reversed_padding_repeated_twice)
    if isinstance(layer, nn.Conv1d):
        x, padding = x.unsqueeze(2), [*padding, 0, 0]
    kernel, stride, dilation = ((1, *v)[-2:] for v in (layer.kernel_size, layer.stride, layer.dilation))
    x = F.pad(x, padding, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    columns = F.unfold(x, kernel, dilation=dilation, stride=stride)  # (B, C k k, positions)
    grouped = columns.view(len(x), layer.groups, -1, columns.shape[-1])
    return grouped.permute(1, 0, 3, 2).flatten(1, 2)


def without_rows(layer: nn.Module) -> str:
    """Return why no inputs of ``layer`` were seen."""
    kind = type(layer).__name__.removeprefix("Parametrized")
    return "nobody calls it" if isinstance(layer, WITH_ROWS) else f"the inputs of a {kind} cannot be laid out in rows"


def input_moments(model: nn.Module, names: Iterable[str], batches: Batches) -> dict[str, Tensor]:
    """Return the mean of ``x x^T`` over what each layer's weight meets, ``(groups, n, n)`` float64.

    The layer-wise error of a changed weight is ``tr(D H D^T)`` with this matrix H: what OBS, SparseGPT, GPTQ and
    whitened SVD go by; the root of its diagonal is the norm of each input that Wanda goes by.

    Rows and columns of H are in the order of the weight flattened, ``weight.flatten(1)``.

    Args:
        model: on the device it is to run on.
        names: layers of the kinds in :data:`WITH_ROWS`.
        batches: ``(inputs, labels)``.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        rows = input_rows(layer, x).float()
        sums[name] = sums.get(name, 0) + (rows.transpose(1, 2) @ rows).double()
        counts[name] = counts.get(name, 0) + rows.shape[1]

    observe(model, names, note, batches)
    return {name: total / counts[name] for name, total in sums.items()}


def batch_gradients(
    model: nn.Module, names: Iterable[str], batches: Batches, loss: Loss | None = None
) -> Iterator[dict[str, Tensor]]:
    """Yield for each batch the gradient of its loss by the weight of each layer as used, where the loss depends on it.

    Args:
        model: its parameters and their gradients stay as they are.
        names: layers with a weight; constraints on it are looked through, not differentiated.
        batches: ``(inputs, labels)``.
        loss: ``(inputs, outputs, labels) -> scalar``; the cross entropy of logits by default.
    """
    layers = {name: model.get_submodule(name) for name in names}
    for x, y in batches:
        with evaluating(model):
            weights = {n: constrained_weight(layer).clone().requires_grad_(True) for n, layer in layers.items()}
            with _using(layers, weights), torch.enable_grad():
                outputs = model(x)
                value = loss(x, outputs, y) if loss else class_loss(outputs, y)
                gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        yield {n: gradient for n, gradient in zip(weights, gradients, strict=True) if gradient is not None}


def weight_gradients(
    model: nn.Module, names: Iterable[str], batches: Batches, loss: Loss | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return per layer the mean of :func:`batch_gradients`, and the mean of their squares; zeros where there are none.

    Args:
        model, names, loss: as there.
        batches: small ones make the mean square an estimate of the Fisher information.
    """
    names = list(names)
    weights = {name: constrained_weight(model.get_submodule(name)) for name in names}
    found = {name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in weights.items()}
    count = 0
    for gradients in batch_gradients(model, names, batches, loss):
        for name, gradient in gradients.items():
            found[name][0].add_(gradient)
            found[name][1].add_(gradient.square())
        count += 1
    return {name: (total / max(count, 1), squares / max(count, 1)) for name, (total, squares) in found.items()}


@contextmanager
def _using(layers: dict[str, nn.Module], weights: dict[str, Tensor]) -> Iterator[None]:
    """Let each layer compute with the weight given for it, whatever stands on its own."""
    kinds = {layer: type(layer) for layer in layers.values()}
    for name, layer in layers.items():
        kind = type(layer)
        layer.__class__ = type(kind.__name__, (kind,), {"weight": weights[name], "__slots__": ()})
    try:
        yield
    finally:
        for layer, kind in kinds.items():
            layer.__class__ = kind
