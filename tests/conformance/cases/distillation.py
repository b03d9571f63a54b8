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
        [
            {"epochs": 0},
            {"temperature": 0},
            {"soft": 1.5},
            {"lr": -1},
            {"optimizer": "adam"},
            {"epochs": "2"},
            {"targets": "mse"},
            {"beta": 2.0},
            {"hints": -1},
            {"attention": float("inf")},
            {"relations": float("nan")},
            {"sites": ("block1",)},
        ],
    ),
    Case(Distill(epochs=1, batch_size=16, lr=0.01, targets="logits", soft=1.0), variant="logits"),
    Case(Distill(epochs=1, batch_size=16, lr=0.01, targets="decoupled", beta=2.0), variant="decoupled"),
    Case(
        Distill(epochs=1, batch_size=16, lr=0.01, hints=0.1, attention=1.0, relations=0.1),
        variant="features",
    ),
]
