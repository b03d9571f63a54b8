"""Cases of low-rank factorization."""

from conformance.cases.case import Case
from nutlet.methods import Factorize

CASES = [
    Case(
        Factorize(energy=0.6),
        [
            *({"energy": 0}, {"energy": 1.1}, {"energy": float("nan")}, {"rank": 0}, {"rank": 2, "energy": 0.5}),
            *({"parameters": 0}, {"macs": 1.5}, {"parameters": 0.5, "macs": 0.5}, {"drop": -0.1}, {"drop": 1}),
            *({"decomposition": "qr"}, {"signed": "split"}, {"decomposition": "nmf", "signed": "yes"}),
        ],
        acting={"energy": 0.3},
        kind="factors",
    ),
    Case(Factorize(decomposition="whitened", energy=0.6), variant="whitened", acting={"energy": 0.3}),
    Case(Factorize(decomposition="spatial", energy=0.6), variant="spatial", acting={"energy": 0.3}),
    Case(Factorize(decomposition="tucker", drop=0.2), variant="tucker", acting={"drop": 0.9}),
    Case(Factorize(decomposition="cp", rank=2), variant="cp"),
    Case(
        Factorize(decomposition="nmf", signed="split", energy=0.5),
        variant="nmf",
        acting={"energy": 0.2},
    ),
]
