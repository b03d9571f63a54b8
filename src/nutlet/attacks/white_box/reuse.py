"""The stolen file as a starting point for another task: fewer labels than from nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nutlet.attacks.base import EVERY_TASK, Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.attacks.extraction.labelled import EFFORT, finetune, labelled
from nutlet.attacks.extraction.surrogate import fresh
from nutlet.data.examples import Examples
from nutlet.options import LearningRate, Range
from nutlet.oracle import Access, Oracle
from nutlet.tasks import CLASSIFICATION, Task, is_classifier
from nutlet.tasks.inputs import Inputs

__all__ = ["Reuse", "new_labels"]


@register_attack
@dataclass(frozen=True, kw_only=True)
class Reuse(Attack):
    """Fine-tune the file on another task with labels of one's own (Yosinski et al. 2014, transferable features).

    The task: the classes are put at random into groups, as equal as can be, and a new head tells these apart. Where the
    victim has no classes, or one for each position, an example's group goes by its target along a random direction
    (see :func:`new_labels`). The head takes the place of the last dense layer where its outputs are the scores; else it
    reads the scores. All layers are trained. Budgets count labelled examples; nothing is asked. The facts hold
    ``labels`` and what tells the group of an example.

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
    tasks: ClassVar[tuple[str, ...]] = EVERY_TASK
    source: ClassVar[str] = "Yosinski et al. 2014, How transferable are features, arXiv:1411.1792"

    def baseline(self) -> Reuse | None:
        """Return the same from a start at random; of that there is none."""
        return replace(self, start="random") if self.start == "stolen" else None

    def obstacle(self, oracle: Oracle, knowledge: AttackerKnowledge) -> str | None:
        """Return why the attack cannot run here, or None where it can."""
        missing = super().obstacle(oracle, knowledge)
        if missing is None and is_classifier(knowledge.task) and knowledge.classes <= self.groups:
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
        facts = self._new_task(transfer, knowledge)
        regrouped = transfer.with_targets(new_labels(facts, transfer.y, knowledge.task))
        body = white_box if self.start == "stolen" else fresh(white_box, knowledge.seed)
        start = _with_head(body, transfer.batch(slice(0, 2))[0], self.groups, knowledge.seed)
        effort = EFFORT if self.start == "stolen" else 4 * EFFORT  # who begins with nothing has further to go
        for examples in labelled(regrouped, knowledge.seed, budgets):
            clone = finetune(start, examples, self.groups, knowledge, lr=self.lr, effort=effort, task=CLASSIFICATION)
            yield AttackResult(queries=oracle.queries, clone=clone, facts={"labels": len(examples), **facts})

    def _new_task(self, transfer: Examples, knowledge: AttackerKnowledge) -> dict[str, Any]:
        """Return what tells the group of an example, for :func:`new_labels`."""
        generator = torch.Generator().manual_seed(knowledge.seed)
        if is_classifier(knowledge.task):
            classes = knowledge.classes
            group = torch.empty(classes, dtype=torch.long)
            group[torch.randperm(classes, generator=generator)] = torch.arange(classes) % self.groups
            return {"groups": group.tolist()}
        features = _features(transfer.y, knowledge.classes)
        direction = torch.randn(features.shape[1], generator=generator, dtype=torch.float64)
        along, shares = features @ direction, torch.arange(1, self.groups, dtype=torch.float64) / self.groups
        return {"direction": direction.tolist(), "cuts": along.quantile(shares).tolist()}


def new_labels(facts: Mapping[str, Any], targets: Tensor, task: Task) -> Tensor:
    """Return the labels ``(N,)`` of the task that :class:`Reuse` puts a file to, from those of its own task.

    Args:
        facts: ``groups``, the group of each class; or ``direction`` and ``cuts``: an example's group is how many of the
            cuts its target exceeds along the direction. Of a target that holds classes the shares of these count.
        targets: of the victim's task, ``(N, ...)``.
        task: the victim's.

    >>> from nutlet.tasks import Regression
    >>> new_labels({"direction": [-1.0], "cuts": [0.0]}, torch.tensor([[2.0], [-3.0]]), Regression()).tolist()
    [0, 1]
    """
    if is_classifier(task):
        return torch.tensor(facts["groups"])[targets]
    direction = torch.tensor(facts["direction"], dtype=torch.float64)
    cuts = torch.tensor(facts["cuts"], dtype=torch.float64)
    return torch.bucketize(_features(targets, len(direction)) @ direction, cuts)


def _features(targets: Tensor, classes: int) -> Tensor:
    """Return targets as numbers ``(N, F)`` float64: of classes, ``(N, ...)`` integers, the share of each."""
    if targets.is_floating_point():
        return targets.flatten(1).nan_to_num().double()
    rows = targets.flatten(1)
    counted = torch.zeros(len(rows), classes, dtype=torch.float64)
    return counted.scatter_add(1, rows.clamp_min(0), (rows >= 0).double()) / rows.shape[1]


def _with_head(module: nn.Module, x: Inputs, outputs: int, seed: int) -> nn.Module:
    """Return a copy of ``module`` that ends in a new dense layer ``-> (B, outputs)``.

    Args:
        module: gives scores ``(B, ...)``.
        x: two inputs, to see whether its last dense layer gives the scores, and how many these are.
        outputs: those of the new head.
        seed: the head is drawn from it.
    """
    model = nn.Sequential(copy.deepcopy(module)).eval()
    dense = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        scores = model(x)
    if dense and scores.ndim == 2 and _gives(model, dense[-1][1], x):
        name, last = dense[-1]
        model.set_submodule(name, fresh(nn.Linear(last.in_features, outputs), seed))
        return model
    if scores.ndim > 2:
        model.append(nn.Flatten())
    model.append(fresh(nn.Linear(scores[0].numel(), outputs), seed))
    return model


def _gives(model: nn.Module, layer: nn.Module, x: Inputs) -> bool:
    """Return whether the outputs of ``model`` are those of ``layer``, unchanged."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        scores = model(x)
    hook.remove()
    return bool(seen) and torch.equal(seen[-1], scores)
