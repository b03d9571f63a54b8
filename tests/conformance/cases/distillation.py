"""Cases of training: fine-tuning and distillation."""

from conformance.cases.case import Case
from nutlet.methods import Distill, FineTune

CASES = [
    Case(
        FineTune(epochs=1, batch_size=16, lr=0.01),
        [{"epochs": 0}, {"lr": 0}, {"lr": float("nan")}, {"batch_size": 1}, {"patience": 0}],
        kind="training",
    ),
    Case(
        Distill(epochs=1, batch_size=16, lr=0.01),
        [{"epochs": 0}, {"temperature": 0}, {"soft": 1.5}, {"lr": -1}, {"optimizer": "adam"}, {"epochs": "2"}],
    ),
]
