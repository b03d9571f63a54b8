"""Exact recovery of two-layer ReLU networks through a logits oracle without labels, queries counted.

python bench/recovery.py [CASE ...]
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from nutlet.attacks import RecoverWeights
from nutlet.attacks.base import AttackerKnowledge
from nutlet.attacks.white_box.recover_weights import weight_error
from nutlet.oracle import Disclosure, ModuleSource, Oracle
from rows import Rows

SIZES = {"mlp-10-16-4": (10, 16, 4), "mlp-20-32-10": (20, 32, 10)}
SEEDS = [0, 1, 2]


def run(name: str) -> None:
    inputs, hidden, outputs = SIZES[name]
    rows = Rows("recovery", name, SEEDS)
    for seed in SEEDS:
        torch.manual_seed(seed)
        victim = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)).double()
        oracle = Oracle(ModuleSource(victim), answers=Disclosure("logits"), budget=10_000)
        (loot,) = RecoverWeights().run(oracle, AttackerKnowledge(classes=outputs, shape=(inputs,), seed=seed), [10_000])
        assert loot.clone is not None
        rows.add("relative_error", weight_error(loot.clone, victim), "share", 1e-4)
        rows.add("queries", oracle.queries, "queries")
        rows.add("weights", sum(p.numel() for p in victim.parameters()), "weights")
    rows.write()


if __name__ == "__main__":
    for case in sys.argv[1:] or SIZES:
        run(case)
