"""The weights of the file, refined with a few labels: does the accuracy come back that compression cost?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from nutlet.attacks.base import EVERY_TASK, Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.attacks.extraction.labelled import finetune, labelled
from nutlet.options import LearningRate
from nutlet.oracle import Access, Oracle

__all__ = ["Refine"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class Refine(Attack):
    """Go on training the weights of the file on the original task (Han et al. 2015: retraining wins accuracy back).

    Stored integers are floats again in the module of the file, and pruned weights are free to move. Budgets count
    labelled examples; nothing is asked. The facts hold ``labels``.

    Args:
        lr: peak learning rate; a third of a thief's own, so that what is there is not washed out.
    """

    lr: LearningRate = 1e-3

    use_when: ClassVar[str] = "the file is compressed, and the thief has a few labels and wants the original back"
    goal: ClassVar[Goal] = "file"
    access: ClassVar[Access] = "file"
    needs: ClassVar[tuple[str, ...]] = ("white_box", "transfer")
    measure: ClassVar[str] = "{metric} of the file refined with a few labels"
    spends: ClassVar[Literal["queries", "labels"]] = "labels"
    tasks: ClassVar[tuple[str, ...]] = EVERY_TASK
    source: ClassVar[str] = "Han et al. 2015, Learning both weights and connections, arXiv:1506.02626"

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield the refined model for each number of labels."""
        white_box, transfer = knowledge.white_box, knowledge.transfer
        assert white_box is not None
        assert transfer is not None
        for examples in labelled(transfer, knowledge.seed, budgets):
            clone = finetune(white_box, examples, knowledge.classes, knowledge, lr=self.lr)
            yield AttackResult(queries=oracle.queries, clone=clone, facts={"labels": len(examples)})
