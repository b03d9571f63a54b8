"""Attacks that train a surrogate on the answers of the victim."""
