"""How a model has to be run while it is trained, found out by a trial on two examples.

A forward is free Python that may do otherwise in training mode: return auxiliary heads beside the logits, skip blocks
at random, call a head whose width an earlier step left behind, or take a path without activation quantizers. Where
training mode fails, only the layers of torch itself are put in training mode: batch norms and dropout train as ever,
while the modules around them run as in evaluation, along the path that is exported.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nutlet.errors import ModelError, NutletError, first_line
from nutlet.graph.comparison import run
from nutlet.tasks.inputs import Inputs, shapes_of
from nutlet.tasks.predict import evaluating, let_go

__all__ = ["TrainingPath", "runs_channels_last", "takes_channels_last", "training_path"]

_TORCH = ("torch.nn.", "nutlet.")
"""Where layers come from whose training mode changes values and not the path."""


@dataclass(frozen=True)
class TrainingPath:
    """One way to run a model that works.

    Args:
        everything: whether all modules are in training mode, or the layers of torch alone.
        channels_last: whether weights and inputs lie with their channels last, which is faster on images.
        output: which of the tensors that forward returns is trained on, counted in order.
        notes: what differs from an ordinary training, for the history.
    """

    everything: bool = True
    channels_last: bool = False
    output: int = 0
    notes: tuple[str, ...] = ()

    def enter(self, model: nn.Module) -> None:
        """Put ``model`` in this form of training mode."""
        model.train()
        if not self.everything:
            for module in model.modules():
                module.training = _is_layer(module)

    def outputs(self, result: Any) -> Tensor:
        """Return what is trained on, out of what forward returned."""
        if isinstance(result, Tensor):
            return result
        found: Tensor = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)][self.output]
        return found


def takes_channels_last(model: nn.Module, x: Inputs) -> bool:
    """Tell whether weights and inputs can lie with their channels last: images into convolutions of two dimensions.

    >>> takes_channels_last(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 4, 4)), takes_channels_last(
    ...     nn.Conv3d(1, 2, 3), torch.zeros(1, 1, 4, 4)
    ... )
    (True, False)
    """
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    others = any(tensor.ndim == 5 for tensor in itertools.chain(model.parameters(), model.buffers()))
    return x.ndim == 4 and not others and bool(convolutions) and all(weight.ndim == 4 for weight in convolutions)


def runs_channels_last(model: nn.Module, x: Inputs) -> bool:
    """Tell whether ``model`` runs in evaluation mode with its channels last: a forward that takes views may not."""
    if not takes_channels_last(model, x):
        return False
    with _left_as_it_is(model), evaluating(model), torch.no_grad():
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        try:
            model(x.contiguous(memory_format=torch.channels_last))
        except RuntimeError:  # torch has no other class for views that do not fit
            return False
    return True


def training_path(model: nn.Module, x: Inputs) -> TrainingPath:
    """Return the first way to run ``model`` in training that works: all of it, or only the layers of torch.

    Args:
        model: its mode, buffers and memory format are put back afterwards.
        x: inputs ``(B, ...)``, at least two where there are batch norms.

    Raises:
        ModelError: none does, though evaluation mode may.
    """
    layouts = (True, False) if takes_channels_last(model, x) else (False,)
    problems: list[Exception] = []
    with _left_as_it_is(model), torch.random.fork_rng(devices=[]):
        wanted = run(model, x)
        for everything, channels_last in itertools.product((True, False), layouts):
            path = TrainingPath(everything, channels_last)
            try:
                return _tried(path, model, x, wanted, problems)
            except Exception as error:  # the forward is the user's code
                problems.append(error)
    problem = problems[len(layouts) - 1]  # of full training mode in the ordinary layout
    if isinstance(problem, NutletError):
        raise problem
    raise ModelError(
        f"in training mode the model raised {type(problem).__name__} on a batch of shape {shapes_of(x)}: "
        f"{first_line(problem)}; expected a forward that runs in training mode as in evaluation: mend it, or leave out "
        "the steps that train"
    ) from problem


def _tried(path: TrainingPath, model: nn.Module, x: Inputs, wanted: Tensor, problems: list[Exception]) -> TrainingPath:
    """Run ``model`` along ``path`` and return it, completed by which output to train on and what there is to say."""
    model.to(memory_format=_layout(path))  # type: ignore[call-overload]
    x = x.contiguous(memory_format=torch.channels_last) if path.channels_last else x
    path.enter(model)
    try:
        with torch.enable_grad():
            result = model(x.clone())
    finally:
        let_go(model)
    output = 0 if isinstance(result, Tensor) else _nearest(result, path, model, x, wanted)
    notes = []
    if not path.everything:
        reason = first_line(problems[len(problems) // 2]).partition(";")[0]
        notes.append(
            f"trained along the path of evaluation, because in training mode {reason}. What only training does "
            "(stochastic depth, noise, auxiliary heads) is left out"
        )
    if not isinstance(result, Tensor):
        kind = type(result).__name__
        notes.append(f"in training mode forward returns a {kind}: trained on its tensor {output + 1} alone")
    found = TrainingPath(path.everything, path.channels_last, output, tuple(notes))
    if found.outputs(result).shape != wanted.shape:
        raise ModelError(
            f"in training mode the model returned shape {tuple(found.outputs(result).shape)}, in evaluation mode "
            f"{tuple(wanted.shape)}; expected equal shapes: return the logits as the first output"
        )
    return found


def _nearest(result: Any, path: TrainingPath, model: nn.Module, x: Inputs, wanted: Tensor) -> int:
    """Return which output of a training-mode forward is the one of evaluation.

    Of several with its shape it is the one that comes nearest to it with the layers of torch in evaluation mode: then
    norms and dropout make no difference.
    """
    fitting = [k for k, t in enumerate(_tensors(result)) if t.shape == wanted.shape and t.is_floating_point()]
    if not fitting:
        shapes = ", ".join(str(tuple(t.shape)) for t in _tensors(result)) or "none"
        raise ModelError(
            f"in training mode the model returned a {type(result).__name__} with tensors of shapes {shapes}; expected "
            f"one of shape {tuple(wanted.shape)}, as in evaluation mode: return the logits beside what else is needed"
        )
    if len(fitting) == 1:
        return fitting[0]
    for module in model.modules():
        module.training = path.everything and not _is_layer(module)
    with torch.no_grad():
        calm = _tensors(model(x.clone()))
    return min(fitting, key=lambda k: float((calm[k] - wanted).abs().mean()))


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _is_layer(module: nn.Module) -> bool:
    return type(module).__module__.startswith(_TORCH) or isinstance(module, nn.modules.batchnorm._NormBase)


def _layout(path: TrainingPath) -> torch.memory_format:
    return torch.channels_last if path.channels_last else torch.contiguous_format


@contextmanager
def _left_as_it_is(model: nn.Module) -> Iterator[None]:
    """Put buffers, modes and the memory format back after the block: a forward in training mode moves statistics."""
    kept = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])
        for module, training in modes:
            module.training = training
