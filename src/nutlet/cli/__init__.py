"""The command line: parse, call a verb, print. Everything but this file is loaded when a command is run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from nutlet.signals import at_once

if TYPE_CHECKING:
    import typer

    from nutlet.cli.common import app

__all__ = ["app", "main"]

_COMMANDS = ("chain", "files", "goals", "lists", "theft")
"""Modules, each of which registers its commands."""


def main() -> None:
    """Run the command line; errors become one message on standard error and an exit code of their own."""
    with at_once():
        _app()(prog_name="nutlet")


def _app() -> typer.Typer:
    for name in _COMMANDS:
        importlib.import_module(f"nutlet.cli.{name}")
    application: typer.Typer = importlib.import_module("nutlet.cli.common").app
    return application


def __getattr__(name: str) -> object:
    """Load the application when somebody asks for it: until then an interruption is one sentence, and no trace."""
    if name == "app":
        return _app()
    raise AttributeError(f"module 'nutlet.cli' has no attribute {name!r}")
