"""An exported program (``.pt2``) rebuilt as a module whose layers the methods can see.

``ExportedProgram.module()`` and ``torch.export.unflatten`` call ATen operators on bare parameters: there is no
``nn.Conv2d`` to prune and no ``nn.Linear`` to factorise. Here each convolution, linear layer and batch norm on
parameters becomes a real layer again, named as its parameter was; everything else stays the operator it is.
"""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from nutlet.errors import ModelError, NutletError
from nutlet.loading.archive import DTYPES, NAME, Program, read_program
from nutlet.loading.layers import layer_for
from nutlet.loading.operators import function

__all__ = ["load_program"]

_CHECKS = re.compile(r"torch\.ops\.aten\.(_assert\w*|sym_constrain_range\w*)\.\w+")
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_SCALARS: dict[str, Callable[[Any], Any]] = {"as_int": int, "as_float": float, "as_bool": bool, "as_string": str}
_MAX_TRIAL = 50_000_000


def load_program(path: Path) -> nn.Module:
    """Return the model in a ``.pt2`` file, with real layers, in evaluation mode and for batches of any size.

    Nothing in the file is executed, unpickled or evaluated: the graph is read as JSON, only operators on a list are
    accepted (:mod:`nutlet.loading.operators`), and weights are raw bytes. Before it is tried, the graph runs on shapes
    alone, so that no value is larger than a classifier needs. (What remains to a hostile file is to ask for much time.)

    Raises:
        StorageError: the file is damaged, or holds what would have to be unpickled.
        ModelError: the program was exported in training mode, for one batch size only, or uses operators that are
            not understood.
    """
    program = read_program(path)
    try:
        module = _Rebuild(program).module()
        _try(module, program)
    except NutletError:
        raise
    except Exception as error:  # the graph comes from outside: whatever is wrong with it shows here
        raise ModelError(
            f"the program in {path} cannot be rebuilt ({type(error).__name__}: {error}); expected a classifier "
            "exported in evaluation mode with a dynamic batch: `torch.export.export(model.eval(), (x,), "
            "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))`; or name its Python factory instead"
        ) from error
    return module


class _Rebuild:
    """One pass over the nodes of a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.tensor_names: dict[str, str] = {}
        """Value name to the name of the parameter, buffer or constant it stands for."""
        self.layers: dict[str, tuple[Any, nn.Module]] = {}

    def module(self) -> fx.GraphModule:
        self._check_outputs()
        self._inputs()
        for node in self.program.graph["nodes"]:
            self._node(node)
        outputs = [self._argument(output) for output in self.program.graph["outputs"]]
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        self._place_bare_tensors()
        module = fx.GraphModule(self.root, self.graph, class_name="Program")
        module.graph.lint()
        return module.eval()

    def _check_outputs(self) -> None:
        nodes = self.program.graph["nodes"]
        norms = [node for node in nodes if node["target"] == "torch.ops.aten.batch_norm.default"]
        flags = [item for node in norms for item in node["inputs"] if item["name"] == "training"]
        learning = any(item["arg"].get("as_bool") for item in flags)
        for spec in self.program.signature["output_specs"]:
            if learning or "buffer_mutation" in spec:
                raise ModelError(
                    f"{self.program.source} was exported in training mode: its batch norms use the statistics of the "
                    "batch, or it updates buffers; expected evaluation mode: export `model.eval()`"
                )
            if "user_output" not in spec:
                raise ModelError(
                    f"{self.program.source} has an output of the kind {next(iter(spec))!r}; expected logits"
                )

    def _inputs(self) -> None:
        for spec in self.program.signature["input_specs"]:
            ((kind, entry),) = spec.items()
            if kind == "user_input":
                name = entry["arg"]["as_tensor"]["name"]
                if not name.isidentifier():
                    raise ModelError(f"found an input named {name!r}; expected a Python name")
                self.values[name] = self.graph.placeholder(name)
            elif kind in ("parameter", "buffer", "tensor_constant"):
                self.tensor_names[entry["arg"]["name"]] = str(entry[f"{kind}_name"])
            else:
                raise ModelError(f"{self.program.source} takes an input of the kind {kind!r}; expected tensors only")

    def _node(self, node: dict[str, Any]) -> None:
        target = str(node["target"])
        if _CHECKS.fullmatch(target):
            return
        named = {item["name"]: item["arg"] for item in node["inputs"]}
        source_name = named.get("input", {}).get("as_tensor", {}).get("name")
        rank = len(self.program.graph["tensor_values"].get(source_name, {}).get("sizes", ()))
        made = layer_for(target, named, self.tensor_names, self.program.tensors, rank)
        if made is not None and self._add_layer(made.path, made.key, made.module):
            self._bind(node, self.graph.call_module(made.path, (self._value(source_name),)))
            return
        args = tuple(self._argument(item["arg"]) for item in node["inputs"] if item.get("kind") != 2)
        strange = [item["name"] for item in node["inputs"] if not str(item["name"]).isidentifier()]
        if strange:
            raise ModelError(f"found an argument named {strange[0]!r} of {target!r}; expected a Python name")
        kwargs = {item["name"]: self._argument(item["arg"]) for item in node["inputs"] if item.get("kind") == 2}
        if target == "torch.ops.aten.sym_size.int":
            self._bind(node, self.graph.call_method("size", args))
        elif self._flattens(target, named):
            # The number of features is left open, so that channels may be removed before it.
            self._bind(node, self.graph.call_function(torch.ops.aten.flatten, (args[0], 1)))
        elif target == "torch.ops.aten.dropout.default":
            path = self._free(str(node.get("name") or "dropout"))
            self.root.add_module(path, nn.Dropout(float(named["p"]["as_float"])))
            self._bind(node, self.graph.call_module(path, (args[0],)))
        else:
            self._bind(node, self.graph.call_function(function(target), args, kwargs))

    def _add_layer(self, path: str, key: Any, layer: nn.Module) -> bool:
        """Put ``layer`` at ``path``; False where another layer is there already."""
        if path in self.layers:
            return bool(self.layers[path][0] == key)
        parent = self.root
        *folders, last = path.split(".")
        for folder in folders:
            child = getattr(parent, folder, None)
            if child is None:
                child = nn.Module()
                parent.add_module(folder, child)
            if not isinstance(child, nn.Module):
                return False
            parent = child
        if hasattr(parent, last):
            return False
        parent.add_module(last, layer)
        self.layers[path] = (key, layer)
        return True

    def _free(self, name: str) -> str:
        name = re.sub(r"\W", "_", name)
        taken = {tensor.partition(".")[0] for tensor in self.program.tensors}
        while hasattr(self.root, name) or name in taken:
            name += "_"
        return name

    def _flattens(self, target: str, named: dict[str, Any]) -> bool:
        """Tell whether a view or reshape keeps the batch and joins all other axes."""
        if target not in ("torch.ops.aten.view.default", "torch.ops.aten.reshape.default"):
            return False
        size = named.get("size") or named.get("shape") or {}
        wanted = size.get("as_sym_ints") or [{"as_int": item} for item in size.get("as_ints", [])]
        values = self.program.graph["tensor_values"]
        given = values[named["self"]["as_tensor"]["name"]]["sizes"]
        if len(wanted) != 2 or len(given) < 2 or "as_int" not in wanted[1]:
            return False
        rest = [item.get("as_int") for item in given[1:]]
        joined = wanted[1]["as_int"]
        if None in rest or joined not in (-1, math.prod(rest)):
            return False
        if "as_name" in wanted[0]:
            symbol = self.program.graph["sym_int_values"].get(wanted[0]["as_name"], {})
            return bool("as_expr" in given[0] and symbol.get("as_expr") == given[0]["as_expr"])
        first = wanted[0]["as_int"]
        return bool(first == given[0].get("as_int") or (first == -1 and joined != -1))

    def _bind(self, node: dict[str, Any], value: fx.Node) -> None:
        """Give the results of ``node`` their names."""
        outputs = list(_outputs(node["outputs"]))
        single = len(node["outputs"]) == 1 and "as_tensors" not in node["outputs"][0]
        for position, name in enumerate(outputs):
            if name is not None:
                self.values[name] = value if single else self.graph.call_function(operator.getitem, (value, position))

    def _value(self, name: str) -> fx.Node:
        if name not in self.values:
            if name not in self.tensor_names:
                raise ModelError(f"the graph reads {name!r} before anything computes it; the file is damaged")
            self.values[name] = self.graph.get_attr(self.tensor_names[name])
        return self.values[name]

    def _argument(self, argument: dict[str, Any]) -> Any:
        ((kind, value),) = argument.items()
        if kind == "as_none":
            return None
        # Converted, not passed on: whatever is in the graph becomes text of generated code.
        if kind in _SCALARS:
            return _SCALARS[kind](value)
        if kind in ("as_ints", "as_floats", "as_bools"):
            return [_SCALARS[kind.removesuffix("s")](item) for item in value]
        if kind in ("as_tensor", "as_name"):
            return self._value(value["name"] if kind == "as_tensor" else value)
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
            return self._argument(value)
        if kind in ("as_tensors", "as_optional_tensors", "as_sym_ints", "as_sym_floats"):
            return [self._value(item["name"]) if "name" in item else self._argument(item) for item in value]
        if kind == "as_scalar_type":
            return DTYPES[value]
        if kind == "as_memory_format":
            return _MEMORY_FORMATS[value]
        if kind == "as_device":
            return torch.device("cpu")
        if kind == "as_layout":
            return torch.strided
        raise ModelError(
            f"the program has an argument of the kind {kind!r}; expected tensors, numbers and shapes (no control "
            "flow, no custom objects): name the model's Python factory instead"
        )

    def _place_bare_tensors(self) -> None:
        """Register the parameters and buffers that no layer took, under their own names."""
        for node in self.graph.nodes:
            if node.op != "get_attr":
                continue
            name = str(node.target)
            if not NAME.fullmatch(name):
                raise ModelError(f"found a tensor named {name!r}; expected letters, digits, _ and dots")
            tensor = self.program.tensors[name]
            *folders, last = name.split(".")
            parent = self.root
            for folder in folders:
                if not hasattr(parent, folder):
                    parent.add_module(folder, nn.Module())
                parent = getattr(parent, folder)
            if hasattr(parent, last):
                continue
            if isinstance(tensor, nn.Parameter):
                parent.register_parameter(last, tensor)
            else:
                parent.register_buffer(last, tensor)


def _outputs(outputs: list[dict[str, Any]]) -> Iterator[str | None]:
    for output in outputs:
        ((kind, value),) = output.items()
        if kind == "as_tensor":
            yield value["name"]
        elif kind == "as_tensors":
            yield from (item["name"] for item in value)
        elif kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            yield value.get("as_name")
        elif kind in ("as_none", "as_int", "as_float", "as_bool"):
            yield None
        else:
            raise ModelError(f"a node gives a result of the kind {kind!r}; expected tensors and sizes")


class _Sizes(fx.Interpreter):
    """Runs a graph on shapes alone, and stops at the first value that is larger than a classifier's can be."""

    def run_node(self, n: fx.Node) -> Any:
        """Return what the node gives."""
        value = super().run_node(n)
        for item in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(item, Tensor) and item.numel() > _MAX_TRIAL:
                raise ModelError(
                    f"the program computes {n.name!r} of shape {tuple(item.shape)} from three rows; expected at most "
                    f"{_MAX_TRIAL:,} numbers: name the model's Python factory instead"
                )
        return value


def _check_sizes(module: fx.GraphModule, inputs: list[Tensor]) -> None:
    """Raise ModelError where a value would be too large, before any memory is taken for it.

    A graph whose shapes depend on values (a mask as an index) cannot be run on shapes alone; it passes.
    """
    with _quiet(), FakeTensorMode(allow_non_fake_inputs=True) as shapes, torch.no_grad():
        try:
            _Sizes(module).run(*(shapes.from_tensor(x) for x in inputs))
        except (DataDependentOutputException, DynamicOutputShapeException):
            return


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch from logging the trace of an error that is raised, and said, anyway."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _try(module: fx.GraphModule, program: Program) -> None:
    """Run three rows together and alone: the batch must be free, and no row may depend on another."""
    inputs = []
    for spec in program.signature["input_specs"]:
        if "user_input" not in spec:
            continue
        meta = program.graph["tensor_values"][spec["user_input"]["arg"]["as_tensor"]["name"]]
        shape = [size["as_int"] if "as_int" in size else size["as_expr"]["hint"]["as_int"] for size in meta["sizes"]]
        if not shape or math.prod(shape[1:]) > _MAX_TRIAL:
            raise ModelError(f"the program takes an input of shape {shape}; expected a batch of moderate size")
        values = torch.randn(3, *shape[1:], generator=torch.Generator().manual_seed(0))
        dtype = DTYPES[meta["dtype"]]
        inputs.append(values.to(dtype) if dtype.is_floating_point else torch.zeros(3, *shape[1:], dtype=dtype))
    _check_sizes(module, inputs)
    with torch.no_grad():
        together = module(*inputs)
        alone = module(*(x[:1] for x in inputs))
    if isinstance(together, Tensor) and (
        len(together) != 3 or len(alone) != 1 or not torch.allclose(together[:1], alone, 1e-3, 1e-3, equal_nan=True)
    ):
        raise ModelError(
            f"{program.source} gives other results for a row when the batch has another size; expected a dynamic "
            "batch: export with `dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)`"
        )
