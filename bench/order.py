"""What the order of two methods costs: every ordered pair of one method of each kind, with a short recovery.

    python bench/order.py [A+B ...]

The Fashion-MNIST convnet (92.65 %, 38 k parameters). Both steps, then one epoch of distillation on 12,000 training
images, then export; accuracy is that of the ONNX file in ONNX Runtime on all 10,000 test images, and size that of the
saved, packed model against the original saved alike. Every pair is kept under NUTLET_BENCH_WORK once it is done: a
killed run goes on from there. ``bench/tables.py`` draws the heat map in the docs from the rows.
"""

from __future__ import annotations

import dataclasses
import sys
from functools import cache
from itertools import permutations

from torch import nn

import nutlet as nl
from nutlet.compression.size import size_of
from nutlet.data.examples import Data
from nutlet.loading import load_data, load_model
from pieces import Piece, piece
from rows import DATA, WORK, Rows
from shipped import accuracy_of

FOLDER = WORK / "order"
SEED = 0
IMAGES = 12_000
RECOVERY = nl.Distill(epochs=1)

METHODS: dict[str, nl.Method] = {
    "channels": nl.PruneChannels(macs=0.5, multiple_of=4),
    "low rank": nl.Factorize(decomposition="whitened", parameters=0.6),
    "mask": nl.PruneWeights(sparsity=0.8),
    "2:4": nl.PruneSecondOrder(pattern="2:4"),
    "int8": nl.Quantize(fold=False),
    "int4": nl.Quantize(bits=4, learn=True),
    "ternary": nl.Ternarize(),
    "codebook": nl.Cluster(values=16),
    "bias": nl.CorrectBias(),
    "student": nl.Student(width=0.75, start="inherited"),
}


@cache
def fashion() -> Data:
    data = load_data(str(DATA / "fashion_mnist.npz"), mean=(0.2860,), std=(0.3530,), validation=0.02, seed=SEED)
    return dataclasses.replace(data, train=data.train.subset(slice(0, IMAGES)))


@cache
def original() -> nn.Module:
    return load_model(f"{DATA / 'models' / 'arch.py'}:FashionConvNet", DATA / "models" / "fmnist_convnet.pt")


def measured(names: tuple[str, ...]) -> Piece:
    """Run the steps of ``names`` and the recovery, and measure the file; without names the original as it is."""
    folder = FOLDER / ("+".join(names) or "original").replace(":", "of").replace(" ", "-")

    def make() -> Piece:
        folder.mkdir(parents=True, exist_ok=True)
        if not names:
            example = fashion().calibration.batch(slice(0, 2))[0]
            file = nl.export_onnx(original(), folder / "model.onnx", example)
            return {"accuracy": accuracy_of(file, fashion()), "bytes": size_of(original(), example).bytes_packed}
        result = nl.compress(original(), [*(METHODS[name] for name in names), RECOVERY], fashion(), seed=SEED)
        return {
            "accuracy": accuracy_of(result.export(folder / "model.onnx"), fashion()),
            "bytes": result.steps[-1].size.bytes_packed,
        }

    return piece(folder.with_suffix(".npz"), make)


def main() -> None:
    cases = [tuple(case.split("+")) for case in sys.argv[1:]]
    cases = cases or [*((name,) for name in METHODS), *permutations(METHODS, 2)]
    before = measured(())
    for names in cases:
        after = measured(names)
        rows = Rows("order", "+".join(names), [SEED], seconds=float(after["seconds"]))
        rows.add("accuracy_drop_pp", before["accuracy"] - after["accuracy"], "pp")
        rows.add("size_ratio", before["bytes"] / after["bytes"], "x")
        rows.write()


if __name__ == "__main__":
    main()
