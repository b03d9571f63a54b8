"""Attacks that bring training data to light."""
