"""One attack against one victim with one seed: the piece of work that is done once, anywhere, and kept."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nutlet.attacks.base import Attack, AttackerKnowledge
from nutlet.attacks.extraction.surrogate import Surrogate
from nutlet.data.examples import Examples
from nutlet.errors import ModelError
from nutlet.jobs import Job, Result, Workers
from nutlet.oracle import Disclosure, Oracle, Source
from nutlet.tasks.predict import predict

__all__ = ["attack_job", "attempted", "baseline_job", "clone_alone", "run_attack"]

Trial = tuple[str, str]
"""Name of an attack, and of the release that it was tried on."""


def attempted(
    workers: Workers, jobs: Mapping[tuple[str, str, int], Job], title: str
) -> tuple[dict[Trial, list[Result]], dict[Trial, Exception]]:
    """Do the jobs of attacks, by attack, release and seed, and let none that fails end the others.

    Returns:
        The results of all seeds in order, and the first error of those trials of which a seed failed.
    """
    results: dict[Trial, list[Result]] = defaultdict(list)
    failures: dict[Trial, Exception] = {}
    for (name, release, _), outcome in zip(jobs, workers.attempt(list(jobs.values()), title), strict=True):
        if isinstance(outcome, Exception):
            failures.setdefault((name, release), outcome)
        else:
            results[name, release].append(outcome)
    return {trial: seeds for trial, seeds in results.items() if trial not in failures}, failures


def run_attack(
    attack: Attack,
    source: Source,
    answers: Disclosure,
    knowledge: AttackerKnowledge,
    budgets: Sequence[int],
    evaluation: Examples,
) -> Result:
    """Run ``attack`` and return what it got, as arrays.

    Returns:
        ``queries`` of each loot and, where the attack gives them, ``outputs`` of its clones on the evaluation inputs
        ``(loots, E, ...)``, ``images``, ``shares`` and ``facts``; ``sent`` is what the ledger counted, ``seconds``
        what it took (the only field that differs from run to run).

    Raises:
        ModelError: the attack gave nothing, or no clone where it should.
        Exception: whatever the attack raises.
    """
    start = time.perf_counter()
    oracle = Oracle(source, answers=answers, budget=max(budgets), client=type(attack).__name__, task=knowledge.task)
    queries: list[int] = []
    outputs, facts, images, shares = [], [], [], []
    for loot in attack.run(oracle, knowledge, budgets):
        queries.append(loot.queries)
        if loot.clone is not None:
            outputs.append(predict(loot.clone, evaluation).numpy())
        if loot.images is not None:
            images.append(loot.images.numpy())
        if loot.share is not None:
            shares.append(loot.share)
        if loot.facts is not None:
            facts.append(loot.facts)
    if (attack.goal == "clone" and len(outputs) < len(queries)) or not queries:
        raise ModelError(f"{type(attack).__name__} gave {len(outputs)} clones; expected one for each budget")
    result: dict[str, Any] = {"queries": queries, "sent": oracle.queries, "seconds": time.perf_counter() - start}
    if outputs:
        result["outputs"] = np.stack(outputs)
    if images:
        result["images"] = np.stack(images)
    if shares:
        result["shares"] = shares
    if facts:
        result["facts"] = facts
    return result


def clone_alone(
    surrogate: Surrogate, transfer: Examples, budgets: Sequence[int], seed: int, evaluation: Examples
) -> Result:
    """Train the thief on his own labels, without the victim: what the queries are to be measured against.

    Returns:
        ``outputs`` on the evaluation inputs, ``(budgets, E, ...)``.
    """
    import torch

    classes = predict(surrogate.model(seed), evaluation.subset(slice(0, 1))).shape[1]
    order = torch.randperm(len(transfer), generator=torch.Generator().manual_seed(seed))
    rows = []
    for budget in sorted(budgets):
        known = transfer.subset(order[:budget])
        rows.append(predict(surrogate.train_on_targets(known, classes, seed=seed), evaluation).numpy())
    return {"outputs": np.stack(rows)}


def attack_job(
    attack: Attack,
    source: Source,
    answers: Disclosure,
    knowledge: AttackerKnowledge,
    budgets: Sequence[int],
    evaluation: Examples,
    title: str,
) -> Job:
    """Return the job that runs ``attack``; it costs as much as the trainings of its clones."""
    arguments = {
        "attack": attack,
        "source": source,
        "answers": answers,
        "knowledge": knowledge,
        "budgets": tuple(sorted(budgets)),
        "evaluation": evaluation,
    }
    return Job(run_attack, arguments, title, cost=_steps(knowledge.surrogate, budgets))


def baseline_job(
    surrogate: Surrogate, transfer: Examples, budgets: Sequence[int], seed: int, evaluation: Examples
) -> Job:
    """Return the job that trains the thief on his own labels."""
    arguments = {
        "surrogate": surrogate,
        "transfer": transfer,
        "budgets": tuple(sorted(budgets)),
        "seed": seed,
        "evaluation": evaluation,
    }
    return Job(clone_alone, arguments, "without the victim", cost=_steps(surrogate, budgets))


def _steps(surrogate: Surrogate | None, budgets: Sequence[int]) -> float:
    return sum(surrogate.steps(budget) for budget in budgets) / 1000 if surrogate else 0.1
