"""Cases of the quantization family."""

from conformance.cases.case import Case
from nutlet.methods import (
    GPTQ,
    AdaRound,
    Binarize,
    Cluster,
    CorrectBias,
    Equalize,
    FixedPoint,
    HalfPrecision,
    MixedPrecision,
    Quantize,
    ReestimateNorms,
    Smooth,
    Ternarize,
)

CASES = [
    Case(
        Quantize(),
        [
            *({"bits": bits} for bits in (1, 16, True)),
            *({"activations": 1}, {"reduce_range": "yes"}, {"activation_bits": 9}, {"activation_ranges": "kl"}),
            *({"group_size": 8}, {"granularity": "group"}, {"ranges": "max"}, {"edge_bits": 32}),
        ],
        kind="integers",
    ),
    Case(Quantize(bits=4, edge_bits=8, learn=True, activation_bits=4), variant="learned"),
    Case(Quantize(bits=3, granularity="group", group_size=4, activations=False), variant="groups"),
    Case(Quantize(bits=4, symmetric=False, activation_ranges="mse"), variant="asymmetric"),
    Case(FixedPoint(bits=6), [{"bits": 9}, {"granularity": "group"}]),
    Case(MixedPrecision(bits=5.0), [{"bits": 1.5}, {"choices": [4]}, {"choices": [1, 8]}], acting={"bits": 4.0}),
    Case(Binarize(edges=True), [{"granularity": "group"}, {"edges": 1}]),
    Case(
        Ternarize(edges=True),
        [{"scales": 3}, {"granularity": "none"}, {"scales": 2, "granularity": "tensor"}],
        kind="few values",
    ),
    Case(Ternarize(scales=2, edges=True), variant="two scales"),
    Case(Cluster(values=8), [{"values": 1}, {"values": 257}], kind="shared values"),
    Case(Cluster(values=8, keep_zeros=False), variant="any zeros"),
    Case(HalfPrecision(), [{"dtype": "float32"}]),
    Case(HalfPrecision(dtype="bfloat16"), variant="bfloat16"),
    Case(Equalize(), [{"include": 1}], kind="values"),
    Case(CorrectBias(), [{"exclude": 1}], idle=True),
    Case(ReestimateNorms(examples=64, batch_size=32), [{"examples": 1}, {"batch_size": 0}], models=("cnn",)),
    Case(Smooth(), [{"alpha": 1.5}, {"alpha": -0.1}, {"alpha": "half"}], models=("attention", "cnn", "mlp")),
    Case(AdaRound(steps=50), [{"bits": 1}, {"bits": 16}, {"steps": 0}, {"steps": 1.5}]),
    Case(GPTQ(group_size=8), [{"bits": 9}, {"group_size": -1}, {"damping": 0}, {"damping": 1}]),
]
