"""Deep copies of models that keep results of their forward on themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.overrides import TorchFunctionMode

__all__ = ["Detaching"]


class Detaching(TorchFunctionMode):
    """Lets ``copy.deepcopy`` copy the values of tensors that are results: kept features, weights made by hooks."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if is_lazy(tensor):  # torch copies lazy parameters, but not lazy buffers
                return memo.setdefault(id(tensor), UninitializedBuffer(device=tensor.device, dtype=tensor.dtype))  # type: ignore[call-arg]
            if not tensor.is_leaf:
                return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))
