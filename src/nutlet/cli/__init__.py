"""The command line: parse, call a verb, print. Heavy imports wait until a command runs."""

from nutlet.cli import chain, files, lists, theft  # noqa: F401  each registers its commands
from nutlet.cli.common import app, main

__all__ = ["app", "main"]
