"""What outputs mean: one task to a file."""

from __future__ import annotations

import dataclasses
from typing import Any

from nutlet.errors import ConfigError, nearest
from nutlet.tasks.base import REGISTRY, Task, is_classifier, metric_of, metric_text, register_task
from nutlet.tasks.classification import Classification
from nutlet.tasks.embedding import Embedding
from nutlet.tasks.language_modeling import LanguageModeling
from nutlet.tasks.multi_label import MultiLabel
from nutlet.tasks.regression import Regression
from nutlet.tasks.segmentation import Segmentation

__all__ = [
    "CLASSIFICATION",
    "Classification",
    "Embedding",
    "LanguageModeling",
    "MultiLabel",
    "Regression",
    "Segmentation",
    "Task",
    "as_task",
    "is_classifier",
    "known_tasks",
    "metric_of",
    "metric_text",
    "register_task",
    "task_options",
]

CLASSIFICATION = Classification()
"""What data are for unless they say otherwise."""


def known_tasks() -> dict[str, Task]:
    """Return every task with its default options by its name, those of installed packages too."""
    return {task.name: task for task in (kind() for kind in REGISTRY.known().values())}


def task_options(task: Task) -> dict[str, Any]:
    """Return the options of a task as plain JSON.

    >>> task_options(Classification(output="logits"))
    {'output': 'logits'}
    """
    return {field.name: getattr(task, field.name) for field in dataclasses.fields(task) if field.init}  # type: ignore[arg-type]


def as_task(task: Task | str) -> Task:
    """Return a task, with its default options where only its name is given.

    Raises:
        ConfigError: there is none of that name.

    >>> as_task("regression")
    Regression(scale=1.0, unit='', output=None)
    """
    if not isinstance(task, str):
        return task
    known = known_tasks()
    if task not in known:
        raise ConfigError(f"there is no task {task!r}; {nearest(task, known)}")
    return known[task]
