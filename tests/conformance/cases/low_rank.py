"""Cases of low-rank factorization."""

from conformance.cases.case import Case
from nutlet.methods import Factorize

CASES = [
    Case(
        Factorize(energy=0.6),
        [{"energy": 0}, {"energy": 1.1}, {"rank": 0}, {"energy": float("nan")}, {"rank": 2, "energy": 0.5}],
        acting={"energy": 0.3},
        kind="factors",
    ),
]
