"""Cases of the pruning family."""

from conformance.cases.case import Case
from nutlet.methods import (
    DropBlocks,
    LotteryTicket,
    PruneChannels,
    PruneGradually,
    PruneHeads,
    PruneSecondOrder,
    PruneWeights,
    TrainSparse,
)

CASES = [
    Case(DropBlocks(drop=1), [{"drop": 0}, {"drop": "1"}, {"drop": 1.5}, {}], kind="depth"),
    Case(
        PruneChannels(ratio=0.5, multiple_of=4),
        [
            {"ratio": 0.5, "criterion": "x"},
            {"ratio": 1},
            {"macs": 0},
            {"ratio": 0.5, "macs": 0.5},
            {"ratio": 0.5, "multiple_of": 0},
            {},
        ],
        kind="width",
    ),
    Case(
        PruneWeights(sparsity=0.5),
        [{}, {"sparsity": 1}, {"sparsity": -0.1}, {"sparsity": 50}, {"sparsity": 0.5, "distribution": "x"}],
        kind="mask",
    ),
    Case(
        PruneGradually(sparsity=0.5, epochs=1, batch_size=16, lr=0.01),
        [
            {},
            {"sparsity": 1},
            {"sparsity": 50},
            {"sparsity": 0.6, "pattern": "2:4"},
            {"sparsity": 0.5, "distribution": "sensitivity"},
            {"sparsity": 0.5, "fixed": 1},
            {"sparsity": 0.5, "patience": 2},
            {"sparsity": 0.5, "criterion": "x"},
            {"sparsity": 0.5, "ramp": "x"},
            {"sparsity": 0.5, "kd_weight": 2},
            {"sparsity": 0.5, "lr": 0},
        ],
    ),
    Case(
        PruneGradually(
            sparsity=0.5,
            epochs=1,
            batch_size=16,
            lr=0.01,
            criterion="movement",
            ramp="iterative",
            kd_weight=0.0,
            distribution="uniform",
        ),
        variant="movement",
    ),
    Case(PruneGradually(pattern="2:4", epochs=1, batch_size=16, lr=0.01), variant="2:4"),
    Case(
        LotteryTicket(sparsity=0.5, rounds=2, rewind=1, epochs=2, batch_size=16, lr=0.01),
        [
            {},
            {"sparsity": 1},
            {"sparsity": 0.5, "rounds": 0},
            {"sparsity": 0.5, "rewind": 5},
            {"sparsity": 0.5, "rewind": -1},
            {"sparsity": 0.5, "patience": 1},
        ],
    ),
    Case(
        TrainSparse(strength=0.01, epochs=1, batch_size=16, lr=0.01),
        [{"strength": -1}, {"strength": float("nan")}, {"penalty": "l2"}, {"threshold": 1}, {"temperature": 0}],
    ),
    Case(
        TrainSparse(penalty="group", strength=0.01, epochs=1, batch_size=16, lr=0.01, threshold=0.2),
        variant="group",
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
    Case(PruneChannels(ratio=0.5, multiple_of=4, criterion="activation"), variant="activation"),
    Case(PruneChannels(ratio=0.5, multiple_of=4, criterion="taylor", distribution="global"), variant="taylor"),
    Case(PruneChannels(ratio=0.5, multiple_of=4, criterion="second-order"), variant="second-order"),
    Case(
        PruneHeads(ratio=0.5),
        [{}, {"ratio": 0}, {"ratio": 1}, {"ratio": 0.5, "criterion": "x"}, {"ratio": 0.5, "distribution": "erk"}],
        models=("attention",),
    ),
    Case(
        PruneHeads(ratio=0.5, criterion="activation", distribution="global"),
        variant="activation",
        models=("attention",),
    ),
]
