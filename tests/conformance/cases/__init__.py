"""The cases of every family; a test holds that no registered method is missing."""

from conformance.cases import distillation, low_rank, pruning, quantization
from conformance.cases.case import Case

__all__ = ["CASES", "Case"]

CASES: list[Case] = [*pruning.CASES, *quantization.CASES, *distillation.CASES, *low_rank.CASES]
