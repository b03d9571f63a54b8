"""Distillation: a student learns what a teacher answers."""

from nutlet.methods.distillation.distill import Distill

__all__ = ["Distill"]
