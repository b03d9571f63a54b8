"""The walk that follows channels: each call of a forward is made once on the tensors and once on their numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from nutlet.graph.coupling.numbers import NOTHING, Ledger, aligned, compact, first_along, varying
from nutlet.graph.nested import tensors
from nutlet.graph.trace import located, plain_name
from nutlet.tasks.inputs import Inputs
from nutlet.tasks.predict import evaluating

__all__ = ["RETURNED", "Call", "Follower", "Pick", "Rule"]

LARGEST = 1 << 21
"""Elements of a parameter that is followed element by element."""

RETURNED = "the model returns them"
"""Why the outputs stay."""

Pick = Callable[[Tensor | None, int], Tensor | None]
"""``(tensor, dim)`` to the same tensor with the channels along ``dim`` that are there."""


@dataclass
class Call:
    """One call of a forward pass.

    Args:
        func: what is called.
        op: its plain name, see :func:`nutlet.graph.trace.plain_name`.
        path: the module whose forward makes the call.
        args: positional arguments; a rule may put others in their place before it makes the call.
        kwargs: named arguments, likewise.
        number: how many calls came before.
    """

    func: Callable[..., Any]
    op: str
    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    number: int

    def get(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument wherever it was given."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def put(self, place: int, name: str, value: Any) -> None:
        """Put ``value`` in the place of an argument that was given."""
        if place < len(self.args):
            self.args = (*self.args[:place], value, *self.args[place + 1 :])
        elif name in self.kwargs:
            self.kwargs = {**self.kwargs, name: value}

    def run(self) -> Any:
        """Make the call."""
        return self.func(*self.args, **self.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, in order."""
        return list(tensors((self.args, self.kwargs)))

    def __str__(self) -> str:
        return f"{self.op} in {self.path or 'the model'}"


Rule = Callable[["Follower", Call], Any]


class Follower:
    """Follows channels through one forward pass of a model with one input.

    Args:
        model: without constraints; its forward is run in evaluation mode.
        rules: what is done at a call, by the plain name of the operation.
        unknown: what is done at all others.
        heads: modules of attention whose heads go as a whole; those of others lose the same channels each.

    Attributes:
        axes: for each weight of a layer, by name: the numbers along its dimensions, as far as channels lie there.
        elements: for each other parameter or buffer that was reached: the numbers of its elements.
        made: names of the weights that issue numbers, with the dimension along which they do.
        scored: numbers of what a softmax was taken of.
        attention: for each module that multiplies such scores with values, the numbers of its heads.
        products: modules that multiply matrices, with why the channels within a head cannot go there, if so.
        parts: for each call that splits by given sizes, the numbers of its results.
        places: for each tensor that says at which channel a value lies (``argmax``), the numbers of the channels.
        decided: what a rule decided at a call by the shapes that it found.
        reshaped: for each call that changes a shape, the numbers of its result.
        shapes: for each call, in order, the shapes of its tensors.
    """

    def __init__(
        self, model: nn.Module, rules: Mapping[str, Rule], unknown: Rule, *, heads: Collection[str] = ()
    ) -> None:
        self.model = model
        self.rules = rules
        self.unknown = unknown
        self.heads = tuple(heads)
        self.ledger = Ledger()
        self.axes: dict[str, dict[int, Tensor]] = {}
        self.elements: dict[str, Tensor] = {}
        self.made: dict[str, int] = {}
        self.scored: set[int] = set()
        self.attention: dict[str, list[int]] = {}
        self.products: dict[str, str] = {}
        self.reshaped: dict[int, Tensor] = {}
        self.parts: dict[int, list[Tensor]] = {}
        self.decided: dict[int, Any] = {}
        self.shapes: list[list[tuple[int, ...]]] = []
        self.beside = WeakTensorKeyDictionary()
        self.places = WeakTensorKeyDictionary()
        self.names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        self.where: list[str] = []

    def walk(self, x: Inputs) -> Any:
        """Run the model and return what it answers; the channels of that are fixed."""
        with located(self.model) as self.where, evaluating(self.model), torch.no_grad(), _Mode(self):
            output = self.model(x.clone())  # a forward may write to its input
        for tensor in tensors(output):
            self.ledger.fix(self.of(tensor), RETURNED)
            if tensor in self.places:
                self.ledger.fix(self.places[tensor], RETURNED)
        return output

    def of(self, tensor: Tensor) -> Tensor:
        """Return the compact numbers of a tensor, of as many dimensions."""
        if tensor in self.beside:
            return self.beside[tensor]  # type: ignore[no-any-return]
        name = self.names.get(id(tensor))
        if name is not None and tensor.is_floating_point() and 0 < tensor.numel() <= LARGEST:
            return self.of_elements(name, tensor)
        return NOTHING.reshape((1,) * tensor.ndim)

    def of_elements(self, name: str, tensor: Tensor) -> Tensor:
        """Return the numbers of the elements of a parameter that is used as no layer's weight."""
        if name in self.axes:
            for numbers in self.axes[name].values():
                self.ledger.fix(numbers, f"{name} is used in other ways as well")
            return NOTHING.reshape((1,) * tensor.ndim)
        if name not in self.elements:
            self.elements[name] = self.ledger.issue(tensor.numel(), elements=True).reshape(tensor.shape)
        return self.elements[name]

    def put(self, result: Any, numbers: Tensor) -> Any:
        """Put numbers that broadcast to it beside each tensor of a result, and return the result."""
        for tensor in tensors(result):
            self.beside[tensor] = aligned(compact(numbers), tensor.ndim)
        return result

    def along(self, tensor: Tensor, dim: int) -> Tensor:
        """Return the numbers along a dimension, ``(channels,)``; channels that share a place there are joined."""
        numbers, dim = self.of(tensor), dim % tensor.ndim
        rest = varying(numbers) - {dim}
        if numbers.shape[dim] > 1:
            numbers = self.join_along(numbers, rest)
        elif rest:
            return NOTHING.expand(tensor.shape[dim])  # they lie along other dimensions, and pass through
        return numbers.flatten().expand(tensor.shape[dim])

    def passes_through(self, tensor: Tensor, dim: int) -> bool:
        """Whether channels lie along other dimensions than ``dim`` alone."""
        numbers = self.of(tensor)
        return numbers.shape[dim] == 1 and bool(varying(numbers))

    def join_along(self, numbers: Tensor, dims: set[int]) -> Tensor:
        """Join compact numbers along dimensions, and return the first of each, with size 1 there."""
        first = first_along(numbers, dims)
        if dims:
            self.ledger.join(numbers, first)
        return first

    def axis(self, call: Call, weight: Tensor, dim: int, numbers: Tensor | None = None) -> Tensor:
        """Return the numbers along a dimension of a layer's weight: those given, or those it issues.

        Args:
            call: that takes the weight.
            weight: of the layer.
            dim: of the weight.
            numbers: of the channels that the weight meets there; None where it makes them.
        """
        name = self.names.get(id(weight))
        if name is None or name in self.elements:
            if numbers is not None:
                self.ledger.fix(numbers, f"the weight that reads them in {call} is computed")
            if name is not None:
                self.ledger.fix(self.elements[name], f"{name} is used in other ways as well")
            return NOTHING.expand(weight.shape[dim])
        known = self.axes.setdefault(name, {})
        if dim not in known:
            known[dim] = self.ledger.issue(weight.shape[dim]) if numbers is None else numbers
        elif numbers is not None:
            self.ledger.join(known[dim], numbers)
        if numbers is None:
            self.made[name] = dim
        return known[dim]

    def whole_heads(self, call: Call) -> bool:
        """Whether heads of the attention that makes a call go as a whole."""
        return any(call.path == path or call.path.startswith(f"{path}.") for path in self.heads)

    def shaped(self, call: Call, numbers: Tensor) -> None:
        """Take note of what a call gives that changes the shape."""
        self.reshaped[call.number] = numbers

    def as_before(self, call: Call, decided: Any) -> Any:
        """Return what a rule decides by shapes at a call; in a thinner model, what it decided in the whole one."""
        self.decided[call.number] = decided
        return decided

    def silent(self, tensor: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Return what a layer is to read of ``tensor``, the numbers of which are those given or its own."""
        return tensor

    def across(self, x: Tensor, dim: int, run: Callable[[Pick], Any], *, keeps: bool = True) -> Any:
        """Return what a call gives that takes all channels along a dimension together, norms and means say.

        Args:
            x: what the call works on.
            dim: along which its channels lie.
            run: makes the call with the channels that ``Pick`` picks of its tensors.
            keeps: whether the result has these channels too.
        """
        return run(lambda tensor, dim: tensor)

    def make(self, call: Call) -> Any:
        """Make a call by its rule; places along channels mean others once some have gone, so nothing may read them."""
        for tensor in call.tensors:
            if tensor in self.places:
                self.ledger.fix(self.places[tensor], f"{call} reads at which of them a value lies")
        self.shapes.append([tuple(tensor.shape) for tensor in call.tensors])
        if call.op == "get" and not isinstance(result := call.run(), Tensor):
            return result  # x.shape and the like
        return self.rules.get(call.op, self.unknown)(self, call)


class _Mode(TorchFunctionMode):
    def __init__(self, follower: Follower) -> None:
        super().__init__()
        self.follower = follower
        self.count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, follower = kwargs or {}, self.follower
        path = follower.where[-1] if follower.where else ""
        if "parametrizations." in path or not any(True for _ in tensors((args, kwargs))):
            return func(*args, **kwargs)  # what a weight takes to be made; a tensor made of nothing
        self.count += 1
        return follower.make(Call(func, plain_name(func), path, tuple(args), kwargs, self.count - 1))
