"""What a walk finds: the float results of a forward pass, their calls, and who reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from nutlet.tasks.inputs import Inputs, as_tensors

__all__ = ["Record", "Site", "floating"]


@dataclass(frozen=True)
class Site:
    """One float tensor returned by a call.

    Args:
        name: ``module.path/op/k``; the floating-point inputs of the model are ``/input/0``
            and so on, in order.
        module: path of the module whose forward made the call, ``""`` for the root.
        op: the operation's plain name: ``conv2d``, ``add``, ``relu`` (``x + y``, ``x.add_(y)`` are both ``add``).
        inputs: names of the sites that feed the call, in order; tensors that no site produced are left out.
        operands: shapes of all tensor arguments, weights included.
        shape: shape of the result.
        inplace: whether the result is the first argument itself.
        arguments: all arguments that are no tensors, by position and by name; no part of a comparison of sites.
        flops: floating-point operations (two for each multiply-accumulate) of the matrix products and convolutions
            that the call comes down to, as far as torch counts them; at the first result of a call.
        parameters: for each tensor argument the name of the parameter or buffer it is, ``None`` for any other.
    """

    name: str
    module: str
    op: str
    inputs: tuple[str, ...]
    operands: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    inplace: bool = False
    arguments: dict[int | str, Any] = field(default_factory=dict, compare=False)
    parameters: tuple[str | None, ...] = field(default=(), compare=False)
    flops: int = field(default=0, compare=False)

    def argument(self, name: str, position: int, default: Any = None) -> Any:
        """Return an argument that is no tensor, whether the call gave it by name, by position or not at all."""
        value = self.arguments.get(name, self.arguments.get(position))
        return default if value is None else value


@dataclass(frozen=True)
class Record:
    """All sites of one forward pass in order of execution, and which of them leave the model.

    Args:
        sites: the sites by name.
        outputs: names of the sites whose results the model returns.
        batch: how many examples the pass was made with.
        exact: names of the sites whose values something else than arithmetic reads: they become integers, indices,
            conditions or Python numbers that the forward then uses, so that the smallest change may change everything.
        blank: zeros in the place of the inputs, for another pass.
    """

    sites: dict[str, Site]
    outputs: frozenset[str]
    batch: int = 1
    exact: frozenset[str] = frozenset()
    blank: Inputs = field(compare=False, kw_only=True)

    @cached_property
    def _consumers(self) -> dict[str, tuple[Site, ...]]:
        users: dict[str, list[Site]] = {name: [] for name in self.sites}
        for site in self.sites.values():
            for source in dict.fromkeys(site.inputs):
                users[source].append(site)
        return {name: tuple(sites) for name, sites in users.items()}

    def consumers(self, name: str) -> tuple[Site, ...]:
        """Return the sites that read the result at ``name``."""
        return self._consumers[name]

    def of_module(self, path: str) -> tuple[Site, ...]:
        """Return the sites whose call was made by the module at ``path`` itself."""
        return tuple(site for site in self.sites.values() if site.module == path)


def floating(x: Inputs) -> list[Tensor]:
    """Return the inputs that can be sites: integers and masks are none."""
    return [tensor for tensor in as_tensors(x).values() if tensor.is_floating_point()]
