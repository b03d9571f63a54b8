"""The attacks, one to a file; importing this package registers them."""

from nutlet.attacks.knockoff import Knockoff
from nutlet.attacks.recover_weights import RecoverWeights

__all__ = ["Knockoff", "RecoverWeights"]
