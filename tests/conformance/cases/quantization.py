"""Cases of the quantization family."""

from conformance.cases.case import Case
from nutlet.methods import CorrectBias, Equalize, Quantize, ReestimateNorms, Smooth

CASES = [
    Case(Quantize(), [{"bits": 4}, {"bits": True}, {"activations": 1}, {"portable": "yes"}], kind="integers"),
    Case(Equalize(), [{"include": 1}], kind="values"),
    Case(CorrectBias(), [{"exclude": 1}], idle=True),
    Case(ReestimateNorms(examples=64, batch_size=32), [{"examples": 1}, {"batch_size": 0}], models=("cnn",)),
    Case(Smooth(), [{"alpha": 1.5}, {"alpha": -0.1}, {"alpha": "half"}]),
]
