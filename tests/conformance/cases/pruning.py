"""Cases of the pruning family."""

from conformance.cases.case import Case
from nutlet.methods import DropBlocks, PruneChannels, PruneSecondOrder, PruneWeights

CASES = [
    Case(DropBlocks(drop=1), [{"drop": 0}, {"drop": "1"}, {"drop": 1.5}, {}], kind="depth"),
    Case(
        PruneChannels(ratio=0.3),
        [{"ratio": 1}, {"macs": 0}, {"ratio": 0.5, "macs": 0.5}, {"ratio": 0.5, "multiple_of": 0}, {}],
        kind="width",
    ),
    Case(
        PruneWeights(sparsity=0.5),
        [{}, {"sparsity": 1}, {"sparsity": -0.1}, {"sparsity": 50}, {"sparsity": 0.5, "distribution": "x"}],
        kind="mask",
    ),
    Case(
        PruneWeights(pattern="2:4", criterion="activation"),
        [
            {"pattern": "4:2"},
            {"pattern": "2-4"},
            {"pattern": "2:4", "sparsity": 0.6},
            {"pattern": "2:4", "distribution": "erk"},
            {"pattern": "2:4", "block": [1, 4]},
            {"sparsity": 0.5, "criterion": "x"},
        ],
        variant="2:4",
    ),
    Case(
        PruneWeights(sparsity=0.5, pattern="block", block=(2, 2), criterion="taylor", distribution="uniform"),
        [
            {"sparsity": 0.5, "pattern": "block"},
            {"sparsity": 0.5, "pattern": "block", "block": [4]},
            {"sparsity": 0.5, "pattern": "block", "block": [0, 4]},
            {"sparsity": 0.5, "block": [1, 4]},
        ],
        variant="blocks",
    ),
    Case(
        PruneSecondOrder(sparsity=0.5),
        [{}, {"sparsity": 50}, {"sparsity": 0.5, "damping": 0}, {"pattern": "2:4", "sparsity": 0.4}],
    ),
    Case(PruneSecondOrder(pattern="2:4"), variant="2:4"),
    Case(PruneWeights(sparsity=0.5, distribution="erk"), variant="erk"),
    Case(PruneWeights(sparsity=0.5, distribution="sensitivity"), variant="sensitivity"),
]
