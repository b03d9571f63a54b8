"""Write the figures of README.md and docs from bench/results, between markers, so that none is typed by hand.

    python bench/tables.py           rewrite the pages
    python bench/tables.py --check   say which pages are out of date, and fail

A page holds ``<!-- bench: NAME -->`` and ``<!-- end -->``; NAME is one of the functions in TABLES.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heatmap import heatmap
from scatter import Point, scatter

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
MARKED = re.compile(r"(<!-- bench: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

TITLES = {
    "resnet20-int8": "ResNet-20, CIFAR-10: `Quantize` alone",
    "resnet20-small": "ResNet-20, CIFAR-10: four blocks dropped, distilled, quantized",
    "lenet5-small": "LeNet-5, MNIST: channels pruned, factorized, distilled, quantized",
    "lenet300-sparse": "LeNet-300-100, MNIST: 96 % sparse, distilled, quantized",
}
ZSTD = {"lenet300-sparse"}
"""Cases that say how small the download is: their bytes are those after zstd."""
BAR_NAMES = {
    "accuracy_drop_pp": "accuracy lost",
    "test_error_pct": "test error",
    "size_ratio": "smaller",
    "latency_ratio_b1": "batch 1",
    "latency_ratio_b32": "batch 32",
    "speed_over_ort_b1": "batch 1 against ONNX Runtime's own quantizer",
    "speed_over_ort_b32": "batch 32 against ONNX Runtime's own quantizer",
    "gain_pp": "ahead of the rival",
}
AT_MOST = {"accuracy_drop_pp", "test_error_pct"}
DIGITS = {"pp": "{:.2f} points", "%": "{:.2f} %", "x": "{:.2f}x"}


def cases(bench: str = "main_job") -> dict[str, dict[str, dict[str, Any]]]:
    """Return the rows of a bench by case and metric, cases in the order of TITLES and then as they were written."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    path = RESULTS / f"{bench}.json"
    for row in json.loads(path.read_text(encoding="utf-8")) if path.exists() else []:
        found.setdefault(row["case"], {})[row["metric"]] = row
    order = [*TITLES, *(name for name in found if name not in TITLES)]
    return {name: found[name] for name in order if name in found}


def main_job() -> str:
    """One line per case, then what was missed, and where and how it was measured."""
    lines = [
        "| job | accuracy | file | smaller | faster, batch 1 | faster, batch 32 |",
        "|---|---|---|---|---|---|",
    ]
    missed, notes, packed = [], [], []
    for name, rows in cases().items():
        after = 100 - rows["test_error_pct"]["value"]
        before = after + rows["accuracy_drop_pp"]["value"]
        lines.append(
            f"| {TITLES.get(name, name)} | {before:.2f} → {after:.2f}{spread(rows['test_error_pct'])} % | "
            f"{rows['bytes']['value']:,.0f} B{' (zstd)' * (name in ZSTD)} | "
            f"{ratio(rows, 'size_ratio')}{' (zstd)' * (name in ZSTD)} | "
            f"{ratio(rows, 'latency_ratio_b1')} | {ratio(rows, 'latency_ratio_b32')} |"
        )
        if name in ZSTD:
            packed.append(zstd_note(rows))
        missed += [f"- {name}, {text}" for text in misses(rows)]
        any_row = rows["bytes"]
        notes.append(
            f"- `{any_row['command']}`: {where(any_row)}; seed{'s' if len(any_row['seeds']) > 1 else ''} "
            f"{', '.join(map(str, any_row['seeds']))}; {any_row['seconds']:,.0f} s, measuring included"
        )
    waiting = [f"`{name}`" for name in TITLES if name not in cases()]
    if waiting:
        notes.append(f"- No result yet, so no figure here: {', '.join(waiting)}")
    found = ["Goals set beforehand that these figures miss:", "", *missed] if missed else ["No goal was missed."]
    return "\n".join([*lines, "", *packed, *found, "", "How they were made:", "", *notes])


def headline() -> str:
    """The jobs in one short table, and what it was measured on."""
    found = cases()
    lines = ["| job | accuracy | smaller | faster |", "|---|---|---|---|"]
    for name, rows in found.items():
        after = 100 - rows["test_error_pct"]["value"]
        before = after + rows["accuracy_drop_pp"]["value"]
        lines.append(
            f"| {TITLES.get(name, name)} | {before:.2f} → {after:.2f} % | "
            f"{rows['size_ratio']['value']:.1f}x{' (zstd)' * (name in ZSTD)} | "
            f"{rows['latency_ratio_b1']['value']:.1f}x |"
        )
    places = sorted({where(rows["bytes"]) for rows in found.values()})
    return "\n".join([*lines, "", f"Measured in ONNX Runtime on {'; '.join(places)}, batch 1."])


def size_and_accuracy() -> str:
    """Every file of ResNet-20 on CIFAR-10: those of the jobs by name, those of one method each as rings."""
    jobs = cases()
    int8 = {name: row["value"] for name, row in jobs["resnet20-int8"].items()}
    small = {name: row["value"] for name, row in jobs["resnet20-small"].items()}
    original = 100 - int8["test_error_pct"] + int8["accuracy_drop_pp"]
    points = [Point(1.0, original, "original", "original", "above")]
    for rows in cases("families").values():
        if rows["size_ratio"]["value"] > 1:
            kind = "other" if rows["size_ratio"]["case"].endswith(("-brevitas", "-torch-pruning")) else "ours"
            points.append(Point(rows["size_ratio"]["value"], rows["accuracy_pct"]["value"], kind))
    points += [
        Point(int8["ort_size_ratio"], 100 - int8["ort_test_error_pct"], "other", "ONNX Runtime's own", "left"),
        Point(int8["size_ratio"], 100 - int8["test_error_pct"], "ours", "Quantize", "above"),
        Point(
            small["size_ratio"],
            100 - small["test_error_pct"],
            "ours",
            "blocks dropped, 8 bits",
            "above",
        ),
    ]
    title = "ResNet-20 on CIFAR-10; rings: one method (green) or another tool (grey) each"
    return scatter(title, points, 86)


def ratio(rows: dict[str, dict[str, Any]], metric: str) -> str:
    """Return a ratio with its spread."""
    return f"{rows[metric]['value']:.2f}{spread(rows[metric])}x"


def zstd_note(rows: dict[str, dict[str, Any]]) -> str:
    """Say what is compared where a row holds bytes after zstd; older results lack the ratio of like with like."""
    text = "(zstd): the compressed file after zstd, against the original's file as it lies on disk"
    if "size_ratio_zstd" in rows:
        text += f"; after zstd both, it is {ratio(rows, 'size_ratio_zstd')} smaller"
    return f"{text}.\n"


def spread(row: dict[str, Any]) -> str:
    """Return the standard deviation over the seeds, as it stands behind a figure."""
    return f" ± {row['spread']:.2f}" if len(row["seeds"]) > 1 else ""


def misses(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield a phrase for every bar that a case does not reach."""
    for metric, row in rows.items():
        value, bar = row["value"], row["bar"]
        if bar is not None and (value > bar if metric in AT_MOST else value < bar):
            form = DIGITS[row["unit"]]
            limit = "at most" if metric in AT_MOST else "at least"
            yield f"{BAR_NAMES.get(metric, metric)}: {form.format(value)}, the goal was {limit} {form.format(bar)}"


def where(row: dict[str, Any]) -> str:
    """Name the processor and whether it has what makes int8 fast."""
    if "cpu" not in row:
        return "processor not recorded"
    fast = {True: "with int8 dot products (VNNI)", False: "without int8 dot products (no VNNI)"}
    return f"{row['cpu']} {fast.get(row['int8_dot_product'], 'of unknown instruction sets')}, one thread"


def quantizers() -> str:
    """Our 8-bit file beside the one that ONNX Runtime's own quantizer makes of the same network."""
    rows = cases()["resnet20-int8"]
    figure = {name: row["value"] for name, row in rows.items()}
    original = 100 - figure["test_error_pct"] + figure["accuracy_drop_pp"]
    lines = [
        "| ResNet-20, CIFAR-10, 10,000 test images | accuracy | bytes | faster, batch 1 | faster, batch 32 |",
        "|---|---|---|---|---|",
        f"| fp32, ONNX Runtime | {original:.2f} % | {figure['bytes'] * figure['size_ratio']:,.0f} | 1.00x | 1.00x |",
    ]
    for title, prefix in (("`Quantize()`", ""), ("ONNX Runtime's own quantizer (static, per channel)", "ort_")):
        lines.append(
            f"| {title} | {100 - figure[prefix + 'test_error_pct']:.2f}{spread(rows[prefix + 'test_error_pct'])} % | "
            f"{figure[prefix + 'bytes']:,.0f} | "
            f"{figure[prefix + 'latency_ratio_b1']:.2f}x | {figure[prefix + 'latency_ratio_b32']:.2f}x |"
        )
    return "\n".join([*lines, "", f"Measured on: {where(rows['bytes'])}."])


def figure(row: dict[str, Any] | None, digits: int = 1) -> str:
    """Return a figure with the standard deviation over its seeds, or a dash."""
    if row is None:
        return "–"
    text = f"{row['value']:.{digits}f}"
    return f"{text} ± {row['spread']:.{digits}f}" if len(row["seeds"]) > 1 and row["spread"] else text


def made(rows: list[dict[str, Any]]) -> str:
    """Say by which script, seeds and processor rows were made."""
    script = rows[0]["command"].split()[:2]
    seeds = sorted({len(row["seeds"]) for row in rows})
    spread = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"Made by `{' '.join(script)}`, {spread} seed{'s' * (seeds[-1] > 1)}, on {where(rows[0])}; ± is their spread."
    )


def extraction() -> str:
    """Agreement of our best attack and of ART's with the shipped file, by number of queries."""
    found = cases("extraction")
    if not found:
        return "No result yet."
    budgets = ("250", "1000", "4000", "10000")
    lines = [
        f"| agreement with the file, % | {' | '.join(f'{int(n):,} queries' for n in budgets)} | ahead, points |",
        f"|---|{'---|' * (len(budgets) + 1)}",
    ]
    for name, rows in found.items():
        for title, prefix, lead in (
            (f"{name}: ours", "", None),
            (f"{name}: ART, 20 epochs", "art_", "gain_over_art_pp"),
            (f"{name}: ART, as many steps as ours", "art_equal_steps_", "gain_over_art_equal_steps_pp"),
        ):
            cells = [figure(rows.get(f"{prefix}agreement@{budget}")) for budget in budgets]
            lines.append(f"| {title} | {' | '.join(cells)} | {figure(rows.get(lead or ''))} |")
    every = [row for rows in found.values() for row in rows.values()]
    return "\n".join([*lines, "", made(every)])


def membership() -> str:
    """What membership attacks find, what they cost, and what two releases add."""
    found = cases("membership")
    if not found:
        return "No result yet."
    lines = [
        "| attack | AUC | members found at 0.1 % false alarms | at 1 % | seconds | LiRA-64 offline over it |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in found.items():
        if name.startswith("two-version"):
            continue
        cells = [figure(rows.get("auc"), 3), figure(rows.get("tpr_at_0.1pct_fpr"), 4),
                 figure(rows.get("tpr_at_1pct_fpr"), 4), figure(rows.get("seconds"), 0),
                 figure(rows.get("speedup"), 1) + ("x" if "speedup" in rows else "")]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "Two releases: the compressed file, the original, and both in the attacker's hands (AUC).",
        "",
        "| compressed file | alone | original alone | both |",
        "|---|---|---|---|",
    ]
    for name, rows in found.items():
        if name.startswith("two-version-") and "two_version_auc" in rows:
            cells = [
                figure(rows.get(f"{part}_auc"), 3) for part in ("compressed_alone", "original_alone", "two_version")
            ]
            lines.append(f"| {name.removeprefix('two-version-')} | {' | '.join(cells)} |")
    every = [row for rows in found.values() for row in rows.values()]
    return "\n".join([*lines, "", made(every)])


def theft() -> str:
    """Compression against theft: one line per file."""
    found = cases("compression_vs_theft")
    if not found:
        return "No result yet."
    lines = [
        "| file | accuracy | bytes (zstd) | agreement, 1,000 / 10,000 queries | against the original's, points "
        "[95 %], 10,000 | with the original, 10,000 | where it is wrong, 10,000 | queries to 90 % | verdict, 250, 1,000"
        ", 4,000, 10,000 | members at 1 % | reuse |",
        f"|---|{'---|' * 10}",
    ]
    words = {1.0: "easier", 0.0: "same", -1.0: "harder"}
    for name, rows in found.items():
        gap = [rows[f"difference{part}@10000"]["value"] for part in ("", "_low", "_high")]
        verdicts = [words[rows[f"verdict@{budget}"]["value"]] for budget in (250, 1000, 4000, 10000)]
        cells = [
            figure(rows["accuracy"], 2), f"{rows['bytes']['value']:,.0f} ({rows['bytes_zstd']['value']:,.0f})",
            f"{figure(rows['agreement@1000'])} / {figure(rows['agreement@10000'])}",
            f"{gap[0]:+.1f} [{gap[1]:+.1f}, {gap[2]:+.1f}]", figure(rows["agreement_original@10000"]),
            figure(rows["agreement_where_wrong@10000"]), figure(rows.get("queries_to_90pct"), 0), " / ".join(verdicts),
            figure(rows.get("tpr_at_1pct_fpr"), 4), figure(rows.get("reuse_accuracy")),
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    every = [row for rows in found.values() for row in rows.values()]
    return "\n".join([*lines, "", made(every)])


FAMILIES = {
    "qat8": "8-bit weights and activations, trained",
    "qat4": "4-bit weights, trained",
    "ternary": "three values per weight, trained",
    "channels2x": "channels removed, half of the work left",
    "channels3x": "channels removed, a third of the work left",
    "lowrank2x": "low rank, half of the parameters left",
    "sparse90": "90 % of the weights zero",
    "nm24": "2 of 4 weights zero",
    "obs50": "50 % zero by second-order pruning, nothing trained; against magnitude",
    "obs50-global": "the same, ranked across layers",
    "obs50-erk": "the same, shares by Erdős-Rényi-Kernel",
    "obs60": "60 % zero by second-order pruning, shared out evenly",
    "equalize8": "8 bits, one scale per layer, ranges equalized; against without",
    "bias4": "4-bit weights, biases corrected; against without",
    "bias3": "3-bit weights, biases corrected; against without",
    "adaround3": "3-bit weights, rounding learned; against rounding to nearest",
    "gptq3": "3-bit weights, errors fed on; against rounding to nearest",
    "lowrank-whitened": "whitened SVD, 80 % of the parameters left, nothing trained; against the plain SVD",
    "lowrank-spatial": "the same, spatial",
    "lowrank-tucker": "the same, Tucker-2",
    "lowrank-cp": "the same, CP",
    "student-half": "student of half the width; against labels alone",
}
"""Cases of the families, in the order of the table; the rows of peers, named CASE-PEER, follow theirs."""
PEERS = {"brevitas": "Brevitas 0.13", "torch-pruning": "Torch-Pruning 1.6"}


def families() -> str:
    """What each family of methods costs on one network, a peer with the same training below it."""
    found = cases("families")
    if not found:
        return "No result yet."
    lines = [
        "| ResNet-20, CIFAR-10, 10,000 test images | epochs | accuracy, % | lost, points | smaller | work left | "
        "ahead of its rival, points |",
        f"|---|{'---|' * 6}",
    ]
    missed = []
    for case, title in FAMILIES.items():
        named = {case: title} | {f"{case}-{peer}": f"– {name}" for peer, name in PEERS.items()}
        for name, label in named.items():
            rows = found.get(name)
            if rows is None:
                continue
            work = f"{100 * rows['macs_share']['value']:.0f} %" if "macs_share" in rows else "–"
            cells = [figure(rows["epochs"], 0), figure(rows["accuracy_pct"], 2), figure(rows["accuracy_drop_pp"], 2),
                     ratio(rows, "size_ratio"), work, figure(rows.get("gain_pp"), 2)]  # fmt: skip
            lines.append(f"| {label} | {' | '.join(cells)} |")
            missed += [f"- {name}, {text}" for text in misses(rows)]
    note = ["", "Goals set beforehand that these figures miss:", "", *missed] if missed else []
    every = [row for rows in found.values() for row in rows.values()]
    return "\n".join([*lines, *note, "", made(every)])


ORDER = ["student", "channels", "low rank", "mask", "2:4", "codebook", "ternary", "int4", "int8", "bias"]
"""Rows and columns of the heat maps: structure first, formats last."""


def zoo() -> str:
    """What each recipe does to architectures of others."""
    nets: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for case, rows in cases("zoo").items():
        net, recipe = case.split("/")
        nets.setdefault(net, {})[recipe] = rows

    def cell(net: str, recipe: str, metric: str) -> str:
        rows = nets[net].get(recipe)
        if rows is None:
            return ""
        return "refused" if "refused" in rows and not metric.startswith("peer") else figure(rows.get(metric), 3)

    lines = [
        "| architecture | int8 moves outputs by | int8 weights by | work left by channels | by Torch-Pruning |",
        "|---|---|---|---|---|",
    ]
    columns = [("int8", "relative_error"), ("weights", "relative_error"), ("channels", "macs_left"),
               ("channels", "peer_macs_left")]  # fmt: skip
    lines += [f"| {net} | {' | '.join(cell(net, *column) for column in columns)} |" for net in sorted(nets)]
    every = [row for recipes in nets.values() for rows in recipes.values() for row in rows.values()]
    return "\n".join([*lines, "", made(every)])


def channels_vs_peer() -> str:
    """Our channels and those of Torch-Pruning, with the same work, fine-tuning and seeds."""
    lines = ["| network, work left at most | ours, % | work | Torch-Pruning, % | work |", "|---|---|---|---|---|"]
    found = cases("channels_vs_peer")
    for case, rows in found.items():
        cells = [figure(rows["accuracy"], 2), figure(rows["macs_share"], 3), figure(rows["peer_accuracy"], 2),
                 figure(rows["peer_macs_share"], 3)]  # fmt: skip
        lines.append(f"| {case.replace('-', ', ')} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", made([row for rows in found.values() for row in rows.values()])])


def order_values(metric: str) -> dict[tuple[str, str], float]:
    """Return a metric of the pairs by their two names."""
    found = cases("order")
    return {
        (first, second): rows[metric]["value"]
        for name, rows in found.items()
        for first, _, second in [name.partition("+")]
        if second
    }


def order_accuracy() -> str:
    title = "Points of accuracy lost: first the row, then the column, then one epoch of recovery"
    return heatmap(title, ORDER, order_values("accuracy_drop_pp"), 1)


def order_size() -> str:
    title = "How many times smaller the saved model is: first the row, then the column"
    return heatmap(title, ORDER, order_values("size_ratio"), 1, best="high")


def order() -> str:
    """The pairs whose order matters most, and each method alone."""
    found = cases("order")
    if not found:
        return "No result yet."
    lost, smaller = order_values("accuracy_drop_pp"), order_values("size_ratio")
    pairs = [(a, b) for a, b in lost if a < b and (b, a) in lost]
    pairs.sort(key=lambda pair: -abs(lost[pair] - lost[pair[::-1]]))
    lines = ["| A, B | A, then B: lost, points (smaller) | B, then A |", "|---|---|---|"]
    for a, b in pairs[:15]:
        cells = [f"{lost[p]:.2f} ({smaller[p]:.1f}x)" for p in ((a, b), (b, a))]
        lines.append(f"| {a}, {b} | {' | '.join(cells)} |")
    lines += ["", "| alone, with the same recovery | lost, points | smaller |", "|---|---|---|"]
    for name in ORDER:
        if name in found:
            alone = found[name]
            lines.append(f"| {name} | {alone['accuracy_drop_pp']['value']:.2f} | {alone['size_ratio']['value']:.1f}x |")
    every = [row for rows in found.values() for row in rows.values()]
    return "\n".join([*lines, "", made(every)])


OUTCOMES = {"carried": "C", "refitted": "F", "replaced": "R", "dissolved": "D", "removed": "–", "failed": "**!**"}


def pairs() -> str:
    """What the second method does to the constraints of the first, by letters."""
    found = cases("pairs")
    if not found:
        return "No result yet."
    firsts = list(dict.fromkeys(name.partition("+")[0] for name in found))
    kept = {name: {w: rows[w]["value"] if w in rows else 0 for w in OUTCOMES} for name, rows in found.items()}
    # What puts no constraint on a layer has nothing to lose; all of these have one row of dots.
    holding = [n for n in firsts if any(max(kept.get(f"{n}+{o}", {"": 0}).values()) > 0 for o in firsts)]
    lines = [f"| first \\ second | {' | '.join(firsts)} |", f"|---|{'---|' * len(firsts)}"]
    for first in holding:
        cells = []
        for second in firsts:
            counts = kept.get(f"{first}+{second}")
            letters = "" if counts is None else "".join(OUTCOMES[what] for what in OUTCOMES if counts[what]) or "·"
            cells.append(letters)
        lines.append(f"| {first} | {' | '.join(cells)} |")
    failed = sum(counts["failed"] > 0 for counts in kept.values())
    summary = f"{len(found)} ordered pairs, {failed} failed. Without a row, for they put no constraint on a weight: "
    summary += ", ".join(name for name in firsts if name not in holding) + "."
    every = [row for rows in found.values() for row in rows.values()]
    return "\n".join([*lines, "", summary, "", made(every)])


def suite() -> str:
    """What the last run of all tests gave."""
    found = cases("suite")
    if not found:
        return "No result yet."
    rows = found["test-all"]
    counts = [f"{rows[name]['value']:,.0f} {name}" for name in ("passed", "failed", "error", "skipped")]
    if rows["mended"]["value"]:
        counts[0] += f" ({rows['mended']['value']:,.0f} of them on the second run, after a correction)"
    row = rows["passed"]
    minutes = f"{row['seconds'] / 60:.0f} minutes"
    return f"The last `make test-all`: {', '.join(counts)}; {minutes} on two busy cores, {where(row)} each."


DRAWINGS = {"docs/order-accuracy.svg": order_accuracy, "docs/order-size.svg": order_size,
            "docs/results.svg": size_and_accuracy}  # fmt: skip
"""Files that are drawn whole."""

TABLES = {
    "headline": headline, "main_job": main_job,
    "quantizers": quantizers, "extraction": extraction, "membership": membership, "theft": theft,
    "families": families, "order": order, "pairs": pairs, "suite": suite,
    "zoo": zoo, "channels_vs_peer": channels_vs_peer,
}  # fmt: skip


def render(text: str) -> str:
    """Return a page with every marked table written anew."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[4]}", text)


def pages() -> list[Path]:
    """Return the pages that hold a table."""
    everything = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in everything if MARKED.search(page.read_text(encoding="utf-8"))]


def stale() -> dict[Path, str]:
    """Return what stands in the files that are not what the results say."""
    wanted = {page: render(page.read_text(encoding="utf-8")) for page in pages()}
    wanted |= {ROOT / name: draw() for name, draw in DRAWINGS.items()}
    return {
        page: text for page, text in wanted.items() if not page.exists() or page.read_text(encoding="utf-8") != text
    }


if __name__ == "__main__":
    old = stale()
    if "--check" in sys.argv[1:] and old:
        sys.exit(f"out of date, run python bench/tables.py: {', '.join(str(page.relative_to(ROOT)) for page in old)}")
    for page, text in old.items():
        page.write_text(text, encoding="utf-8")
        print(f"rewrote {page.relative_to(ROOT)}")
