"""The stolen file as a starting point for another task: fewer labels than from nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.attacks.extraction.labelled import EFFORT, finetune, labelled
from nutlet.attacks.extraction.surrogate import fresh
from nutlet.options import LearningRate, Range
from nutlet.oracle import Access, Oracle

__all__ = ["Reuse"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class Reuse(Attack):
    """Fine-tune the file on another task with labels of one's own (Yosinski et al. 2014, transferable features).

    The task: the classes are put at random into groups, as equal as can be, and a new head tells these apart. The
    head takes the place of the last dense layer where its outputs are the scores; else it reads the scores. All layers
    are trained. Budgets count labelled examples; nothing is asked. The facts hold ``labels`` and the group of each
    class.

    Args:
        groups: what the new task tells apart.
        start: ``stolen`` begins with the weights of the file; ``random`` is the baseline, the same architecture drawn
            anew and trained four times as long. What belongs to no layer, as ranges of activations, it keeps.
        lr: peak learning rate.
    """

    groups: Annotated[int, Range(2)] = 2
    start: Literal["stolen", "random"] = "stolen"
    lr: LearningRate = 3e-3

    use_when: ClassVar[str] = "the file is to spare labels and training on a task of the thief's own"
    goal: ClassVar[Goal] = "reuse"
    access: ClassVar[Access] = "file"
    needs: ClassVar[tuple[str, ...]] = ("white_box", "transfer")
    measure: ClassVar[str] = "accuracy on another task with a few labels, from the stolen file"
    spends: ClassVar[Literal["queries", "labels"]] = "labels"
    source: ClassVar[str] = "Yosinski et al. 2014, How transferable are features, arXiv:1411.1792"

    def baseline(self) -> Reuse | None:
        """Return the same from a start at random; of that there is none."""
        return replace(self, start="random") if self.start == "stolen" else None

    def obstacle(self, oracle: Oracle, knowledge: AttackerKnowledge) -> str | None:
        """Return why the attack cannot run here, or None where it can."""
        missing = super().obstacle(oracle, knowledge)
        if missing is None and knowledge.classes <= self.groups:
            found = knowledge.classes
            return f"needs more than {self.groups} classes to make {self.groups} groups; the victim has {found}"
        if missing is None and self.start == "random":
            assert knowledge.white_box is not None
            if not any(hasattr(module, "reset_parameters") for module in knowledge.white_box.modules()):
                return "needs layers that can be drawn anew; the file as a module has none"
        return missing

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield a model ``(B, ...) -> (B, groups)`` for each number of labels."""
        white_box, transfer = knowledge.white_box, knowledge.transfer
        assert white_box is not None
        assert transfer is not None
        generator = torch.Generator().manual_seed(knowledge.seed)
        group = torch.empty(knowledge.classes, dtype=torch.long)
        group[torch.randperm(knowledge.classes, generator=generator)] = torch.arange(knowledge.classes) % self.groups
        regrouped = replace(transfer, y=group[transfer.y])
        body = white_box if self.start == "stolen" else fresh(white_box, knowledge.seed)
        start = _with_head(body, transfer.batch(slice(0, 2))[0], knowledge.classes, self.groups, knowledge.seed)
        effort = EFFORT if self.start == "stolen" else 4 * EFFORT  # who begins with nothing has further to go
        for examples in labelled(regrouped, knowledge.seed, budgets):
            clone = finetune(start, examples, self.groups, knowledge, lr=self.lr, effort=effort)
            facts = {"labels": len(examples), "groups": group.tolist()}
            yield AttackResult(queries=oracle.queries, clone=clone, facts=facts)


def _with_head(module: nn.Module, x: Tensor, classes: int, outputs: int, seed: int) -> nn.Module:
    """Return a copy of ``module`` that ends in a new dense layer ``-> (B, outputs)``.

    Args:
        module: gives scores ``(B, classes)``.
        x: two inputs, to see whether its last dense layer gives the scores.
        classes: its outputs.
        outputs: those of the new head.
        seed: the head is drawn from it.
    """
    model = nn.Sequential(copy.deepcopy(module)).eval()
    dense = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if dense and _gives(model, dense[-1][1], x):
        name, last = dense[-1]
        model.set_submodule(name, fresh(nn.Linear(last.in_features, outputs), seed))
    else:
        model.append(fresh(nn.Linear(classes, outputs), seed))
    return model


def _gives(model: nn.Module, layer: nn.Module, x: Tensor) -> bool:
    """Return whether the outputs of ``model`` are those of ``layer``, unchanged."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        scores = model(x)
    hook.remove()
    return bool(seen) and torch.equal(seen[-1], scores)
