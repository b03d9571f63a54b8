"""Residual units: modules that give back what they were given, plus something."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from nutlet.graph.macs import site_macs
from nutlet.graph.record import Record
from nutlet.graph.trace import trace
from nutlet.tasks.inputs import Inputs

__all__ = ["residual_units"]


def residual_units(model: nn.Module, example: Inputs, names: Iterable[str]) -> list[str]:
    """Return those of the modules ``names`` that have an identity shortcut from their input to their output.

    What comes in reaches what goes out through additions and through calls that multiply with no matrix (norms,
    activations, dropout): without the unit the rest of the model still gets most of what it was trained on.

    >>> import torch
    >>> class Unit(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    ...     def forward(self, x):
    ...         return torch.relu(x + self.body(x))
    >>> residual_units(nn.Sequential(nn.Linear(4, 4), Unit()), torch.zeros(2, 4), ["1", "1.body"])
    ['1']
    """
    record = trace(model, example)
    return [name for name in names if _has_shortcut(record, name)]


def _has_shortcut(record: Record, name: str) -> bool:
    inside = {site.name for site in record.sites.values() if f"{site.module}.".startswith(f"{name}.")}
    # Whether something was added on the way, for each result that the input reaches unmultiplied.
    reached: dict[str, bool] = {}
    for site in record.sites.values():  # in the order of execution
        if site.name not in inside:
            continue
        came = [reached.get(source, False) for source in site.inputs if source not in inside or source in reached]
        if not came or site_macs(site, 1):
            continue
        if site.op == "add" and len(site.inputs) > 1:
            reached[site.name] = True
        elif len(set(site.inputs)) == 1:
            reached[site.name] = came[0]
    leaving = [
        site
        for site in inside
        if site in record.outputs or any(reader.name not in inside for reader in record.consumers(site))
    ]
    return bool(leaving) and all(reached.get(site, False) for site in leaving)
