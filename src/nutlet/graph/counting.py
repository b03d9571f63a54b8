"""Floating-point operations of what a call comes down to, counted where torch dispatches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["FlopCount"]


class FlopCount(TorchDispatchMode):
    """Adds up the operations of matrix products, convolutions and attention by torch's own formulas.

    Unlike :class:`torch.utils.flop_counter.FlopCounterMode` it touches no module, and can be read between two calls.

    >>> import torch
    >>> with FlopCount() as count:
    ...     _ = torch.einsum("ij,jk->ik", torch.ones(2, 3), torch.ones(3, 4))
    >>> count.take(), count.take()
    (48, 0)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result

    def take(self) -> int:
        """Return what was counted since the last time."""
        flops, self.flops = self.flops, 0
        return flops
