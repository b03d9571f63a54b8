"""Recipes: the steps of a chain as a list of methods or a YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nutlet.errors import ConfigError, nearest, shown
from nutlet.methods import method_from_dict
from nutlet.methods.base import Method
from nutlet.reading import load_yaml

__all__ = ["Recipe", "dump_recipe", "load_recipe", "parse_recipe", "read_steps", "read_yaml", "with_recovery"]

Recipe = Sequence[Method]


def with_recovery(steps: Recipe, recover: Method | None) -> list[Method]:
    """Insert ``recover`` after every run of steps that fine-tuning can repair.

    >>> from nutlet.methods import DropBlocks, FineTune, PruneChannels, Quantize
    >>> chain = [DropBlocks(drop=1), PruneChannels(ratio=0.5), Quantize()]
    >>> [type(step).__name__ for step in with_recovery(chain, FineTune())]
    ['DropBlocks', 'PruneChannels', 'FineTune', 'Quantize']
    """
    if recover is None:
        return list(steps)
    if type(recover).train is Method.train:
        raise ConfigError(f"recover is {type(recover).__name__}; expected a method that trains, as Distill(epochs=5)")
    expanded: list[Method] = []
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        expanded.append(step)
        if step.recoverable and not (following is not None and following.recoverable):
            expanded.append(recover)
    return expanded


def read_steps(
    recipe: Method | Sequence[Method | dict[str, Any] | str] | Path | str,
    recover: Method | dict[str, Any] | str | None = None,
) -> list[Method]:
    """Return the steps of a recipe in any of the forms that users give it in, recovery included.

    Raises:
        ConfigError: the recipe is empty, cannot be read, or a step is unknown or has a bad option.
    """
    if isinstance(recover, (str, dict)):
        recover = method_from_dict(recover)
    if recover is not None and not isinstance(recover, Method):
        raise ConfigError(f"recover is {shown(recover)}; expected a method that trains, as Distill(epochs=5)")
    if isinstance(recipe, Method):
        recipe = [recipe]
    if isinstance(recipe, (str, Path)):
        steps = load_recipe(recipe)
    elif not recipe:
        raise ConfigError("the recipe is empty; expected at least one method, see `nutlet methods`")
    else:
        steps = [step if isinstance(step, Method) else parse_recipe([step])[0] for step in recipe]
    return with_recovery(steps, recover)


def load_recipe(path: Path | str) -> list[Method]:
    """Read a YAML recipe: ``steps``, a list of methods, and optionally ``recover``.

    Raises:
        ConfigError: the file is missing, is not YAML, or names an unknown key, method or option.
    """
    return parse_recipe(read_yaml(path), str(path))


def read_yaml(path: Path | str) -> Any:
    """Return what the YAML file of a recipe holds.

    Raises:
        ConfigError: the file is missing or is not YAML; see :func:`nutlet.reading.load_yaml`.
    """
    return load_yaml(Path(path), "the recipe", "`steps:` with a list of methods")


def parse_recipe(content: Any, origin: str = "the recipe") -> list[Method]:
    """Turn what YAML or JSON gave into methods; see :func:`load_recipe`."""
    if isinstance(content, list):
        content = {"steps": content}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{origin} holds {type(content).__name__}; expected `steps:` with a list of methods")
    for key in content:
        if key not in ("steps", "recover"):
            raise ConfigError(f"{origin} has the unknown key {shown(key)}; {nearest(str(key), ['steps', 'recover'])}")
    steps = content.get("steps")
    if not isinstance(steps, list) or not steps:
        raise ConfigError(f"{origin} has no steps; expected `steps:` with at least one method, see `nutlet methods`")
    recover = content.get("recover")
    return with_recovery(
        [method_from_dict(step) for step in steps], None if recover is None else method_from_dict(recover)
    )


def dump_recipe(steps: Recipe) -> str:
    """Return the YAML of a recipe; reading it gives equal methods."""
    return yaml.safe_dump({"steps": [step.to_dict() for step in steps]}, sort_keys=False)
