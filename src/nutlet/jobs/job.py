"""One piece of work, and how it travels to another process."""

from __future__ import annotations

import copy
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import torch

from nutlet.errors import ConfigError, first_line

__all__ = ["Job", "Result"]

Result = dict[str, Any]
"""Arrays and plain JSON by name."""


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work.

    Args:
        function: ``(**arguments) -> Result``; what it gives depends on its arguments alone.
        arguments: plain values, arrays, modules, dataclasses and functions; see :mod:`nutlet.content_hash`.
        title: what a user calls it.
        cost: how long it takes, relative to the others; for the time left.
    """

    function: Callable[..., Result]
    arguments: dict[str, Any]
    title: str = ""
    cost: float = 1.0

    def run(self, threads: int) -> Result:
        """Do it on a copy of the arguments, with a generator of its own: no job sees another, wherever it runs."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return self.function(**copy.deepcopy(self.arguments))
        finally:
            torch.set_num_threads(before)

    def pickled(self) -> bytes:
        """Return it for our own processes, what comes from the user's files by value: they may not find those.

        Raises:
            ConfigError: an argument cannot be pickled.
        """
        strangers = list(_strangers())
        for module in strangers:
            cloudpickle.register_pickle_by_value(module)
        try:
            return bytes(cloudpickle.dumps(self))
        except Exception as error:  # an object may refuse in any way
            raise ConfigError(
                f"the job {self.title!r} cannot be sent to another process: {first_line(error)}; expected arguments "
                "that can be pickled: run it with one process"
            ) from error
        finally:
            for module in strangers:
                cloudpickle.unregister_pickle_by_value(module)


def _strangers() -> Iterator[ModuleType]:
    """Yield the modules that are neither installed nor ours."""
    paths = sysconfig.get_paths()
    installed = [*site.getsitepackages(), site.getusersitepackages(), *(paths[n] for n in ("stdlib", "platstdlib"))]
    known = tuple(f"{place}{os.sep}" for place in (*installed, Path(__file__).parents[1]))
    registered = cloudpickle.list_registry_pickle_by_value()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and not file.startswith(known) and module.__name__ == name and name not in registered:
            yield module
