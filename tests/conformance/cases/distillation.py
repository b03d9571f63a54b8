"""Cases of training: fine-tuning and distillation."""

from conformance.cases.case import Case
from nutlet.methods import Distill, FineTune, Student

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
            {"kd_weight": 1.5},
            {"lr": -1},
            {"optimizer": "adam"},
            {"epochs": "2"},
            {"targets": "mse"},
            {"beta": 2.0},
            {"hints": -1},
            {"attention": float("inf")},
            {"relations": float("nan")},
            {"kd_weight": 0.0, "temperature": 2.0},
            {"kd_weight": 0.0, "targets": "logits"},
            {"targets": "logits", "temperature": 2.0},
            {"sites": ("block1",)},
        ],
    ),
    Case(Distill(epochs=1, batch_size=16, lr=0.01, targets="logits", kd_weight=1.0), variant="logits"),
    Case(Distill(epochs=1, batch_size=16, lr=0.01, targets="decoupled", beta=2.0), variant="decoupled"),
    Case(
        Distill(epochs=1, batch_size=16, lr=0.01, hints=0.1, attention=1.0, relations=0.1),
        variant="features",
    ),
    Case(
        Student(width=0.5, start="fresh"),
        [
            {"width": 0},
            {"width": 1.5},
            {"depth": -0.1},
            {"start": "new", "width": 0.5},
            {},
            {"width": 0.5, "multiple_of": 0},
            {"depth": 0.5, "multiple_of": 4},
        ],
        kind="student",
    ),
    Case(Student(width=0.6, depth=0.5), variant="inherited"),
]
