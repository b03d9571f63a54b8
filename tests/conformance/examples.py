"""One small configuration of every method, and the checks that results of any chain must pass."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from conformance.cases import CASES
from nutlet.compression.compressed import TENSORS, Compressed
from nutlet.compression.pipeline import compress
from nutlet.constraints import Codebook, Quantizer, WeightQuantizer
from nutlet.constraints.stack import Mask, constrained_layers, constrained_weight, constraints, raw_weight
from nutlet.data.examples import Data
from nutlet.graph.activation_quantizers import grid_of
from nutlet.graph.finalize import finalize
from nutlet.graph.modules import shared_parameters
from nutlet.graph.trace import InstrumentedModel
from nutlet.measurement.parity import parity
from nutlet.methods.base import Method
from nutlet.tasks.predict import predict

EXAMPLES: dict[str, Method] = {case.name: case.method for case in CASES}
"""A small configuration of every method, and of its variants, by name."""
MODELS: dict[str, tuple[str, ...]] = {case.name: case.models for case in CASES}
"""The tiny models that each example runs on."""
REPRESENTATIVES = [case.name for case in CASES if case.kind]
"""One example for each kind of thing that a method does to a model."""
METHODS = list({type(case.method): case.name for case in reversed(CASES)}.values())
"""One example of each method: the others are variants, which `make test` tries less."""


def brief(name: str) -> Any:
    """Return ``name`` as a parameter of a test, slow where it is a variant."""
    return pytest.param(name, marks=[] if name in METHODS else [pytest.mark.slow])


def body_of(model: nn.Module) -> nn.Module:
    """Return the user's module inside an :class:`InstrumentedModel`."""
    return model.model if isinstance(model, InstrumentedModel) else model


def same_state(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(_same_bytes(first[name], second[name]) for name in first)


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


@cache
def alone(name: str, kind: str) -> Compressed:
    """Return what a method makes of a tiny model, once for all tests: none changes it."""
    model, data = tiny.tiny(kind)
    return compress(model, [EXAMPLES[name]], data)


def largest_code_pair(codes: Tensor, axis: int) -> int:
    """Return the largest sum of two neighbouring codes of one sign, in the order in which kernels run over them."""
    inputs = codes.movedim(axis, 0).movedim(1, -1).int()  # (outputs, positions..., inputs)
    width = inputs.shape[-1]
    layouts = [inputs.reshape(len(inputs), -1, width)]
    if width % 2:
        layouts.append(inputs.reshape(len(inputs), 1, -1))
    largest = 0
    for layout in layouts:
        for k in range(0, layout.shape[-1] - 1, 2):
            one, other = layout[..., k], layout[..., k + 1]
            if bool((one.sign() * other.sign() > 0).any()):
                largest = max(largest, int(((one + other).abs() * (one.sign() * other.sign() > 0)).max()))
    return largest


def check_constraints(model: nn.Module) -> None:
    """Assert that every constraint fits its weight and is in force."""
    shared = shared_parameters(model)
    for name, layer in constrained_layers(model):
        weight, stack = constrained_weight(layer), constraints(layer)
        for constraint in stack:
            if isinstance(constraint, Mask):
                assert constraint.mask.shape == weight.shape, name
                assert not bool(weight[~constraint.mask].any()), f"{name}: a masked weight is not zero"
                assert not bool(torch.signbit(weight[~constraint.mask]).any()), f"{name}: a negative zero"
            if isinstance(constraint, Quantizer) and constraint is [c for c in stack if isinstance(c, Quantizer)][-1]:
                codes = constraint.codes(weight)
                values = constraint.values(codes).detach()
                assert torch.equal(values.masked_fill(weight == 0, 0.0), weight), f"{name} left its values"
                assert torch.equal(constraint.codes(values), codes), f"{name} codes its values differently"
            if isinstance(constraint, Codebook):
                most = len(constraint.levels) + (not constraint.keep_zero and isinstance(stack[-1], Mask))
                assert len(weight.unique()) <= most, f"{name}: the codebook grew"
            if isinstance(constraint, WeightQuantizer) and constraint.reduce_range:
                assert largest_code_pair(constraint.codes(weight), constraint.axis) <= 128, (
                    f"{name}: a pair of codes can saturate"
                )
        raw = raw_weight(layer)  # several layers that share it may constrain it in different ways
        assert raw in shared or torch.equal(raw, weight), f"{name}: below the constraints lies another weight"
        orders = [constraint.order for constraint in stack]
        assert orders == sorted(orders), f"{name}: {[type(c).__name__ for c in stack]}"
        assert len(stack) == len({type(c) for c in stack}), f"{name} carries the same constraint twice"


def check_finalized(model: nn.Module, data: Data) -> None:
    """Assert that finalizing changes nothing: weights exactly, outputs to the last digits.

    Where it folds norms, sums round differently, and an activation may move by a code.
    """
    final = finalize(model)
    plain, kept = body_of(model), body_of(final)
    assert not list(constrained_layers(kept))
    wanted, found = predict(model, data.validation), predict(final, data.validation)
    if _norms(kept) < _norms(plain):
        bits = grid_of(model).bits if isinstance(model, InstrumentedModel) else 8
        assert float((found - wanted).abs().max()) <= 0.03 * 255 / (2**bits - 1) * float(wanted.abs().max())
        assert float((found.argmax(1) == wanted.argmax(1)).float().mean()) >= 0.95
        return
    for name, layer in constrained_layers(plain):
        assert torch.equal(constrained_weight(layer), constrained_weight(kept.get_submodule(name))), name
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def _norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._NormBase) for module in model.modules())


def check_exported(result: Compressed, data: Data, folder: Path, *, error: float, agreement: float) -> None:
    """Assert that the shipped file answers as the module does; one with integers, about as well as this."""
    check = parity(result.model, result.export(folder / "model.onnx"), data.train)
    spread = float(predict(result.model, data.train).abs().max())
    if not isinstance(result.model, InstrumentedModel):
        error, agreement = 1e-5, 1.0
    else:
        # A sum that rounds to the other side moves an activation by a whole code: with few bits, a large one.
        error *= 255 / (2 ** grid_of(result.model).bits - 1)
        # Between scales that are powers of two sums lie halfway more often, and kernels do not round all of them alike.
        error *= 2 if grid_of(result.model).power_of_two else 1
    assert check.max_difference <= error * spread + 1e-5
    assert check.agreement >= agreement


def check_saved(result: Compressed, original: nn.Module, data: Data, folder: Any) -> Compressed:
    """Assert that what is saved comes back the same, on an original with other weights."""
    result.save(folder)
    stranger = type(original)().eval()
    loaded = Compressed.load(folder, stranger)
    assert same_state(loaded.model, result.model)
    assert torch.equal(predict(loaded.model, data.validation), predict(result.model, data.validation))
    assert loaded.steps == result.steps
    assert (Path(folder) / TENSORS).stat().st_size == result.steps[-1].size.bytes_packed
    assert loaded.recipe == result.recipe
    return loaded
