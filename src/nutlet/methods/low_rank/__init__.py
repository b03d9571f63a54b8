"""Low-rank factorization: a layer becomes several thinner ones."""

from nutlet.methods.low_rank.factorize import Factorize

__all__ = ["Factorize"]
