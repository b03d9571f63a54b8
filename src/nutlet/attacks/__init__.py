"""The attacks, one to a file; importing this package registers them."""

from nutlet.attacks.knockoff import Knockoff

__all__ = ["Knockoff"]
