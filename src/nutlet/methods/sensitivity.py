"""What one change to a model does alone: each is made, measured and taken back, a pass over the data for each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from torch import nn

from nutlet.constraints.stack import constrain, constraints, remove_constraints
from nutlet.progress import Progress
from nutlet.tasks.predict import predict
from nutlet.training.context import Context

__all__ = ["divergence_from", "reconstrained", "sensitivities"]

Key = TypeVar("Key", bound=Hashable)
Effect = TypeVar("Effect")


def sensitivities(
    changes: Mapping[Key, AbstractContextManager[nn.Module]],
    measure: Callable[[nn.Module], Effect],
    progress: Progress,
    title: str,
    failed: Callable[[Key, Exception], None] | None = None,
) -> dict[Key, Effect]:
    """Return what each change does alone, as measured.

    Args:
        changes: by what is changed, a context that gives the model with this change, and takes it back at its end.
        measure: of a changed model.
        progress: shows a bar, and beside it what is changed.
        title: of the bar.
        failed: is told of a change with which the model does not run, which is then left out; without it errors are
            raised. A forward of free Python may fail in any way where a part of its model is another.
    """
    effects: dict[Key, Effect] = {}
    with progress.task(title, total=len(changes)) as task:
        for key, changed in changes.items():
            what = " ".join(map(str, key)) if isinstance(key, tuple) else str(key)
            task.advance(0, note=what)
            try:
                with changed as model:
                    effects[key] = measure(model)
            except Exception as error:
                if failed is None:
                    raise
                failed(key, error)
            task.advance(note=what)
    return effects


def divergence_from(model: nn.Module, context: Context) -> Callable[[nn.Module], float]:
    """Return what measures how far a model's outputs are from those of ``model`` on the calibration examples.

    It is the divergence of the task: of classes the mean KL divergence from the distribution that ``model`` gives, in
    nats, 0 or more.

    Args:
        model: the one before any change; its outputs are computed once, here.
        context: whose calibration examples, task and kind of outputs.
    """
    expected = predict(model, context.data.calibration)
    return lambda changed: context.divergence(predict(changed, context.data.calibration), expected)


@contextmanager
def reconstrained(model: nn.Module, name: str, put: Callable[[nn.Module], object]) -> Iterator[nn.Module]:
    """Give ``model`` with other constraints on the weight of one layer, and put back what there was.

    Args:
        model: changed in place for the block.
        name: of the layer.
        put: changes the constraints of the layer it is given.
    """
    layer = model.get_submodule(name)
    earlier = copy.deepcopy(constraints(layer))
    try:
        put(layer)
        yield model
    finally:
        remove_constraints(layer)
        constrain(layer, earlier)
