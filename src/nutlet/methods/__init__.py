"""Compression methods, one to a file, in a folder for each family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nutlet.errors import ConfigError, nearest, shown
from nutlet.methods import distillation, low_rank, pruning, quantization
from nutlet.methods.base import REGISTRY, Method, default_of
from nutlet.methods.distillation import *  # noqa: F403
from nutlet.methods.fine_tune import FineTune
from nutlet.methods.low_rank import *  # noqa: F403
from nutlet.methods.pruning import *  # noqa: F403
from nutlet.methods.quantization import *  # noqa: F403

__all__ = ["FineTune", "known_methods", "method_from_dict"]
__all__ += distillation.__all__
__all__ += low_rank.__all__
__all__ += pruning.__all__
__all__ += quantization.__all__


def known_methods() -> dict[str, type[Method]]:
    """Return every known method by name: ours, and those of installed packages (entry point ``nutlet.methods``)."""
    return REGISTRY.known()


def method_from_dict(spec: Mapping[str, Any] | str) -> Method:
    """Rebuild a method from what :meth:`nutlet.Method.to_dict` returned, or from its bare name.

    Raises:
        ConfigError: unknown method or option (the nearest name is suggested), or a bad value.
    """
    if isinstance(spec, str):
        spec = {spec: {}}
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise ConfigError(
            f"found the step {shown(spec)}; expected one method name with its options, as `Quantize: {{}}`"
        )
    ((name, options),) = spec.items()
    known = known_methods()
    if name not in known:
        raise ConfigError(f"found the method {shown(name)}, which does not exist; {nearest(str(name), known)}")
    kind = known[name]
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise ConfigError(f"the options of {name} are {shown(options)}; expected a mapping of option to value")
    accepted = {option.name for option in dataclasses.fields(kind)}
    for option in options:
        if option not in accepted:
            raise ConfigError(f"{name} has no option {shown(option)}; {nearest(str(option), accepted)}")
    missing = [
        option.name
        for option in dataclasses.fields(kind)
        if default_of(option) is dataclasses.MISSING and option.name not in options
    ]
    if missing:
        raise ConfigError(
            f"{name} needs the option {missing[0]!r}; expected a value for it, see `nutlet methods {name}`"
        )
    return kind(**options)
