"""Cases of the quantization family."""

from conformance.cases.case import Case
from nutlet.methods import Quantize

CASES = [
    Case(Quantize(), [{"bits": 4}, {"bits": True}, {"activations": 1}, {"portable": "yes"}], kind="integers"),
]
