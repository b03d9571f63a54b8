"""Two audits as one would measure them: a full one, before and after, and the least that there can be."""

from __future__ import annotations

from typing import Any

from nutlet.report.standards import findings


def estimate(value: float, spread: float | None = 0.006) -> dict[str, Any]:
    """Give a mean over three seeds with its interval, or without a spread the value of one seed."""
    if spread is None:
        return {"value": value, "low": None, "high": None, "values": [value]}
    values = [value - spread / 2, value, value + spread / 2]
    return {"value": value, "low": value - spread, "high": value + spread, "values": values}


def curve(
    agreement: list[float], original: list[float] | None, accuracy: list[float], budgets: tuple[int, ...]
) -> list[dict[str, Any]]:
    return [
        {
            "queries": queries,
            "agreement": estimate(agreement[i]),
            "agreement_original": estimate(original[i]) if original else None,
            "agreement_where_wrong": estimate(0.3 + 0.1 * i, 0.03),
            "accuracy": estimate(accuracy[i]),
            "baseline_agreement": estimate(accuracy[i] - 0.04, 0.01),
            "chance_agreement": 0.103,
        }
        for i, queries in enumerate(budgets)
    ]


def roc(power: float, steps: int = 1000) -> dict[str, Any]:
    """Give a ROC curve above the diagonal: the smaller the power, the further."""
    fpr = [i / steps for i in range(steps + 1)]
    return {"fpr": fpr, "tpr": [value**power for value in fpr]}


def row(
    measure: str,
    goal: str | None,
    unit: str,
    before: float | None,
    after: float | None,
    verdict: str,
    spread: float | None = None,
    note: str = "",
    words: str = "",
) -> dict[str, Any]:
    """Give a row of a claim; those with words decide it."""
    difference = None
    if before is not None and after is not None:
        ends = (None, None) if spread is None else (after - before - spread, after - before + spread)
        difference = {"value": after - before, "low": ends[0], "high": ends[1]}
    return {"measure": measure, "goal": goal, "unit": unit, "before": before, "after": after,
            "difference": difference, "primary": bool(words), "verdict": verdict, "words": words or verdict,
            "note": note}  # fmt: skip


def attack(
    name: str, goal: str, access: str, source: str, use_when: str, victims: list[dict[str, Any]]
) -> dict[str, Any]:
    return {"name": name, "goal": goal, "access": access, "source": source, "when": use_when,
            "status": "run", "reason": None, "seconds": 31.4, "victims": victims}  # fmt: skip


def left_out(name: str, goal: str, access: str, source: str, use_when: str, reason: str) -> dict[str, Any]:
    return {**attack(name, goal, access, source, use_when, []), "status": "not run", "reason": reason, "seconds": None}


def facts(nodes: int, named: bool) -> dict[str, Any]:
    names = [f"/features/{index}/Conv" for index in range(20)] if named else []
    return {
        "format": "ONNX",
        "encrypted": False,
        "readable names": names,
        "metadata": {"producer": "pytorch 2.13.0" if named else None, "description": None},
        "layers": nodes,
        "weights in one piece": True,
    }


def full_audit() -> dict[str, Any]:
    """Build the audit of a compressed file against its original: three seeds, every goal."""
    budgets = (250, 1000, 4000)
    before, after = "original.onnx", "model.onnx"

    def clones(old: list[float], new: list[float], sent: int) -> list[dict[str, Any]]:
        task = [value - 0.07 for value in new]
        return [
            {"artifact": before, "queries_sent": sent, "curve": curve(old, old, task, budgets),
             "queries_to": {"0.90": 1130.4 if old[-1] > 0.9 else None, "0.95": None}},
            {"artifact": after, "queries_sent": sent, "curve": curve(new, [v - 0.01 for v in new], task, budgets),
             "queries_to": {"0.90": 940.0 if new[-1] > 0.93 else None, "0.95": None}},
        ]  # fmt: skip

    def membership(auc: tuple[float, float], strict: tuple[float, float], power: tuple[float, float]) -> list[Any]:
        return [
            {"artifact": name, "queries_sent": 6000, "auc": estimate(auc[i], 0.012), "roc": roc(power[i]),
             "tpr_at": [{"fpr": 0.001, "tpr": estimate(strict[i], strict[i] / 3), "claimable": True},
                        {"fpr": 0.01, "tpr": estimate(2.7 * strict[i], strict[i]), "claimable": True}]}
            for i, name in enumerate((before, after))
        ]  # fmt: skip

    audit = {
        "schema": 1,
        "nutlet": "0.1.0",
        "created": "2026-11-03T15:20:00+00:00",
        "command": "nutlet audit model.onnx --against original.onnx --data fashion.npz --transfer train.npz --seeds 3",
        "environment": {"cpu": "a processor", "cores": 2, "versions": {"onnxruntime": "1.22.0", "torch": "2.13.0"}},
        "seconds": 1284.2,
        "protocol": {
            "budgets": list(budgets),
            "seeds": [0, 1, 2],
            "answers": "probabilities",
            "transfer": {"name": "train.npz", "kind": "same distribution", "examples": 30000, "own_labels": True},
            "thief": {"architecture": "unknown", "start": "scratch", "parameters": 38282,
                      "steps": {"250": 979, "1000": 1359, "4000": 2118}},
            "evaluation": {"examples": 2000, "inputs_sent": 12000},
            "members": {"members": 1000, "non_members": 1000, "smallest_fpr": 0.001, "training_data_used_again": True,
                        "shadow_models": 16, "blind_auc": estimate(0.501, 0.01)},
            "price": {"per_query": 0.001, "currency": "USD"},
        },
        "artifacts": [
            {"name": before, "role": "before", "bytes": 1_094_321, "sha256": "ab" * 32, "accuracy": 0.8979,
             "accuracy_low": 0.8838, "accuracy_high": 0.9104},
            {"name": after, "role": "after", "bytes": 179_904, "sha256": "cd" * 32, "accuracy": 0.8931,
             "accuracy_low": 0.8788, "accuracy_high": 0.9059},
        ],
        "attacks": [
            attack("Knockoff", "clone", "labels", "Orekondy et al. 2019, arXiv:1812.02766",
                   "the plain attack: inputs at hand, answers trained on",
                   clones([0.824, 0.893, 0.930], [0.831, 0.904, 0.937], 12000)),
            attack("ActiveThief", "clone", "probabilities", "Pal et al. 2020", "a small budget, many inputs",
                   clones([0.79, 0.901, 0.941], [0.80, 0.915, 0.9435], 12000)),
            attack("JacobianAugmentation", "clone", "labels", "Papernot et al. 2017, arXiv:1602.02697",
                   "only a handful of inputs at hand", clones([0.61, 0.72, 0.81], [0.62, 0.74, 0.83], 12000)),
            attack("LiRA", "membership", "probabilities", "Carlini et al. 2022, arXiv:2112.03570",
                   "the strongest, where shadow models can be trained",
                   membership((0.609, 0.574), (0.0158, 0.0083), (0.52, 0.62))),
            attack("LossThreshold", "membership", "probabilities", "Yeom et al. 2018", "costs nothing",
                   membership((0.541, 0.532), (0.001, 0.0012), (0.92, 0.94))),
            attack("LogitSubspace", "width", "logits", "Carlini et al. 2024, arXiv:2403.06634",
                   "more outputs than hidden width",
                   [{"artifact": name, "queries_sent": 800, "facts": {"width": 64}, "share": estimate(1.0, 0.0)}
                    for name in (before, after)]),
            attack("FileLeaks", "file", "file", "nutlet", "the file can be downloaded", [
                {"artifact": before, "queries_sent": 0, "facts": facts(21, named=True), "share": estimate(0.83, None)},
                {"artifact": after, "queries_sent": 0, "facts": facts(19, named=False), "share": estimate(0.5, None)},
            ]),
            attack("Reuse", "reuse", "file", "Yosinski et al. 2014", "a related task with few labels",
                   [{"artifact": before, "queries_sent": 0, "share": estimate(0.71)},
                    {"artifact": after, "queries_sent": 0, "share": estimate(0.69)}]),
            attack("ModelInversion", "inversion", "file", "Fredrikson et al. 2015", "the classes are people",
                   [{"artifact": name, "queries_sent": 0, "share": estimate(0.1, 0.1)} for name in (before, after)]),
            left_out("ExactExtraction", "weights", "logits", "Carlini et al. 2020", "small ReLU networks in float64",
                     "needs logits; the victim shows probabilities"),
        ],
        "claims": [
            {"claim": "smaller attack surface", "rows": [
                row("Bytes of the file", None, "bytes", 1_094_321, 179_904, "no vote"),
                row("Readable names in the file", "file", "count", 20, 0, "no vote"),
                row("Members found at 0.1 % FPR, LiRA", "membership", "share", 0.0158, 0.0083, "no vote", 0.0041),
                row("AUC, LiRA", "membership", "share", 0.609, 0.574, "harder", 0.02,
                    words="harder, by 3.5 points (1.5 to 5.5)"),
            ]},
            {"claim": "harder to extract", "rows": [
                row("Agreement at 4,000 queries, ActiveThief", "clone", "share", 0.941, 0.9435, "the same", 0.006,
                    words="the same within 2.0 points: any difference is below 0.8 points"),
                row("Queries to 90 % agreement, Knockoff", "clone", "queries", 1130.4, 940.0, "no vote", 95.0),
                row("Queries to 95 % agreement, Knockoff", "clone", "queries", None, None, "not measured",
                    note="neither reached within 4,000 queries"),
            ]},
            {"claim": "worth less to a thief", "rows": [
                row("Accuracy after reuse on another task", "reuse", "share", 0.71, 0.69,
                    "harder only with lost accuracy", 0.012,
                    "goes with the accuracy that the file itself lost: no protection",
                    "harder only with lost accuracy"),
                row("Lead over a start from nothing", "reuse", "points", 14.2, 12.9, "no vote", 2.1),
            ]},
        ],
        "warnings": ["Compression trained on the members again; the original was not."],
        "sentence": "Compression made the file no harder to copy by asking (94.4 % agreement after 4,000 queries, "
                    "before 94.1 %) and halved what it tells about its training data.",
    }  # fmt: skip
    return {**audit, "findings": findings(audit)}


def small_audit() -> dict[str, Any]:
    """Build the least audit: one file, one seed, one budget, no membership, most attacks not run."""
    point = {"queries": 500, "agreement": estimate(0.71, None), "accuracy": estimate(0.68, None)}
    audit = {
        "schema": 1,
        "nutlet": "0.1.0",
        "created": "2026-11-03T15:20:00+00:00",
        "command": "nutlet audit model.onnx --data digits.npz",
        "environment": {},
        "seconds": 8.0,
        "protocol": {
            "budgets": [500], "seeds": [0], "answers": "labels",
            "transfer": {"name": "noise", "kind": "noise", "examples": 500, "own_labels": False},
            "thief": {"architecture": "unknown", "start": "scratch"},
            "evaluation": {"examples": 300, "inputs_sent": 300}, "members": None, "price": None,
        },
        "artifacts": [{"name": "model.onnx", "role": "after", "bytes": None, "accuracy": None}],
        "attacks": [
            attack("Knockoff", "clone", "labels", "Orekondy et al. 2019", "the plain attack",
                   [{"artifact": "model.onnx", "queries_sent": 500, "curve": [point], "queries_to": None}]),
            left_out("ActiveThief", "clone", "probabilities", "Pal et al. 2020", "the budget is small",
                     "needs probabilities; the victim shows labels"),
            left_out("LiRA", "membership", "probabilities", "Carlini et al. 2022", "the strongest",
                     "needs candidates for membership, which was not given"),
            left_out("FileLeaks", "file", "file", "nutlet", "the file can be downloaded",
                     "needs the shipped file, which was not given"),
        ],
        "claims": [
            {"claim": "smaller attack surface", "rows": []},
            {"claim": "harder to extract",
             "rows": [row("Agreement at 500 queries", "clone", "share", None, 0.71, "not measured")]},
        ],
        "warnings": [],
        "sentence": "A copy agrees with the file on 71.0 % of inputs after 500 queries; nothing was compared.",
    }  # fmt: skip
    return {**audit, "findings": findings(audit)}
