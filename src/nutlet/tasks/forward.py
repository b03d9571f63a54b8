"""Models that take inputs by name, or give several outputs, run as models of one batch and one tensor.

Hooks on the copy that is worked on do it, so that names of modules stay as they are, and copies keep it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nutlet.errors import ModelError
from nutlet.tasks.inputs import Inputs, NamedInputs

__all__ = ["adapt", "adapted", "carry_adapter", "is_adapted", "picked"]


@dataclass(frozen=True, eq=False)
class _Unpack:
    """Forward pre-hook: gives forward the inputs by the names of its arguments."""

    whole: bool
    """Whether forward takes them as one dict."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not (len(args) == 1 and isinstance(args[0], NamedInputs)):
            return args, kwargs
        return ((dict(args[0].tensors),), kwargs) if self.whole else ((), dict(args[0].tensors))


@dataclass(frozen=True, eq=False)
class _Pick:
    """Forward hook: returns the output that the task reads.

    Where the task names none, what training mode gives beside it (auxiliary heads) is left to the training loop.
    """

    output: str | int | None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        try:
            return picked(output, self.output)
        except ModelError:
            if module.training and self.output is None:
                return output
            raise


def picked(output: Any, name: str | int | None) -> Any:
    """Return the one tensor of what a forward gave: that called ``name``, that at a position, or the only one.

    Raises:
        ModelError: there is no such output, or several and no name.

    >>> picked({"logits": 1, "hidden": 2}, "logits")
    1
    """
    if isinstance(output, Tensor):
        return output
    named: Mapping[Any, Any]
    if isinstance(output, Mapping):
        named = output
    elif isinstance(output, (tuple, list)):
        fields = getattr(output, "_fields", range(len(output)))
        named = dict(enumerate(output)) | dict(zip(fields, output, strict=True))
        if name is None and len(output) == 1:
            return output[0]
    else:
        named = {key: value for key, value in vars(output).items() if isinstance(value, Tensor)} if output else {}
    if name is None and len(named) == 1:
        return next(iter(named.values()))
    if name is None or name not in named:
        wanted = "one output" if name is None else f"the output {name!r}"
        raise ModelError(
            f"the model gives a {type(output).__name__} with {', '.join(map(repr, named)) or 'no tensors'}; expected "
            f"{wanted}: let the task say which it reads, as in Classification(output={next(iter(named), 'logits')!r})"
        )
    return named[name]


def adapt(model: nn.Module, inputs: Inputs, output: str | int | None, *, several: bool = False) -> None:
    """Let ``model(inputs)`` return the output that a task reads; in place, where it would not by itself.

    Args:
        model: its forward takes one tensor, several by name, or a dict of them.
        inputs: a batch as the data give it.
        output: which output, see :class:`~nutlet.tasks.base.Task`.
        several: whether it gives something else than one tensor.

    Raises:
        ModelError: the names of the inputs are not those of the arguments of forward.
    """
    if is_adapted(model):
        return
    if isinstance(inputs, NamedInputs):
        model.register_forward_pre_hook(_Unpack(_takes_whole(model, inputs)), with_kwargs=True)
    if several or output is not None or isinstance(inputs, NamedInputs):
        model.register_forward_hook(_Pick(output))


def carry_adapter(before: nn.Module, after: nn.Module) -> None:
    """Put what :func:`adapt` put on ``before`` on a model that was made of it."""
    if is_adapted(after):
        return
    for module in before.modules():
        for unpack in module._forward_pre_hooks.values():
            if isinstance(unpack, _Unpack):
                after.register_forward_pre_hook(unpack, with_kwargs=True)
        for pick in module._forward_hooks.values():
            if isinstance(pick, _Pick):
                after.register_forward_hook(pick)


@contextmanager
def adapted(model: nn.Module, inputs: Inputs, output: str | int | None, *, several: bool = True) -> Iterator[None]:
    """Let ``model(inputs)`` return the output of a task within the block, see :func:`adapt`."""
    before = set(model._forward_pre_hooks) | set(model._forward_hooks)
    adapt(model, inputs, output, several=several)
    try:
        yield
    finally:
        for hooks in (model._forward_pre_hooks, model._forward_hooks, model._forward_pre_hooks_with_kwargs):
            for key in set(hooks) - before:
                del hooks[key]


def is_adapted(model: nn.Module) -> bool:
    """Whether :func:`adapt` has changed how ``model``, or what it was taken into, is called."""
    return any(
        isinstance(hook, (_Unpack, _Pick))
        for module in model.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    )


def _takes_whole(model: nn.Module, inputs: NamedInputs) -> bool:
    """Whether forward takes one dict of all inputs, and not each by its name."""
    signature = inspect.signature(model.forward)
    try:
        signature.bind(**inputs.tensors)
    except TypeError as error:
        arguments = list(signature.parameters.values())
        wanted = [a.name for a in arguments if a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
        if len(wanted) == 1 and wanted[0] not in inputs:
            return True
        raise ModelError(
            f"the data give the inputs {', '.join(inputs)}, and forward takes {', '.join(wanted) or 'none'} "
            f"({error}); expected the names of its arguments: rename the inputs of the data"
        ) from error
    return False
