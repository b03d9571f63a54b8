"""The walk: every call of a forward pass that returns a float tensor, named and connected.

A user's ``forward`` is free Python (``F.relu``, ``x + y``, ``x.mean((2, 3))``), so neither hooks on modules nor a
traced graph see all of it. One :class:`torch.overrides.TorchFunctionMode` does. It names each call
``module.path/op/k``: the k-th float result of that operation in that module during one forward. The same mode,
entered around ``forward``, lets an edit change the result at chosen sites (:class:`InstrumentedModel`): so the
quantizers of activations act in training, in evaluation and while exporting alike, and the user's module stays what it
is.

Names, not counters over the whole model, because structure changes between steps.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nutlet.errors import ModelError
from nutlet.graph.counting import FlopCount
from nutlet.graph.nested import plain_arguments, rebuild, tensors
from nutlet.graph.record import Record, Site, floating
from nutlet.tasks.inputs import Inputs, NamedInputs, as_tensors, blank
from nutlet.tasks.predict import evaluating

__all__ = ["InstrumentedModel", "Record", "Site", "body_of", "located", "plain_name", "trace"]

_WEIGHT = "parametrizations."
"""Part of the path of modules that compute a weight, not a step of the data flow."""
_REFLECTED = {"radd": "add", "iadd": "add", "isub": "sub", "rsub": "sub", "imul": "mul", "rmul": "mul"}
_REFLECTED |= {"itruediv": "div", "rtruediv": "div", "truediv": "div", "rmatmul": "matmul"}


class _State(threading.local):
    """Where the running forward is: per thread, and empty again in every copy."""

    def __init__(self) -> None:
        self.active = False
        self.stack: list[str] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> _State:
        return _State()

    def __reduce__(self) -> tuple[type[_State], tuple[()]]:
        return _State, ()


@dataclass(eq=False)
class _Enter:
    """Forward pre-hook that notes which module is running; an object, so that models can be copied and pickled."""

    state: _State
    path: str

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not self.state.active:
            if _WEIGHT in self.path:
                return  # somebody reads a weight
            raise ModelError(
                f"module {self.path!r} of a model with quantized activations ran outside of that model; expected "
                "calls to the whole model. Activation checkpointing does this when it recomputes: switch it off"
            )
        self.state.stack.append(self.path)


@dataclass(eq=False)
class _Leave:
    state: _State

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.state.active and self.state.stack:
            self.state.stack.pop()


def _hook(model: nn.Module, state: _State) -> list[Any]:
    """Make every module below ``model`` announce itself to ``state``; return the handles."""
    handles: list[Any] = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(_Enter(state, path), prepend=True))
        handles.append(module.register_forward_hook(_Leave(state), always_call=True))
    return handles


class _Mode(TorchFunctionMode):
    """Names the result of every call and hands it to ``visit``, which may return another tensor in its place."""

    def __init__(self, state: _State, visit: _Visitor) -> None:
        super().__init__()
        self.state = state
        self.visit = visit
        self.counts: dict[tuple[str, str], int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        path = self.state.stack[-1] if self.state.stack else ""
        # What a parametrization computes is part of a weight, not of the data flow.
        if _WEIGHT in path:
            return func(*args, **kwargs)
        op = plain_name(func)
        first = self.counts.get((path, op), 0)
        args, kwargs = self.visit.before(f"{path}/{op}/{first}", args, kwargs)
        result = func(*args, **kwargs)
        operands = list(tensors((args, kwargs)))
        self.visit.called(op, args, kwargs, result)

        def name_it(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            k = self.counts.get((path, op), 0)
            self.counts[path, op] = k + 1
            return self.visit.result(f"{path}/{op}/{k}", path, op, operands, tensor)

        return rebuild(result, name_it)


class _Visitor:
    """What is done with the results the mode sees."""

    def before(self, name: str, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the arguments with which the call whose first result is ``name`` is made."""
        return args, kwargs

    def called(self, op: str, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Take note of a call, before :meth:`result` gets each float tensor that it returned."""

    def result(self, name: str, path: str, op: str, operands: list[Tensor], tensor: Tensor) -> Tensor:
        """Take note of ``tensor``, and return it or another in its place."""
        raise NotImplementedError


@dataclass(eq=False)
class _Recorder(_Visitor):
    named: dict[int, str] = field(default_factory=dict)
    """Names of the parameters and buffers by identity."""
    sites: dict[str, Site] = field(default_factory=dict)
    # Producer by identity; the tensors are kept alive, or an identity could be used again within the walk.
    producer: dict[int, str] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)
    # For each integer or boolean tensor the sites that it was made from.
    origins: dict[int, set[str]] = field(default_factory=dict)
    exact: set[str] = field(default_factory=set)
    arguments: dict[int | str, Any] = field(default_factory=dict)
    count: FlopCount = field(default_factory=FlopCount)
    flops: int = 0

    def before(self, name: str, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self.count.take()  # what a weight took that was computed since
        return args, kwargs

    def called(self, op: str, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        self.arguments, self.flops = plain_arguments(args, kwargs), self.count.take()
        operands = list(tensors((args, kwargs)))
        self.read(operands)
        sources = {self.producer[id(t)] for t in operands if id(t) in self.producer}
        if op in _JUMPS or (op in _LEAVES and not isinstance(result, Tensor)):
            self.exact |= sources
        for tensor in tensors(result):
            if not tensor.is_floating_point() and sources:
                self.origins[id(tensor)] = sources
                self.alive.append(tensor)

    def read(self, values: Iterable[Tensor]) -> None:
        """Take note that something uses ``values``; an integer that nobody uses (of a maximum, say) binds nothing."""
        for tensor in values:
            self.exact |= self.origins.get(id(tensor), set())

    def result(self, name: str, path: str, op: str, operands: list[Tensor], tensor: Tensor) -> Tensor:
        self.note(name, path, op, operands, tensor)
        return tensor

    def note(self, name: str, path: str, op: str, operands: list[Tensor], tensor: Tensor) -> None:
        self.sites[name] = Site(
            name=name,
            module=path,
            op=op,
            inputs=tuple(self.producer[id(t)] for t in operands if id(t) in self.producer),
            operands=tuple(tuple(t.shape) for t in operands),
            shape=tuple(tensor.shape),
            inplace=bool(operands) and tensor is operands[0] and op not in _RETURNS_ITSELF,
            arguments=self.arguments,
            parameters=tuple(self.named.get(id(t)) for t in operands),
            flops=self.flops,
        )
        self.flops = 0
        self.producer[id(tensor)] = name
        self.alive.append(tensor)


_LEAVES = frozenset({"item", "tolist", "numpy", "bool", "int", "float", "index", "equal", "allclose", "is_nonzero"})
"""Calls that hand values to Python, unless they return a tensor (``x.float()``)."""
_JUMPS = frozenset(
    {"round", "floor", "ceil", "trunc", "fix", "frac", "sign", "heaviside", "fmod", "remainder", "floor_divide"}
)
"""Calls whose results jump where their argument moves a little."""


# Calls that may hand back their argument unchanged without having written to it.
_RETURNS_ITSELF = frozenset({"contiguous", "to", "float", "dropout", "type_as", "expand_as", "requires_grad"})


@dataclass(eq=False)
class _Editor(_Visitor):
    record: Record
    edits: Mapping[str, nn.Module]
    expected: Iterator[str]
    gradients: bool = field(default_factory=torch.is_grad_enabled)

    def before(self, name: str, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        site = self.record.sites.get(name)
        if site is None or not site.inplace or name not in self.edits:
            return args, kwargs
        # The call runs on a copy: autograd may keep its result, which the edit must not overwrite.
        if args:
            self.target: Tensor = args[0]
            return (self.target.clone(), *args[1:]), kwargs
        key, self.target = next((key, value) for key, value in kwargs.items() if isinstance(value, Tensor))
        return args, {**kwargs, key: self.target.clone()}

    def result(self, name: str, path: str, op: str, operands: list[Tensor], tensor: Tensor) -> Tensor:
        self.check(name)
        if name not in self.edits:
            return tensor
        if self.gradients and _is_checkpointed():
            raise ModelError(
                f"the activations at {name!r} lie under activation checkpointing, which would compute them a second "
                "time without their quantizer and give wrong gradients; expected none: switch checkpointing off"
            )
        edited: Tensor = self.edits[name](tensor)
        if self.record.sites[name].inplace:
            # Written back, because the caller may ignore what an in-place call returns.
            self.target.copy_(edited)
            return self.target
        return edited

    def check(self, name: str | None) -> None:
        expected = next(self.expected, None)
        if name != expected:
            raise ModelError(
                f"this forward pass reached {name or 'its end'!r} where the recorded one reached "
                f"{expected or 'its end'!r}; expected the same path for every input. Control flow that depends on "
                "data or on train/eval mode cannot carry activation quantizers: make it unconditional"
            )


def _is_checkpointed() -> bool:
    """Whether the running call, made with gradients asked for, will be made again in the backward pass."""
    if torch.compiler.is_compiling():
        return False
    if not torch.is_grad_enabled():
        return True  # the reentrant kind runs forward without gradients
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"


class InstrumentedModel(nn.Module):
    """A model whose results at chosen sites pass through other modules.

    Args:
        model: the user's module, unchanged but for hooks that tell which submodule is running.
        record: the walk of ``model``; every later forward must take the same path.
        edits: site name to the module that replaces its tensor, shape kept.

    Raises:
        ModelError: in forward, when a run takes another path than the record, and when a submodule is run from
            outside (activation checkpointing does so, and would give silently wrong gradients).

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> record = trace(model, torch.zeros(1, 2))
    >>> zeroed = InstrumentedModel(model, record, {"1/relu/0": nn.Threshold(1e9, 0.0)})
    >>> float(zeroed(torch.ones(1, 2)).detach().abs().sum())
    0.0
    """

    def __init__(self, model: nn.Module, record: Record, edits: Mapping[str, nn.Module]) -> None:
        super().__init__()
        unknown = [name for name in edits if name not in record.sites]
        if unknown:
            raise ModelError(
                f"found no site {unknown[0]!r} in the model; expected one of its {len(record.sites)} sites"
            )
        self.model = model
        self.record = record
        # A ModuleDict does not take dots in its keys.
        self.edits = nn.ModuleDict({name.replace(".", ":"): edit for name, edit in edits.items()})
        self.state = _State()
        self.handles = _hook(model, self.state)

    @property
    def by_site(self) -> dict[str, nn.Module]:
        """The edits by site name."""
        return {key.replace(":", "."): edit for key, edit in self.edits.items()}

    def forward(self, x: Inputs | None = None, **named: Tensor) -> Any:
        """Run the model with its edits in force, on one batch, or on inputs by the names of its arguments."""
        x = NamedInputs(named) if x is None else x
        editor = _Editor(self.record, self.by_site, iter(self.record.sites))
        self.state.stack.clear()
        self.state.active = True
        try:
            x = _edited(x, editor)
            with _Mode(self.state, editor):
                output = self.model(x)
            editor.check(None)
        finally:
            self.state.active = False
        return output

    def unwrap(self) -> nn.Module:
        """Remove the hooks and return the model as it was; this wrapper is of no use afterwards."""
        for handle in self.handles:
            handle.remove()
        return self.model


def body_of(model: nn.Module) -> nn.Module:
    """Return the user's module, taken out of an :class:`InstrumentedModel` where it is in one."""
    return model.model if isinstance(model, InstrumentedModel) else model


def trace(model: nn.Module, x: Inputs) -> Record:
    """Run ``model`` once in evaluation mode and record its sites.

    Args:
        model: any module; its mode is put back afterwards. For an :class:`InstrumentedModel` one its record is
            returned.
        x: what its forward takes, batch first.

    >>> record = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.zeros(2, 3))
    >>> list(record.sites), sorted(record.outputs)
    (['/input/0', '0/linear/0', '1/relu/0'], ['1/relu/0'])
    """
    if isinstance(model, InstrumentedModel):
        return model.record
    kept = _kept(model)
    record = _walk_once(model, x)
    # What a forward keeps for its next call (positions, biases by index) makes that call take another path.
    return record if _kept(model) == kept else _walk_once(model, x)


def _walk_once(model: nn.Module, x: Inputs) -> Record:
    named = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    state, recorder = _State(), _Recorder(named)
    handles = _hook(model, state)
    state.active = True
    try:
        with evaluating(model), torch.no_grad():
            x = x.clone()  # a forward may write to its input
            for k, tensor in enumerate(floating(x)):
                recorder.note(f"/input/{k}", "", "input", [], tensor)
            with _Mode(state, recorder), recorder.count:
                output = model(x)
    finally:
        for handle in handles:
            handle.remove()
    leaving = {recorder.producer[id(t)] for t in tensors(output) if id(t) in recorder.producer}
    recorder.read(tensors(output))
    return Record(recorder.sites, frozenset(leaving), len(x), frozenset(recorder.exact), blank=blank(x))


def _edited(x: Inputs, editor: _Editor) -> Inputs:
    edited = {id(t): editor.result(f"/input/{k}", "", "input", [], t) for k, t in enumerate(floating(x))}
    given = {name: edited.get(id(tensor), tensor) for name, tensor in as_tensors(x).items()}
    return NamedInputs(given) if isinstance(x, NamedInputs) else given["x"]


def _kept(model: nn.Module) -> list[tuple[str, str, int]]:
    """Return what the modules hold beside tensors and modules, as far as a forward may have added to it."""
    return [
        (path, key, len(value) if isinstance(value, (dict, list, set)) else int(value is None))
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_")
    ]


@contextlib.contextmanager
def located(model: nn.Module) -> Iterator[list[str]]:
    """Give the paths of the modules that are running, the innermost last, while ``model`` runs within the block."""
    state = _State()
    handles = _hook(model, state)
    state.active = True
    try:
        yield state.stack
    finally:
        for handle in handles:
            handle.remove()


def plain_name(func: Callable[..., Any]) -> str:
    """Return the name of an operation, the same for all ways of writing it: ``add`` for ``x + y`` and ``x.add_(y)``."""
    name = getattr(func, "__name__", type(func).__name__).strip("_")
    return _REFLECTED.get(name, name)
