"""Several ways of answering side by side: what a copy costs where less is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nutlet.attacks.base import Attack
from nutlet.auditing.extraction import extraction
from nutlet.auditing.records import obstacle
from nutlet.auditing.setup import Materials

__all__ = ["by_answers"]


def by_answers(attacks: Sequence[Attack], m: Materials) -> list[dict[str, Any]]:
    """Return, for each way of answering of the protocol, the best copy of the file that ships: plain JSON.

    Args:
        attacks: those that copy; of each way the ones that can work with it are run.
        m: as for the other sections; the original is not asked.
    """
    found = []
    for shown in m.protocol.compare_answers:
        one = replace(m, artifacts=(m.file,), protocol=replace(m.protocol, answers=shown, compare_answers=()))
        oracle, knowledge = one.oracle(one.file), one.knowledge(one.protocol.first_seed)
        able = [attack for attack in attacks if obstacle(attack, oracle, knowledge) is None]
        section = extraction(able, one) if able else None
        victims = [
            (record["name"], record["victims"][-1])
            for record in (section.records if section else ())
            if record["victims"]
        ]
        name, best = max(victims, key=lambda entry: entry[1]["curve"][-1]["agreement"]["value"], default=(None, None))
        found.append({
            "answers": str(shown),
            "attack": name,
            "agreement": best["curve"][-1]["agreement"] if best else None,
            "queries_to": best["queries_to"] if best else None,
        })  # fmt: skip
    return found
