"""What an attack is, and the registry that finds one by name.

An attack is plain data (a frozen dataclass) with one verb: ``run`` sees an oracle and a scene, and yields loot, one for
each budget. It never sees what its loot is scored with; that is the judge's (:mod:`nutlet.auditing`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor, nn

from nutlet.attacks.extraction.surrogate import Surrogate
from nutlet.data.examples import Examples
from nutlet.options import Validated
from nutlet.oracle import ACCESS, Access, Oracle
from nutlet.progress import Progress
from nutlet.registry import Registry
from nutlet.tasks import CLASSIFICATION, Task

__all__ = [
    "EVERY_TASK",
    "REGISTRY",
    "Attack",
    "AttackResult",
    "AttackerKnowledge",
    "Goal",
    "ShadowModels",
    "register_attack",
]

EVERY_TASK: tuple[str, ...] = ()
"""What an attack declares that goes through the task alone."""

Goal = Literal["clone", "weights", "width", "file", "reuse", "membership", "inversion"]
"""What is stolen: the function, the exact weights, the size of a hidden layer, what a file gives away as it lies there,
a start for another task, who was in the training data, what they look like."""

ShadowModels = Callable[[int], tuple[Tensor, Tensor]]
"""``count -> (scores, members)``: outputs ``(count, N, ...)`` of models trained on known random halves of the pool (of
classifiers logits), and which half each saw, ``(count, N)`` bool; models come in pairs that saw the two halves of one
draw."""

_IMAGE_DIMS = 3
"""Channels, height, width."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AttackerKnowledge:
    """What an attacker has beside the oracle. What he has not is None.

    Args:
        classes: how many the victim tells apart; of a task without classes, how many numbers it gives.
        shape: of one input.
        task: what the victim's outputs mean.
        seed: the only source of randomness.
        transfer: inputs he can ask about, in the order in which a plain attack asks; their labels are his own.
        surrogate: what he trains.
        pool: candidates ``(N,)`` with labels, of which he wants to know which the victim was trained on.
        shadows: trains models of his own on halves of the pool, made as the victim was, as far as he knows how.
        companions: other releases of the same model that he has too, the original first.
        companion_shadows: for each of them shadow models made as it was, of the same halves as ``shadows``.
        file: the shipped file in his hands.
        white_box: that file as a module he can differentiate.
        absent: why something that is None could not be had, by the name of its field.
        progress: shows bars.
    """

    classes: int
    shape: tuple[int, ...]
    task: Task = CLASSIFICATION
    seed: int = 0
    transfer: Examples | None = None
    surrogate: Surrogate | None = None
    pool: Examples | None = None
    shadows: ShadowModels | None = None
    companions: tuple[Oracle, ...] = ()
    companion_shadows: tuple[ShadowModels, ...] = ()
    file: Path | None = None
    white_box: nn.Module | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))


@dataclass(frozen=True, eq=False, kw_only=True)
class AttackResult:
    """What an attack has in its hands after so many queries: a clone, scores, images or facts.

    Facts may stand beside a clone.

    A clone that cost no queries comes with ``facts`` that say what it did cost.

    Args:
        queries: inputs sent so far.
        clone: a model that answers in the victim's place.
        scores: one per candidate of the pool, ``(N,)``; higher: more surely a member.
        images: one reconstruction per class, ``(classes, ...)``.
        share: how much of what was looked for was found, 0 to 1; what says so itself is not scored by its clone.
        facts: what was found out, as plain JSON.
    """

    queries: int
    clone: nn.Module | None = None
    scores: Tensor | None = None
    images: Tensor | None = None
    share: float | None = None
    facts: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Attack(Validated):
    """Base of all attacks: validated data.

    Subclasses say in class variables what they want and need, in annotations what each option may be (see
    :mod:`nutlet.options`), and implement :meth:`run`.
    """

    use_when: ClassVar[str] = ""
    """One line: when an attacker would pick it."""
    goal: ClassVar[Goal]
    access: ClassVar[Access]
    """The least that the oracle must show; with more it works at least as well."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Fields of :class:`AttackerKnowledge` that must not be None or empty."""
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    """Names of the tasks that it is for; :data:`EVERY_TASK` where it goes through the task alone."""
    of_images: ClassVar[bool] = False
    """Whether what it brings is to be looked at, so that of other inputs it says nothing."""
    source: ClassVar[str] = ""
    """Paper and year."""
    measure: ClassVar[str] = "found of what was looked for"
    """What the share of its loot that is right says, for a table; ``{metric}`` stands for that of the task."""
    spends: ClassVar[Literal["queries", "labels"]] = "queries"
    """What its budgets count: inputs sent, or labelled examples of the thief's own."""
    costly: ClassVar[bool] = False
    """Whether it takes so long that an audit runs it only when asked."""

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield the loot of each budget, smallest first; never send more than the largest.

        A larger budget goes on from a smaller one: the answers already paid for are used again. An attack that asks a
        fixed number of questions yields once.
        """
        raise NotImplementedError

    def obstacle(self, oracle: Oracle, knowledge: AttackerKnowledge) -> str | None:
        """Return why the attack cannot run here, or None where it can."""
        if self.tasks and knowledge.task.name not in self.tasks:
            return f"for {_listed(self.tasks)} only; the victim does {knowledge.task.name}"
        if self.of_images and len(knowledge.shape) != _IMAGE_DIMS:
            return f"shows what inputs look like, and inputs of shape {tuple(knowledge.shape)} are no images"
        if self.access != "file" and ACCESS.index(oracle.answers.access) < ACCESS.index(self.access):
            return f"needs {self.access}; the victim shows {oracle.answers}"
        for name in self.needs:
            value = getattr(knowledge, name)
            if value is None or value == ():
                return f"needs {_NEEDS.get(name, name)}, {knowledge.absent.get(name, 'which was not given')}"
        return None

    @property
    def joint(self) -> bool:
        """Whether it weighs the answers of several releases together."""
        return "companions" in self.needs

    def baseline(self) -> Attack | None:
        """Return the attack of who has nothing of the victim, which this one is held against; None for none."""
        return None

    def options(self) -> dict[str, Any]:
        """Return the options as plain data, all of them."""
        return dataclasses.asdict(self)


_NEEDS = {
    "transfer": "inputs to ask with",
    "surrogate": "an architecture for the clone",
    "pool": "candidates for membership",
    "shadows": "shadow models",
    "companions": "another release of the same model and the recipe between them",
    "companion_shadows": "shadow models of the other releases",
    "file": "the shipped file",
    "white_box": "the file as a differentiable module",
}


def _listed(names: Sequence[str]) -> str:
    """Return names as in a sentence.

    >>> _listed(["a"]), _listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


Kind = TypeVar("Kind", bound=type[Attack])

REGISTRY: Registry[type[Attack]] = Registry("an attack", "nutlet.attacks")
"""All that are registered; :func:`nutlet.attacks.known_attacks` has loaded ours."""


def register_attack(kind: Kind) -> Kind:
    """Class decorator: make an attack known by its class name to the audit, the command line and the docs."""
    REGISTRY.add(kind)
    return kind
