"""Cases of the pruning family."""

from conformance.cases.case import Case
from nutlet.methods import DropBlocks, PruneChannels, PruneWeights

CASES = [
    Case(DropBlocks(drop=1), [{"drop": 0}, {"drop": "1"}, {"drop": 1.5}, {}], kind="depth"),
    Case(
        PruneChannels(ratio=0.3),
        [{"ratio": 1}, {"macs": 0}, {"ratio": 0.5, "macs": 0.5}, {"ratio": 0.5, "multiple_of": 0}, {}],
        kind="width",
    ),
    Case(
        PruneWeights(sparsity=0.5),
        [{"sparsity": 1}, {"sparsity": -0.1}, {"sparsity": 50}, {"sparsity": 0.5, "distribution": "x"}],
        kind="mask",
    ),
]
