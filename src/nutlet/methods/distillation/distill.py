"""Knowledge distillation from the original model, or from another teacher."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.errors import ConfigError, DataError, ModelError
from nutlet.graph.scope import training_only
from nutlet.methods.base import Method, register
from nutlet.methods.distillation.features import Features
from nutlet.tasks import Task
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import BlackBoxTeacher, Context
from nutlet.training.loop import fit, supervised
from nutlet.training.losses import DistillationTraining, decoupled, has_logits, mixed, softly, teaching

__all__ = ["Distill"]


@register
@dataclass(frozen=True, kw_only=True)
class Distill(DistillationTraining, Method):
    """Train on the answers of a teacher, mixed with the labels, and on its hidden features if you like.

    ``loss = kd_weight L + (1 - kd_weight) CE(s, y) + hints H + attention A + relations R``, where L compares the
    outputs s of the model with those t of the teacher: the original, or what ``compress(..., teacher=)`` was given.

    ========== ==================================================================================================
    targets    L
    ========== ==================================================================================================
    kl         ``T^2 KL(softmax(t / T) || softmax(s / T))`` (Hinton et al. 2015, arXiv:1503.02531); the divergence
               of the task where that is no classification
    logits     ``mean (s - t)^2``, to which the first tends with growing T (Kim et al. 2021, arXiv:2105.08919)
    decoupled  ``T^2 (alpha TCKD + beta NCKD)``: the right class apart from the others (Zhao et al. 2022,
               arXiv:2203.08679)
    ========== ==================================================================================================

    Hidden features are those of the last block at each resolution that both models have, or of the modules named in
    ``sites``. With ``kd_weight`` 1 no labels are needed, but for ``decoupled``.

    A teacher of which only answers are known is asked about each training example once, as it is: the model then
    learns from just these inputs, without augmentation.

    Args:
        targets: how outputs are compared: ``kl``, ``logits`` or ``decoupled``.
        alpha: weight of the right class against all others, in ``decoupled``.
        beta: weight of the other classes among themselves, in ``decoupled``.
        hints: weight of the mean square by which hidden features differ (FitNets, Romero et al. 2015,
            arXiv:1412.6550), through a learned projection where the numbers of channels differ; 0 for none.
        attention: weight of the squared distance of where activity lies (Zagoruyko & Komodakis 2017,
            arXiv:1612.03928), 0 for none.
        relations: weight of the differences of distances and angles between examples (Park et al. 2019,
            arXiv:1904.05068), 0 for none.
        sites: modules whose outputs are compared, ``student_module:teacher_module`` or one name for both; found by
            default.

    Raises:
        ConfigError: a value out of range, or an option that the others leave without effect.

    >>> Distill(epochs=2, temperature=2.0).to_dict()
    {'Distill': {'epochs': 2, 'temperature': 2.0}}
    """

    effect: ClassVar[str] = "training"
    use_when: ClassVar[str] = "recover accuracy after any other method; nearly always better than labels alone"

    targets: Literal["kl", "logits", "decoupled"] = "kl"
    alpha: float = 1.0
    beta: float = 8.0
    hints: float = 0.0
    attention: float = 0.0
    relations: float = 0.0
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(type(self).__name__)
        for option in ("alpha", "beta", "hints", "attention", "relations"):
            if not 0 <= getattr(self, option) < math.inf:
                raise ConfigError(f"Distill.{option} is {getattr(self, option)}; expected a weight of 0 or more")
        if (self.alpha, self.beta) != (1.0, 8.0) and self.targets != "decoupled":
            raise ConfigError(f"Distill.alpha and beta weigh targets='decoupled'; found them with {self.targets!r}")
        if self.targets == "logits" and self.temperature != DistillationTraining.temperature:
            raise ConfigError("Distill.temperature softens distributions; found it with targets='logits', without any")
        if self.targets != "kl" and self.kd_weight == 0:
            raise ConfigError(f"Distill.targets is {self.targets!r}; found it with kd_weight=0: nothing to compare")
        if self.sites and not self._looks_inside:
            raise ConfigError("Distill.sites are given, but hints, attention and relations are all 0; expected one > 0")

    @property
    def _looks_inside(self) -> bool:
        return max(self.hints, self.attention, self.relations) > 0

    def check_task(self, task: Task) -> None:
        """Raise ConfigError for a comparison of outputs that the task does not know."""
        super().check_task(task)
        known = {"kl": True, "logits": has_logits(task), "decoupled": task.name == "classification"}
        if not known[self.targets]:
            raise ConfigError(
                f"Distill.targets is {self.targets!r}, which is for "
                f"{'classification' if self.targets == 'decoupled' else 'tasks with logits'}; the data are for "
                f"{task.name}: expected 'kl', which takes the divergence of the task"
            )

    def train(self, model: nn.Module, context: Context) -> list[str]:
        """Run the training loop with what the teacher gives as targets."""
        if (self.kd_weight < 1 or self.targets == "decoupled") and not context.data.train.labelled:
            raise DataError(
                "Distill with these options needs labels, and some training examples have none; expected labels, or "
                "kd_weight=1.0 with targets='kl'"
            )
        if self.kd_weight == 0 and not self._looks_inside:
            with training_only(model, self):
                return fit(model, context, self, supervised(context.task), title="distilling")
        source = context.teacher.source if isinstance(context.teacher, BlackBoxTeacher) else None
        if source is not None:
            self._check_answers_suffice(context.teacher)
            # It is asked about an example once, and so the example must stay as it is.
            context = replace(context, data=replace(context.data, augment=None))
            before = source.sent
            self._ask(context)
        teacher = teaching(context, folded=not self._looks_inside)
        features = self._features(model, teacher, context) if self._looks_inside else None
        outputs = mixed(context.task, teacher, self.kd_weight, partial(self._compare, context.task))

        def loss(x: Inputs, s: Tensor, y: Tensor) -> Tensor:
            return outputs(x, s, y) + features.loss() if features else outputs(x, s, y)

        watching = features.watching(model, teacher) if features else contextlib.nullcontext()
        along = features.projections if features else None
        with training_only(model, self), watching:
            notes = fit(model, context, self, loss, along=along, title="distilling")
        if source is not None:
            notes.append(
                f"the teacher only answers: it was sent {source.sent - before:,} queries, one for each example it had "
                "not answered before; the model learned from just these inputs, without augmentation"
            )
        return notes + (features.notes if features else [])

    def _ask(self, context: Context) -> None:
        """Get all answers before the training begins: it would be lost if the last ones were refused."""
        examples = context.data.train
        with context.progress.task("asking the teacher", total=len(examples)) as task:
            for x, _ in examples.batches(256):
                context.teacher(x)
                task.advance(len(x))

    def _compare(self, task: Task, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if self.targets == "logits":
            return F.mse_loss(s, t)
        if self.targets == "decoupled":
            return self.temperature**2 * decoupled(s, t, y, self.temperature, self.alpha, self.beta)
        return softly(task, s, t, self.temperature)

    def _features(self, model: nn.Module, teacher: nn.Module, context: Context) -> Features:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)  # for the projections
            return Features(
                model,
                teacher,
                context.example,
                sites=self.sites,
                hints=self.hints,
                attention=self.attention,
                relations=self.relations,
            )

    def _check_answers_suffice(self, teacher: nn.Module) -> None:
        assert isinstance(teacher, BlackBoxTeacher)
        if self._looks_inside:
            raise ModelError(
                "Distill compares hidden features, and this teacher only answers; expected hints, attention and "
                "relations of 0, or a module as the teacher"
            )
        if self.targets == "logits" and self.kd_weight and not teacher.logits:
            raise ModelError(
                "Distill.targets is 'logits', and this teacher gives probabilities; expected targets='kl', or a "
                "teacher that gives its logits"
            )
