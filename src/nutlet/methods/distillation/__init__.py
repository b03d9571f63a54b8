"""Distillation: a student learns what a teacher answers."""

from nutlet.methods.distillation.distill import Distill
from nutlet.methods.distillation.student import Student

__all__ = ["Distill", "Student"]
