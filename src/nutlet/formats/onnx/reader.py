"""An ONNX file of unknown origin read into a :class:`StolenModule`: nothing in it is executed or evaluated as code."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nutlet.errors import ModelError, NutletError, first_line
from nutlet.formats.onnx.content import read_onnx
from nutlet.formats.onnx.layers import conv_layer, dense_layer
from nutlet.formats.onnx.module import LARGEST_VALUE, Call, StolenModule
from nutlet.formats.onnx.operators import OPERATORS
from nutlet.formats.onnx.packing import load_unpacked

if TYPE_CHECKING:
    import onnx

__all__ = ["load_onnx"]

_OLDEST_OPSET = 13
_FLOATS = {1, 10, 11, 16, 17, 18, 19, 20}
"""Numbers of the ONNX types that are read as float32: float, float16, double, bfloat16 and the float8 types."""
_INTEGERS = {2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32, 7: torch.int64,
             9: torch.bool, 21: torch.uint8, 22: torch.int8}  # fmt: skip
_TOKENS = {6, 7}
"""Numbers of the ONNX types of inputs that are indices: int32 and int64."""
_GRIDS = {2, 3, 4, 5}
"""Types of a zero point that QuantizeLinear is understood with: 8 and 16 bits, unsigned and signed."""
_AS_MANY = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose",
                      "Unsqueeze"})  # fmt: skip
"""Operators that give as many numbers as they get."""
_BROADCAST = frozenset({"Add", "Div", "Mul", "Sub"})
_AT_ONCE = _AS_MANY | _BROADCAST | {"Gather"}
"""What restores weights from their codes: on stored values it is computed when the file is read."""
_NOT_TRAINED = {"BatchNormalization": (3, 4), "Clip": (1, 2), "DequantizeLinear": (1, 2), "Pad": (2,),
                "QuantizeLinear": (1, 2)}  # fmt: skip
"""Inputs that are settings and no weights: running statistics, bounds, scales."""


def load_onnx(path: Path | str, *, drop_activation_quantizers: bool = False, output: str | None = None) -> StolenModule:
    """Return the shipped file as a module that can be differentiated and trained, in evaluation mode.

    Stored integer weights are de-quantized, ``w = s (q - z)``, and become float parameters. Convolutions and dense
    layers become real layers, so that a new start draws their weights anew and the last one can be replaced. Pairs of
    QuantizeLinear and DequantizeLinear on activations round, and let gradients pass straight through inside their
    range. Batch norms keep the statistics of the file. Everything is computed in float32.

    Args:
        path: the ONNX file: one input ``(N, ...)``, floating point or tokens.
        output: name of the output to compute; the file's only one where it is not given. Operators that do not lead to
            it are left out.
        drop_activation_quantizers: do not round or clip activations; a ReLU that the clipping stood for stays.

    Raises:
        StorageError: see :func:`nutlet.formats.onnx.content.read_onnx`.
        ModelError: the file has operators that are not understood, or its graph cannot run.
    """
    content = read_onnx(path)
    try:
        proto = load_unpacked(content)
        reader = _Reader(proto, Path(path), 8 * proto.ByteSize(), output)
        module = StolenModule(*reader.parts(), rounding=not drop_activation_quantizers).eval()
        _try(module, reader.example)
    except NutletError:
        raise
    except Exception as error:  # the graph comes from outside: whatever is wrong with it shows here
        raise ModelError(
            f"the graph in {path} cannot be read: {first_line(error)}; expected a classifier as exporters write it: "
            "export it again"
        ) from error
    return module


class _Reader:
    """One pass over the nodes of a graph.

    Args:
        model: the parsed file.
        path: for messages.
        allowance: elements that values computed while reading may have in all; a small file cannot ask for more.
        output: name of the one to compute.
    """

    def __init__(self, model: onnx.ModelProto, path: Path, allowance: int, output: str | None = None) -> None:
        self.output = output or (model.graph.output[0].name if len(model.graph.output) == 1 else None)
        self.nodes = _leading_to(model.graph.node, self.output)
        self.model, self.path, self.allowance = model, path, allowance
        self.static: dict[str, Tensor] = {}
        """Values that stand in the file, or follow from those alone."""
        self.calls: list[Call] = []
        self.layers: list[nn.Module] = []
        self.parameters: dict[tuple[Any, ...], nn.Parameter] = {}
        self.weights: dict[str, nn.Parameter] = {}
        self.constants: dict[str, Tensor] = {}
        self.types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self.readers = Counter(name for node in self.nodes for name in node.input)
        self.readers.update([self.output])

    def parts(self) -> tuple[str, str, list[Call], list[nn.Module], dict[str, nn.Parameter], dict[str, Tensor]]:
        self._check()
        graph = self.model.graph
        self.static = {tensor.name: _tensor(tensor) for tensor in graph.initializer}
        (given,) = (value for value in graph.input if value.name not in self.static)
        self.example = _example(given)
        for number, node in enumerate(self.nodes):
            try:
                self._node(node)
            except NutletError:
                raise
            except Exception as error:
                raise ModelError(
                    f"operator {number} of {self.path}, {node.op_type}, is not understood: {first_line(error)}; "
                    "expected what exporters of classifiers write"
                ) from error
        output = self.output
        assert output is not None  # checked above
        if output in self.static:
            raise ModelError(f"{self.path} gives {output!r}, a stored value; expected scores that depend on the input")
        return given.name, output, _with_ends(self.calls, output), self.layers, self.weights, self.constants

    def _check(self) -> None:
        graph = self.model.graph
        versions = {opset.domain: opset.version for opset in self.model.opset_import}
        version = versions.get("", versions.get("ai.onnx", 0))
        if version < _OLDEST_OPSET:
            raise ModelError(
                f"{self.path} uses opset {version}; expected {_OLDEST_OPSET} or later: convert it with "
                f"onnx.version_converter.convert_version(model, {_OLDEST_OPSET})"
            )
        stored = {tensor.name for tensor in graph.initializer}
        inputs = [value.name for value in graph.input if value.name not in stored]
        outputs = [value.name for value in graph.output]
        if len(inputs) != 1 or self.output not in outputs:
            raise ModelError(
                f"{self.path} has the inputs {inputs} and the outputs {outputs}; expected one of each: export a "
                "module that takes one tensor and returns one, (N, classes)"
            )
        if graph.sparse_initializer:
            raise ModelError(f"{self.path} stores sparse tensors; expected dense ones: export it again without them")
        known = {*OPERATORS, "Constant"}
        names = {(f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type)
                 for node in self.nodes}  # fmt: skip
        if names - known:
            unknown = ", ".join(sorted(names - known))[:300]
            raise ModelError(
                f"{self.path} uses operators that are not understood: {unknown}; expected those that the reader knows "
                "(nutlet.formats.onnx.operators.OPERATORS): only what looks inside a file needs them"
            )

    def _node(self, node: onnx.NodeProto) -> None:
        call = Call(node.op_type, tuple(node.input), tuple(node.output), _attributes(node))
        if call.operator == "Constant":
            self._constant(call)
            return
        if call.operator == "QuantizeLinear" and len(call.inputs) > 2 and self.types.get(call.inputs[2]) not in _GRIDS:
            raise ValueError("its zero point is not stored as 8 or 16 bits")
        if call.operator in _AT_ONCE and all(name in self.static for name in call.inputs if name):
            self._fold(call)
        elif not self._bias(call):
            self._append(self._layered(call))

    def _constant(self, call: Call) -> None:
        ((kind, value),) = call.attributes.items()
        if kind not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
            raise ValueError(f"found a constant of kind {kind!r}; expected numbers")
        self.static[call.outputs[0]] = value if isinstance(value, Tensor) else torch.tensor(value)

    def _fold(self, call: Call) -> None:
        inputs = [self.static[name] if name else None for name in call.inputs]
        self.allowance -= _count(call, [tensor for tensor in inputs if tensor is not None])
        if self.allowance < 0:
            raise ValueError("the values computed from stored ones are more than a file of this size needs")
        self.static[call.outputs[0]] = OPERATORS[call.operator](*inputs, **call.attributes)

    def _layered(self, call: Call) -> Call:
        """Return ``call`` as that of a layer, where its weights stand in the file."""
        weight, bias = (self.static.get(name) if name else None for name in (*call.inputs[1:3], "", "")[:2])
        if weight is None or not weight.is_floating_point() or call.inputs[0] in self.static:
            return call
        if bias is None and len(call.inputs) > 2 and call.inputs[2]:
            return call  # a bias that is computed
        layer: nn.Module | None = None
        if call.operator == "Conv":
            layer = conv_layer(call.attributes, weight, bias, self._share(call.inputs))
        elif call.operator == "MatMul" and weight.ndim == 2:
            layer = dense_layer(weight.T, None, self._share(call.inputs))
        elif call.operator == "Gemm" and weight.ndim == 2 and not call.attributes.get("transA"):
            weight = weight if call.attributes.get("transB") else weight.T
            scales = call.attributes.get("alpha", 1.0), call.attributes.get("beta", 1.0)
            if scales == (1.0, 1.0) and (bias is None or bias.shape == weight.shape[:1]):
                layer = dense_layer(weight, bias, self._share(call.inputs))
        if layer is None:
            return call
        self.layers.append(layer)
        return Call(call.operator, call.inputs[:1], call.outputs[:1], layer=len(self.layers) - 1)

    def _share(self, names: tuple[str, ...]) -> Callable[[Tensor], nn.Parameter]:
        """Tensors of one call: the same values in the same shape are the same parameter wherever they are read."""

        def share(tensor: Tensor) -> nn.Parameter:
            name = next(name for name in names[1:] if self.static[name].data_ptr() == tensor.data_ptr())
            key = (name, tensor.shape, tensor.stride())
            return self.parameters.setdefault(key, nn.Parameter(tensor.contiguous()))

        return share

    def _bias(self, call: Call) -> bool:
        """Give the dense layer before an Add its bias, where nothing else reads the layer's result."""
        if call.operator != "Add" or not self.calls:
            return False
        for product, name in (call.inputs, call.inputs[::-1]):
            bias, before = self.static.get(name), self.calls[-1]
            if bias is None or before.layer is None or before.outputs != (product,) or self.readers[product] != 1:
                continue
            layer = self.layers[before.layer]
            if isinstance(layer, nn.Linear) and layer.bias is None and bias.shape == layer.weight.shape[:1]:
                layer.bias = self._share(("", name))(bias)
                self.calls[-1] = Call(before.operator, before.inputs, call.outputs, layer=before.layer)
                return True
        return False

    def _append(self, call: Call) -> None:
        for position, name in enumerate(call.inputs):
            tensor = self.static.get(name)
            if tensor is None:
                continue
            if (
                tensor.is_floating_point()
                and tensor.numel() > 1
                and position not in _NOT_TRAINED.get(call.operator, ())
            ):
                self.weights[name] = self._share(("", name))(tensor)
            elif name not in self.weights:
                self.constants[name] = tensor
        self.calls.append(call)


def _count(call: Call, inputs: list[Tensor]) -> int:
    """Return how many numbers an operator on stored values gives, before it is given any memory for them."""
    first, *others = inputs
    if call.operator in _BROADCAST:
        return math.prod(np.broadcast_shapes(*(tuple(tensor.shape) for tensor in inputs)))
    if call.operator == "Gather":
        axis: int = call.attributes.get("axis", 0)
        return others[0].numel() * first.numel() // max(1, first.shape[axis])
    return first.numel()


def _leading_to(nodes: Sequence[onnx.NodeProto], output: str | None) -> list[onnx.NodeProto]:
    """Return the nodes whose results ``output`` depends on, in order; all where it is not known."""
    if output is None:
        return list(nodes)
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _with_ends(calls: list[Call], output: str) -> list[Call]:
    """Return ``calls`` with what each is the last to read, so that it can be let go."""
    seen = {"", output}
    result = []
    for call in reversed(calls):
        spent = tuple(sorted({*call.inputs, *call.outputs} - seen))
        seen.update(call.inputs, call.outputs)
        result.append(Call(call.operator, call.inputs, call.outputs, call.attributes, call.layer, spent))
    return result[::-1]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    result = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = _tensor(value)
        elif isinstance(value, bytes):
            value = value.decode()
        elif not isinstance(value, (int, float)):
            value = list(value)
            if not all(isinstance(item, (int, float)) for item in value):
                raise ValueError(f"found an attribute {attribute.name!r} that is neither numbers, text nor a tensor")
        result[attribute.name] = value
    return result


def _tensor(stored: onnx.TensorProto) -> Tensor:
    """Return the values of a tensor, after checking that the file holds as many as it says."""
    import onnx

    dims = tuple(stored.dims)
    # Half a byte is the least that a number takes.
    if min(dims, default=0) < 0 or math.prod(dims) > 2 * stored.ByteSize():
        raise ModelError(f"the tensor {stored.name!r} says that its shape is {dims}; expected as many values as it has")
    if stored.data_type not in _FLOATS and stored.data_type not in _INTEGERS:
        raise ModelError(f"the tensor {stored.name!r} is of ONNX type {stored.data_type}; expected numbers")
    array = onnx.numpy_helper.to_array(stored)
    if stored.data_type in _FLOATS:
        if array.dtype not in (np.float64, np.float32):
            array = array.astype(np.float32)
        return torch.from_numpy(np.array(array)).float()
    kind = _INTEGERS[stored.data_type]
    if stored.data_type in (21, 22):
        array = array.astype(np.int8 if kind == torch.int8 else np.uint8)
    return torch.from_numpy(np.array(array)).to(kind)


def _example(value: onnx.ValueInfoProto) -> Tensor:
    """Return a batch of the input that has a shape and no content, of two where the batch is free."""
    tensor = value.type.tensor_type
    first, *rest = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim] or [-1]
    if tensor.elem_type not in _FLOATS | _TOKENS or min(rest, default=1) < 1 or first < 0:
        raise ModelError(
            f"the input {value.name!r} has ONNX type {tensor.elem_type} and shape {(first, *rest)}; expected "
            "floating-point examples, or tokens (int32, int64), with every axis but the batch fixed"
        )
    if math.prod(rest) > LARGEST_VALUE:
        raise ModelError(f"one input has {math.prod(rest):,} numbers; expected at most {LARGEST_VALUE:,}")
    dtype = torch.int64 if tensor.elem_type in _TOKENS else torch.float32
    return torch.empty((min(first or 2, 2**20), *rest), dtype=dtype, device="meta")


def _try(module: StolenModule, example: Tensor) -> None:
    """Run the graph on shapes alone: what would ask for too much memory is found before any is allocated."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shadows = {name: tensor.to("meta") if tensor.is_floating_point() and tensor.ndim else tensor
               for name, tensor in state.items()}  # fmt: skip
    with torch.no_grad():
        scores = functional_call(module, shadows, (example,))
    if scores.ndim < 1 or not scores.is_floating_point():
        raise ModelError(f"the graph gives {scores.dtype} of shape {tuple(scores.shape)}; expected scores (N, classes)")
