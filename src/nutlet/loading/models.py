"""The model a user names, loaded, and tried on the data before hours are spent on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.data.examples import Data
from nutlet.errors import ConfigError, DataError, ModelError, NutletError
from nutlet.formats import format_for, is_model_file
from nutlet.graph.scope import Layer
from nutlet.loading.factory import build, is_factory
from nutlet.loading.program import load_program
from nutlet.loading.weights import check_finite_weights, load_into, read_weights
from nutlet.tasks import CLASSIFICATION, Task
from nutlet.tasks.forward import adapt, picked
from nutlet.tasks.inputs import Inputs, input_shapes, shapes_of
from nutlet.tasks.outputs import TWO_OUTPUTS
from nutlet.tasks.predict import evaluating

__all__ = ["check_kinds", "check_model", "load_model"]

_NOT_YET = {
    ".keras": "a Keras model",
    ".h5": "a Keras model",
    ".tflite": "a LiteRT file",
    ".safetensors": "weights without their architecture",
    ".pt": "weights without their architecture",
    ".pth": "weights without their architecture",
}


def check_kinds(model: nn.Module, data: Data) -> None:
    """Raise ModelError or ConfigError where these are no module and no data."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}; expected a torch.nn.Module")
    if not isinstance(data, Data):
        raise ConfigError(
            f"data is a {type(data).__name__}; expected nutlet.Data: nutlet.split(nutlet.Examples.from_arrays(x, y))"
        )


def load_model(spec: str, weights: Path | None = None) -> nn.Module:
    """Return the model that ``spec`` names, in evaluation mode.

    Args:
        spec: ``package.module:factory`` or ``path/to/file.py:factory``, with literal arguments where needed
            (``arch:ResNet(20)``); the current directory is importable. Or a ``.pt2`` file written by
            ``torch.export.save``, which is rebuilt from its graph without executing anything in it
            (:func:`nutlet.loading.program.load_program`).
        weights: a ``.safetensors``, ``.pt`` or ``.pth`` file for the factory's model; pickled code is refused.

    Raises:
        ModelError: the factory cannot be found or called, gives no module, or does not fit the weights; weights hold
            NaN or infinity.
        StorageError: a file is damaged, or holds code instead of tensors.

    >>> load_model("torch.nn:Linear(2, 3)")
    Linear(in_features=2, out_features=3, bias=True)
    """
    path = Path(spec)
    if path.suffix == ".pt2":
        if weights is not None:
            raise ModelError(f"{spec} holds its weights already; expected no separate weights, leave out {weights}")
        model = load_program(path)
    elif is_factory(spec) and not spec.startswith("hf:"):
        built = build(spec, ModelError)
        if not isinstance(built, nn.Module):
            raise ModelError(f"{spec!r} gave a {type(built).__name__}; expected a torch.nn.Module")
        model = built
        if weights is not None:
            load_into(model, read_weights(weights), str(weights))
    else:
        kind = "a Hugging Face model" if spec.startswith("hf:") else _NOT_YET.get(path.suffix)
        if is_model_file(spec):
            kind = f"{format_for(spec).file}, whose weights can be measured but not compressed here"
        raise ModelError(
            f"found {spec!r}" + (f", {kind}" if kind else "") + "; expected `package.module:factory` or "
            "`path/to/file.py:factory` (with the weights in a file of their own), or a .pt2 file from torch.export"
        )
    check_finite_weights(model)
    return model.eval()


def check_model(
    model: nn.Module, example_batch: Inputs, classes: int, task: Task = CLASSIFICATION, targets: Tensor | None = None
) -> int:
    """Run ``model`` once on a real batch and return its number of outputs.

    Args:
        model: its mode is put back afterwards; it is adapted to the task, see :func:`nutlet.tasks.forward.adapt`.
        example_batch: inputs ``(B, ...)`` as the data give them, B at least 1.
        classes: one more than the largest label in the data.
        task: what its outputs mean.
        targets: of these inputs; needed where the task is no classification.

    Returns:
        The number of outputs: classes, or values for an example.

    Raises:
        ModelError: the model cannot take such a batch, or does not give finite floats of the shape of the task,
            ``(B, classes)`` in classification.
        DataError: the data have labels that the model has no output for.

    >>> check_model(nn.Linear(4, 3), torch.zeros(2, 4), classes=3)
    3
    """
    seen: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            if args and isinstance(args[0], Tensor):
                seen.append((name, module, tuple(args[0].shape)))

        return hook

    handles = [m.register_forward_pre_hook(note(name)) for name, m in model.named_modules() if isinstance(m, Layer)]
    try:
        adapt(model, example_batch, task.output)
        with evaluating(model), torch.no_grad():
            output = model(example_batch)
            if not isinstance(output, Tensor):
                output = picked(output, task.output)
                adapt(model, example_batch, task.output, several=True)
    except NutletError:
        raise
    except Exception as error:  # the forward is the user's code
        raise ModelError(_explain(error, example_batch, seen)) from error
    finally:
        for handle in handles:
            handle.remove()
    if task.name == "classification" or targets is None:
        return _check_output(output, example_batch, classes)
    if not isinstance(output, Tensor):
        raise ModelError(f"the model returned a {type(output).__name__}; expected one float tensor for {task.name}")
    task.check(output, targets)
    _check_finite(output)
    return math.prod(output.shape[1:])


def _check_output(output: object, batch: Inputs, classes: int) -> int:
    rows = len(batch)
    wanted = f"expected one float tensor of shape ({rows}, classes), the logits of a classifier"
    if not isinstance(output, Tensor):
        raise ModelError(f"the model returned a {type(output).__name__}; {wanted}: return the logits alone")
    if output.is_floating_point() and output.shape in ((rows,), (rows, 1)):
        raise ModelError(one_output(bool(((output >= 0) & (output <= 1)).all())))
    if output.ndim != 2 or len(output) != rows or not output.is_floating_point():
        raise ModelError(
            f"the model returned shape {tuple(output.shape)} and dtype {output.dtype} for {rows} inputs; {wanted}"
        )
    if output.shape[1] < classes:
        raise DataError(
            f"the data have labels up to {classes - 1}, the model has {output.shape[1]} outputs (classes 0 to "
            f"{output.shape[1] - 1}); expected an output for every label: check the labels, or build the model with "
            f"{classes} classes"
        )
    _check_finite(output)
    return int(output.shape[1])


def _check_finite(output: Tensor) -> None:
    if not bool(torch.isfinite(output).all()):
        raise ModelError(
            "the model returned NaN or infinity on real inputs; expected finite logits: check the normalisation "
            "(mean, std) and the weights"
        )


def one_output(probability: bool = False) -> str:
    """Return what to say of a model with one output, with Python that gives it two."""
    low, what = ("1 - z", "a probability") if probability else ("torch.zeros_like(z)", "a logit")
    return (
        f"the model gives one number for each example, {what} of the second of two classes by its values; expected two "
        f"outputs: wrap the model\n{TWO_OUTPUTS.format(low=low)}"
    )


def _explain(error: Exception, batch: Inputs, seen: list[tuple[str, nn.Module, tuple[int, ...]]]) -> str:
    """Say in words why a batch did not pass; the layer that ran last is the one that failed."""
    data = ", ".join("x".join(map(str, shape)) for shape in input_shapes(batch).values())
    if seen:
        name, layer, shape = seen[-1]
        place = f"the model's first layer ({name})" if len(seen) == 1 else f"the layer {name}"
        if isinstance(layer, nn.Linear):
            if shape[-1] != layer.in_features:
                return (
                    f"the data give {data}, and {place} gets {shape[-1]} features but expects {layer.in_features}; "
                    "expected inputs of the size the model was built for: resize them, or build the model for this size"
                )
        elif isinstance(layer, Layer):
            axes = layer.weight.ndim
            if len(shape) != axes:
                return (
                    f"the data give {data}, and {place} gets {len(shape)} axes, batch included, but expects {axes}; "
                    "expected images as channels x height x width"
                )
            if shape[1] != layer.in_channels:
                return (
                    f"the data give {data}, {place} expects {layer.in_channels} channels and gets {shape[1]}; expected "
                    "equal numbers: convert the images (grey or RGB), or build the model for "
                    f"{shape[1]} channels"
                )
    return (
        f"the model raised {type(error).__name__} on a batch of shape {shapes_of(batch)}: {error}; expected a "
        "forward that takes one float batch and returns logits"
    )
