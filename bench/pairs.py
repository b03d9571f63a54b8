"""What each method does to the constraints that another has put on before it: every ordered pair, on tiny models.

    python bench/pairs.py [METHOD+METHOD ...]

Runs the conformance check of each pair of methods (tests/conformance/test_pairs.py, one configuration of a method; its
variants are in `make test-all`), and counts the layers on which a constraint of the first is

- ``carried``: the same values after, or the kept slices of them; a mask that has grown counts as well;
- ``refitted``: the same format with other values, for weights that changed, or moved by training;
- ``replaced``: by a format of fewer values;
- ``dissolved``: gone, because what it was made for is gone: a mask on a matrix that became two factors;
- ``removed``: gone with its layer.

A pair with nothing to carry has one row, ``failed`` 0; one whose check fails, ``failed`` 1.
``bench/tables.py`` makes the table in the docs of the rows.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from rows import ROOT, Rows

sys.path.insert(0, str(ROOT / "tests"))

import tiny
from conformance.examples import EXAMPLES, body_of
from conformance.test_pairs import check_pair, models_of
from nutlet.compression.compressed import Compressed
from nutlet.constraints import Quantizer
from nutlet.constraints.stack import Constraint, Mask, constraints
from nutlet.data.examples import Data
from nutlet.graph.scope import Layer

OUTCOMES = ("carried", "refitted", "replaced", "dissolved", "removed", "failed")


def one_of_each() -> list[str]:
    """Return the name of one configuration of every method, the first that the suite has."""
    first: dict[str, str] = {}
    for name, method in EXAMPLES.items():
        first.setdefault(type(method).__name__, name)
    return sorted(first.values())


def layers(result: Compressed) -> dict[str, nn.Module]:
    return {name: layer for name, layer in body_of(result.model).named_modules() if isinstance(layer, Layer)}


def outcomes(one: Compressed, both: Compressed) -> Counter[str]:
    """Count what became of the constraints in ``one``."""
    found: Counter[str] = Counter()
    after = layers(both)
    for name, old in layers(one).items():
        new = [layer for n, layer in after.items() if n == name or n.startswith(name + ".")]
        for constraint in constraints(old):
            found["removed" if not new else outcome(constraint, constraints(new[0]))] += 1
    return found


def outcome(old: Constraint, stack: list[Constraint]) -> str:
    same = [c for c in stack if type(c) is type(old)]
    if same:
        return "carried" if carried(old, same[0]) else "refitted"
    replaced = isinstance(old, Quantizer) and any(isinstance(c, Quantizer) for c in stack)
    return "replaced" if replaced else "dissolved"


def carried(old: Constraint, new: Constraint) -> bool:
    if isinstance(old, Mask) and isinstance(new, Mask) and old.mask.shape == new.mask.shape:
        return not bool((new.mask & ~old.mask).any())
    before, after = old.state_dict(), new.state_dict()
    return before.keys() == after.keys() and all(within(before[key], after[key]) for key in before)


def within(old: Tensor, new: Tensor) -> bool:
    """Whether all values of ``new`` are values of ``old``; of a mask, that it is no larger."""
    return new.numel() <= old.numel() and (old.dtype == torch.bool or bool(torch.isin(new, old).all()))


def measure(first: str, second: str) -> None:
    kind = models_of(first, second)[0]
    model, data = tiny.tiny(kind)

    def make(wanted: str) -> tuple[nn.Module, Data]:
        assert wanted == kind
        return copy.deepcopy(model), data

    rows = Rows("pairs", f"{first}+{second}", [0])
    try:
        with tempfile.TemporaryDirectory() as folder:
            one, both, *_ = check_pair(first, second, kind, make, Path(folder))
        found = outcomes(one, both)
    except Exception as error:  # the row says that it failed, the log why
        print(f"{first}+{second}: {type(error).__name__}: {error}", flush=True)
        found = Counter(failed=1)
    for name in OUTCOMES:
        if found[name] or (name == "failed" and not found):
            rows.add(name, found[name], "layers")
    rows.write()


def main() -> None:
    cases = [tuple(case.split("+")) for case in sys.argv[1:]] or list(product(one_of_each(), repeat=2))
    for first, second in cases:
        if models_of(first, second):
            measure(first, second)
        else:
            print(f"{first}+{second}: no model has what both work on", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
