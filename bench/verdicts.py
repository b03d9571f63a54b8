"""What the verdicts of an audit can tell: coverage of intervals, errors on null pairs, planted differences found.

    python bench/verdicts.py simulated                 # coverage, by seeds; two minutes
    python bench/verdicts.py null flip5 flip2          # whole audits of small nets on real data; an hour on one core

Simulated hits have the variances that real clones showed: where examples dominate (agreement, .8 points between seeds)
and where seeds do (a start for another task, 5 points). In the audits the victims are multilayer perceptrons on the
handwritten digits of MNIST, averaged to 7 x 7; a null pair is two nets trained alike from other seeds, a planted one
the same net with a share of its answers, fixed by the input, put to another class. Only one attack runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import nutlet as nl
from nutlet.auditing.scoring import CloneHits, difference_where_wrong, over_seeds, paired_difference
from nutlet.training.loop import Training, supervised, train_on
from nutlet.verdicts import Verdict
from rows import DATA, Rows

Array = npt.NDArray[np.float64]
EXAMPLES = 2_000
DRAWS = 1_000
AUDITS = 12


def hits(random: np.random.Generator, seeds: int, between_seeds: float) -> tuple[Array, Array]:
    """Draw whether clones agree before and after, ``(seeds, E)`` each, with no true difference."""
    hard = random.beta(2.0, 0.2, EXAMPLES)  # how often clones agree on an example: nearly always, or seldom
    sides = []
    for _ in range(2):
        shift = between_seeds * random.standard_normal((seeds, 1))
        sides.append((random.random((seeds, EXAMPLES)) < np.clip(hard + shift, 0, 1)).astype(float))
    return sides[0], sides[1]


def simulated(seeds: int) -> None:
    random = np.random.default_rng(seeds)
    rows = Rows("verdicts", f"simulated-{seeds}", [seeds])
    for name, between_seeds in (("agreement", 0.008), ("reuse", 0.05)):
        truth = float(np.mean([hits(random, 50, between_seeds)[0].mean() for _ in range(200)]))
        paired, alone, widths, found, where = [], [], [], [], []
        for _ in range(DRAWS):
            before, after = hits(random, seeds, between_seeds)
            gap = paired_difference(before, after)
            paired.append(gap.half() >= abs(gap.value))
            widths.append(gap.half())
            one = over_seeds(before)
            alone.append(one.low <= truth <= one.high)
            shifted = after * (random.random(after.shape) > 0.025 / after.mean())
            worse = paired_difference(before, shifted)
            found.append(worse.half() < abs(worse.value))
            wrong = [random.random(EXAMPLES) < 0.1 for _ in range(2)]
            apart = difference_where_wrong(
                CloneHits(before, None, wrong[0], before), CloneHits(after, None, wrong[1], after)
            )
            assert apart is not None
            where.append(apart.half() >= abs(apart.value))
        suffix = "" if name == "agreement" else f"_{name}"
        rows.add(f"coverage{suffix}", float(np.mean(paired)), "share", 0.93)
        rows.add(f"coverage_alone{suffix}", float(np.mean(alone)), "share")
        rows.add(f"coverage_where_wrong{suffix}", float(np.mean(where)), "share")
        rows.add(f"half_width{suffix}", 100 * float(np.mean(widths)), "points")
        if name == "agreement":
            rows.add("found_2.5_points", float(np.mean(found)), "share", 0.75 if seeds >= 3 else None)
    print(rows.case, {metric: round(values[0], 4) for metric, values in rows.values.items()}, flush=True)
    rows.write()


def digits() -> nl.Data:
    file = np.load(DATA / "mnist.npz")

    def examples(part: str, count: int) -> nl.Examples:
        images = torch.from_numpy(file[f"x_{part}"][:count]).float() / 255
        pooled = images.reshape(-1, 7, 4, 7, 4).mean((2, 4)).flatten(1)
        return nl.Examples((pooled - 0.13) / 0.3, torch.from_numpy(file[f"y_{part}"][:count].astype("int64")))

    return nl.split(examples("train", 8_000), examples("test", EXAMPLES))


def victim(data: nl.Data, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(49, 48), nn.ReLU(), nn.Linear(48, 10))
    train_on(net, data.train, Training(epochs=6, batch_size=64, lr=2e-3, optimizer="adamw"), supervised(data.task))
    return net.eval()


def flipped(net: nn.Module, share: float) -> Callable[[Tensor], Tensor]:
    """Answer as ``net`` does, but on a share of all inputs, always the same, name the next class."""

    def answer(x: Tensor) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = net(x)
        mixed = (x.double() * torch.arange(1, x.shape[1] + 1).double().sqrt()).sum(1)
        chosen = (mixed * 1e4 % 1) < share
        return torch.where(chosen[:, None], outputs.roll(1, 1), outputs)

    return answer


def audits(case: str) -> None:
    data = digits()
    counts = dict.fromkeys(Verdict, 0)
    seeds = []
    rows = Rows("verdicts", case, list(range(AUDITS)))
    for number in range(AUDITS):
        net = victim(data, number)
        other = victim(data, 1_000 + number) if case == "null" else flipped(net, {"flip5": 0.05, "flip2": 0.02}[case])
        protocol = nl.Protocol(attacks=("Knockoff",), first_seed=100 * number)
        audit = nl.audit(other, data, net, protocol=protocol)
        (row,) = (row for claim in audit.value["claims"] for row in claim["rows"] if row["primary"])
        counts[Verdict(row["verdict"])] += 1
        seeds.append(len(audit.attack("Knockoff")["victims"][-1]["curve"][-1]["agreement"]["values"]))
        print(case, number, row["words"], f"{seeds[-1]} seeds", flush=True)
    clear = counts[Verdict.HARDER] + counts[Verdict.EASIER] + counts[Verdict.ONLY_LOST_ACCURACY]
    if case == "null":
        rows.add("wrong_share", clear / AUDITS, "share", 0.05)
        rows.add("decided_share", counts[Verdict.SAME] / AUDITS, "share", 0.8)
    else:
        rows.add("found_share", clear / AUDITS, "share", {"flip5": 0.9, "flip2": 0.65}[case])
    rows.add("seeds_needed", float(np.mean(seeds)), "count")
    rows.write()


def main(cases: list[str]) -> None:
    for case in cases or ["simulated", "null", "flip5", "flip2"]:
        if case == "simulated":
            for seeds in (2, 3, 5, 10):
                simulated(seeds)
        else:
            audits(case)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
