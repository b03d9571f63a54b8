"""What the conformance suite runs a method with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nutlet.methods.base import Method


@dataclass(frozen=True)
class Case:
    """One small configuration of a method.

    Args:
        method: what is run on the tiny models.
        refused: options that the method has to refuse, each a whole set of options.
        variant: tells several configurations of one method apart.
        acting: options with which it acts on two dense layers of 16 x 16 alone.
        idle: whether it changes nothing on a model that no other step has changed.
        kind: what kind of thing it does to a model, where it stands for its kind in the pairs of `make test`.
        models: the tiny models it can work on.
    """

    method: Method
    refused: list[dict[str, Any]] = field(default_factory=list)
    variant: str = ""
    acting: dict[str, Any] = field(default_factory=dict)
    idle: bool = False
    kind: str = ""
    models: tuple[str, ...] = ("cnn", "mlp")

    @property
    def name(self) -> str:
        """Name of the method, and of the variant."""
        return "-".join(filter(None, [type(self.method).__name__, self.variant]))
