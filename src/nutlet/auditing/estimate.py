"""What an audit is going to ask of an endpoint, told before anything is paid for."""

from __future__ import annotations

from nutlet.attacks import known_attacks
from nutlet.auditing.membership import MOST_CANDIDATES
from nutlet.auditing.protocol import Protocol
from nutlet.auditing.setup import budgets_for, evaluation_of
from nutlet.data.examples import Data, Examples

__all__ = ["inputs_to_send"]


def inputs_to_send(data: Data, transfer: Examples | None, protocol: Protocol) -> int:
    """Return about how many different inputs an audit asks about: each is sent once, whoever asks for it.

    Counted are the judge's inputs, the largest budget of each attack that copies for each seed, and the candidates of
    those that look for members. Fewer are sent where attacks or seeds ask about the same; more where there is an
    original and the first seeds do not decide.

    Args:
        data: the splits.
        transfer: what the thief asks with; the training inputs where there is none.
        protocol: what is asked for.
    """
    evaluation = len(evaluation_of(data))
    goals = {
        name: kind.goal
        for name, kind in {**known_attacks(), **{n: type(a) for n, a in protocol.asked.items()}}.items()
        if protocol.excluded(kind) is None
    }
    budget = budgets_for(protocol.queries, data.train if transfer is None else transfer)[-1]
    copies = len(protocol.seed_numbers) * budget * sum(goal == "clone" for goal in goals.values())
    # The candidates that are no members are among the judge's inputs.
    members = min(MOST_CANDIDATES, len(data.train), evaluation) if "membership" in goals.values() else 0
    return evaluation + copies + members
