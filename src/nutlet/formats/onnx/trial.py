"""A trial of the export in seconds: what would fail after all training, said before it."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nutlet.errors import first_line
from nutlet.formats.onnx.flat import flat
from nutlet.tasks.inputs import Inputs

__all__ = ["explain", "export_problem", "silence"]

_INSTEAD = {
    "adaptive_max_pool1d": "max_pool1d with a fixed kernel and stride, where the sizes divide",
    "adaptive_max_pool2d": "max_pool2d with a fixed kernel and stride, where the sizes divide",
    "adaptive_max_pool3d": "max_pool3d with a fixed kernel and stride, where the sizes divide",
    "rrelu": "leaky_relu with the slope (lower + upper) / 2, which is what rrelu is in evaluation mode",
    "fractional_max_pool2d": "max_pool2d with a fixed kernel",
}
"""What to write in the place of operators that have no ONNX form."""
_CHECK = torch.ops.aten._assert_tensor_metadata.default
"""What a cast leaves in a traced graph (``mask.bool()``): it computes nothing, and the exporter drops it."""
_DEPENDS_ON_DATA = re.compile(r"data-dependent|guard on|Unsupported dynamic|control flow", re.IGNORECASE)
_FIXED_BATCH = re.compile(r"Constraints violated|specialized|batch", re.IGNORECASE)


def export_problem(model: nn.Module, example: Inputs) -> str:
    """Return what would keep ``model`` from being exported, or an empty text where nothing was found.

    The forward is traced as the export does it, and each operator looked up among those that have an ONNX form. Nothing
    is translated or written: seconds, where an export takes tens of them.

    Args:
        model: in evaluation mode; it is not changed.
        example: two inputs.
    """
    try:
        with silence():
            program = _traced(model, example)
    except Exception as error:  # the forward is the user's code, and every library below may fail
        return explain(error)
    missing = [name for name in _operators(program) if name]
    return _without_form(missing[0]) if missing else ""


def explain(error: BaseException) -> str:
    """Return in words why the exporter failed, and what to write instead."""
    while error.__cause__ is not None:  # the exporter wraps the reason several times
        error = error.__cause__
    said = first_line(error)
    missing = re.search(r"aten[.:]+(\w+)", str(error)) if "No ONNX function" in str(error) else None
    if missing:
        return _without_form(missing[1])
    if _DEPENDS_ON_DATA.search(str(error)):
        return (
            f"{said}\nExpected the same operations for every input: the forward branches on values that it computes. "
            "Compute both branches and choose with torch.where"
        )
    if _FIXED_BATCH.search(str(error)):
        return (
            f"{said}\nExpected a forward that torch.export can trace with a dynamic batch (no shapes read into Python "
            "numbers). Try torch.export.export(model, (x,)) for the full explanation"
        )
    return f"{said}\nExpected a forward that torch.export and torch.onnx can translate: replace the call that it names"


def _without_form(operator: str) -> str:
    instead = _INSTEAD.get(_plain(operator))
    mend = f"use {instead}" if instead else "write it with others, or leave it out of the forward"
    return f"aten.{operator} has no ONNX form; expected operators that have one: {mend}"


def _plain(operator: str) -> str:
    return operator.strip("_").removesuffix("_functional").removesuffix("_with_noise")


def _traced(model: nn.Module, example: Inputs) -> torch.export.ExportedProgram:
    module, tensors, shapes = flat(model, example)
    try:
        return torch.export.export(module, tensors, dynamic_shapes=shapes, strict=False)
    except Exception:  # as torch.onnx.export does it: first by running, then by reading the code
        return torch.export.export(module, tensors, dynamic_shapes=shapes, strict=True)


def _operators(program: torch.export.ExportedProgram) -> list[str]:
    """Return the names of the operators that have neither an ONNX form nor a decomposition into others."""
    known, decomposed = _translated()
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    atens = [target for target in called if isinstance(target, torch._ops.OpOverload)]
    return [
        str(target._schema.name).partition("::")[2]
        for target in atens
        if target.namespace == "aten"
        and target is not _CHECK
        and not known(target)
        and not _is_made_of_others(target, decomposed)
    ]


def _is_made_of_others(target: torch._ops.OpOverload, decomposed: frozenset[Any]) -> bool:
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target._name, "CompositeImplicitAutograd")
    return (composite or target in decomposed) and _plain(target._schema.name.partition("::")[2]) not in _INSTEAD


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the exporter's chatter off both streams: what a user has to know, the error says."""
    noise, disabled = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@functools.cache
def _translated() -> tuple[Any, frozenset[Any]]:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with silence():
        registry = ONNXRegistry.from_torchlib()
    tables = (torch.export.default_decompositions(), torch._decomp.decomposition_table)
    return registry.is_registered, frozenset(target for table in tables for target in iter(table))
