"""A graph of ONNX operators as a torch module: real layers where there are weights, functions elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nutlet.errors import ModelError, NutletError, first_line
from nutlet.formats.onnx.operators import OPERATORS, quantize_without_rounding

__all__ = ["Call", "StolenModule"]

LARGEST_VALUE = 1 << 26
"""Elements that any value may have for each row of the batch."""


@dataclass(frozen=True)
class Call:
    """One operator of the graph.

    Args:
        operator: its name in the ONNX standard.
        inputs: names of values; empty for an optional input that is not there.
        outputs: names of the values it gives.
        attributes: its options.
        layer: the module that does it, as a position in ``StolenModule.layers``; None for a function.
        spent: values that nobody reads after it.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    layer: int | None = None
    spent: tuple[str, ...] = ()

    def __str__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in sorted(self.attributes.items()))
        does = self.operator if self.layer is None else f"layers[{self.layer}]"
        return f"{', '.join(self.outputs)} = {does}({', '.join(self.inputs)}{options})"


class StolenModule(nn.Module):
    """What :func:`nutlet.formats.onnx.reader.load_onnx` makes of a file: its operators, called one after the other.

    Args:
        input_name: name of the value that goes in.
        output_name: name of the value that comes out.
        calls: the operators in an order in which they can run.
        layers: convolutions and dense layers with weights of their own.
        weights: trained values that belong to no layer, by name.
        constants: values that are not trained, by name.
        rounding: whether QuantizeLinear rounds and clips.
    """

    def __init__(
        self,
        input_name: str,
        output_name: str,
        calls: list[Call],
        layers: list[nn.Module],
        weights: Mapping[str, nn.Parameter],
        constants: Mapping[str, Tensor],
        *,
        rounding: bool = True,
    ) -> None:
        super().__init__()
        self.input_name, self.output_name = input_name, output_name
        self.calls = tuple(calls)
        self.layers = nn.ModuleList(layers)
        self.weights = nn.ParameterList(weights.values())
        self.rounding = rounding
        # The file's names are values in tables only: an attribute cannot have every name.
        self._weights = tuple(weights)
        self._constants = tuple(constants)
        for position, tensor in enumerate(constants.values()):
            self.register_buffer(f"constant{position}", tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of ``x`` ``(B, ...)``, in float32 whatever the file computes in.

        Raises:
            ModelError: an operator cannot do what the file asks of it.
        """
        values: dict[str, Any] = {"": None, self.input_name: x.float() if x.is_floating_point() else x}
        values |= {name: getattr(self, f"constant{position}") for position, name in enumerate(self._constants)}
        values |= zip(self._weights, self.weights, strict=True)
        limit = LARGEST_VALUE * max(1, len(x))
        for number, call in enumerate(self.calls):
            try:
                results = self._results(call, [values[name] for name in call.inputs])
                if any(result.numel() > limit for result in results):
                    raise ValueError(f"its result has {max(r.numel() for r in results):,} elements, at most {limit:,}")
            except NutletError:
                raise
            except Exception as error:  # the graph comes from outside: whatever is wrong with it shows here
                found = f"no value {error}" if isinstance(error, KeyError) else first_line(error)
                raise ModelError(
                    f"operator {number} of the file, {call.operator}, cannot run: {found}; expected a classifier's "
                    "graph for batches of this shape: export it again with a dynamic batch"
                ) from error
            values |= zip(call.outputs, results, strict=False)
            for name in call.spent:
                del values[name]
        result: Tensor = values[self.output_name]
        return result

    def _results(self, call: Call, inputs: list[Any]) -> tuple[Tensor, ...]:
        if call.layer is not None:
            return (self.layers[call.layer](inputs[0]),)
        released = call.operator == "QuantizeLinear" and not self.rounding
        function = quantize_without_rounding if released else OPERATORS[call.operator]
        result = function(*inputs, **call.attributes)
        return result if isinstance(result, tuple) else (result,)

    def extra_repr(self) -> str:
        """Name every operator, so that two modules that print the same compute the same."""
        return "\n".join([f"rounding={self.rounding}, {self.input_name} -> {self.output_name}", *map(str, self.calls)])
