"""What a compression method is, and the registry that finds one by name.

A method is plain data (a frozen dataclass) with up to three verbs:

``plan``   looks at the model and the data and returns a *plan*: plain JSON that says what is to be done;
``apply``  carries the plan out on the model, without data (loading a saved model replays exactly this);
``train``    changes values only, not structure (fine-tuning and distillation).

Splitting deciding from doing is what lets a compressed model be rebuilt from JSON and tensors, without pickle.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import nn

from nutlet.functions import name_of
from nutlet.graph.activation_quantizers import Activations, reattach
from nutlet.graph.modules import put_values
from nutlet.graph.skip_reasons import scope_reasons
from nutlet.graph.trace import InstrumentedModel, body_of
from nutlet.options import Validated, options_of
from nutlet.registry import Registry
from nutlet.tasks import Task
from nutlet.tasks.forward import carry_adapter
from nutlet.tasks.inputs import Inputs
from nutlet.training.context import Context

__all__ = ["REGISTRY", "Method", "Plan", "apply_plan", "register", "sentence_of"]

Plan = dict[str, Any]
"""What a method decided, as plain JSON.

Two keys are no part of what is kept: ``notes`` holds sentences for the history, ``values`` tensors by their names in
the state dict of the executed model, written into it after :meth:`Method.apply`; loading reads them from the file.
"""

EFFECTS = ("depth", "width", "rank", "mask", "grid", "shared values", "values", "training", "student")
"""What methods do: remove whole blocks, channels, ranks; mask weights; put values on a grid or share them; change
values alone, from statistics or by training; replace the model."""


_MARKUP = re.compile(r"(?::\w+:)?`+~?(?:\w+\.)*([^`]*?)`+")
_PAPER = re.compile(r" \([^()]*\b(?:19|20)\d\d\b[^()]*\)")


@dataclass(frozen=True, kw_only=True)
class Method(Validated):
    """Base of all methods: validated data that round-trips through JSON and YAML.

    Args:
        include: patterns of module names the method may touch (``fnmatch``: ``layer1.*``); all by default.
        exclude: patterns of module names it must leave alone.
    """

    use_when: ClassVar[str] = ""
    """One line: when to pick this method."""
    recoverable: ClassVar[bool] = False
    """Whether fine-tuning after this method wins back accuracy, so that ``recover=`` follows it."""

    effect: ClassVar[str] = ""
    """What it does to a model, one of ``EFFECTS``: what the advice on the order of steps goes by."""

    layer_types: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Classes of layers it works on; empty: all dense layers and convolutions."""

    sample: ClassVar[Mapping[str, Any]] = {}
    """Values for the options that have no default, to ask the method about a model without a recipe."""

    separable: ClassVar[tuple[str, ...]] = ()
    """Keys of a plan whose entries are carried out each for itself: where one turns out wrong, it can be left out.
    An entry is the name of a module, alone, as the key of a mapping, or last in a list."""

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def check_task(self, task: Task) -> None:
        """Raise ConfigError where an option is for other tasks than ``task``; the default knows none that is."""

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return what is to be done to ``model``; must not change it."""
        return {}

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Inputs) -> nn.Module:
        """Carry out ``plan`` on ``model``, in place where possible, and return the result.

        ``example`` has the shape of two inputs, for walking the model; its values do not matter.
        """
        return model

    def reference(self, model: nn.Module, plan: Plan, example: Inputs) -> nn.Module | None:
        """Return what the executed model has to answer like within rounding, or None where nothing is promised.

        It is made in another way than :meth:`apply` makes its result, or the comparison would prove nothing: where
        a step changes nothing, the model as it is; where it removes something, the model with that silenced. Where the
        step fits weight quantizers (:meth:`fitted`), they are switched off on both sides, and judged by themselves.

        Args:
            model: the model before the step, without activation quantizers; not changed.
            plan: what :meth:`plan` returned, ``values`` included.
            example: two inputs, batch first.
        """
        return None

    def fitted(self, plan: Plan) -> list[str]:
        """Return the modules whose weight quantizers the step fits to their weights, new ones or those there were."""
        return []

    def faults(self, model: nn.Module, plan: Plan) -> dict[str, str]:
        """Return what values in ``plan`` break of the promises of the method, by part.

        Args:
            model: the model before the step; not changed.
            plan: what :meth:`plan` returned, ``values`` included.
        """
        return {}

    def parts(self, plan: Plan) -> list[str]:
        """Return what of ``plan`` can be left out by itself, see :attr:`separable`."""
        return list(dict.fromkeys(_part(entry) for key in self.separable for entry in plan.get(key, ())))

    def without(self, plan: Plan, gone: Collection[str]) -> Plan:
        """Return ``plan`` without the parts ``gone``."""
        left = dict(plan)
        for key in self.separable:
            if isinstance(entries := plan.get(key), dict):
                left[key] = {name: entry for name, entry in entries.items() if name not in gone}
            elif entries is not None:
                left[key] = [entry for entry in entries if _part(entry) not in gone]
        if "values" in plan:
            owners = tuple(f"{name}." for name in gone)
            left["values"] = {name: value for name, value in plan["values"].items() if not name.startswith(owners)}
        return left

    def train(self, model: nn.Module, context: Context) -> list[str]:
        """Change the values of ``model``, not its structure; return notes for the history."""
        return []

    def skip_reasons(self, model: nn.Module, example: Inputs) -> dict[str, str]:
        """Return why this method would leave layers of ``model`` alone, by name; an empty text where it would not.

        What is known before the work and without data: scope, kinds of layers, how they hang together. A layer with a
        reason keeps its values; one without may still be left alone, which :meth:`plan` tells.

        Raises:
            NutletError: as :meth:`plan` would, for a scope or an option that does not fit the model.
        """
        return scope_reasons(model, self, trains=type(self).train is not Method.train)

    def calibration_passes(self, model: nn.Module, example: Inputs) -> tuple[int, int]:
        """Return the least and the most passes over the calibration examples that :meth:`plan` makes, roughly."""
        return (0, 0) if type(self).plan is Method.plan else (0, 3)

    def milder(self) -> Method | None:
        """Return this method with a setting that costs less accuracy, or None where there is none."""
        return None

    @property
    def folds_norms(self) -> bool:
        """Whether no batch norm is left to steady a training after it."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return ``{name: {option: value}}`` with only the options that differ from their defaults.

        A function becomes ``module:function``.
        """
        changed = {
            name: list(value) if isinstance(value, tuple) else name_of(value) or value
            for name, option in options_of(type(self)).items()
            if (value := getattr(self, name)) != option.default
        }
        return {type(self).__name__: changed}


Kind = TypeVar("Kind", bound=type[Method])

REGISTRY: Registry[type[Method]] = Registry("a method", "nutlet.methods")
"""All that are registered; :func:`nutlet.methods.known_methods` has loaded ours."""


def register(kind: Kind) -> Kind:
    """Class decorator: make a method known by its class name to recipes, the command line and the docs."""
    REGISTRY.add(kind)
    return kind


def apply_plan(
    kind: type[Method],
    model: nn.Module,
    plan: Plan,
    example: Inputs,
    *,
    ranges: Callable[[InstrumentedModel, nn.Module], Activations | None] | None = None,
) -> nn.Module:
    """Return ``model`` after all of a step but its training; runs and the loading of saved models share this.

    Activation quantizers that were there are taken off, and put back on afterwards: a step that moved their sites has
    new ranges in its plan.

    Args:
        kind: the method of the step.
        model: may be changed in place.
        plan: what the method decided; ``values`` are written where there are some (loading reads them from the file).
        example: two inputs, batch first.
        ranges: given the model before and the one after, returns new ranges where the old ones no longer hold; they
            are written into ``plan``.

    Raises:
        ModelError: the plan does not fit the model.
    """
    earlier = model if isinstance(model, InstrumentedModel) else None
    was = model if earlier is None else earlier.unwrap()
    model = kind.apply(was, plan, example)
    carry_adapter(was, model)
    put_values(body_of(model), plan.get("values", {}))
    if earlier is None:
        return model
    if ranges is not None and "activations" not in plan and (found := ranges(earlier, model)) is not None:
        plan["activations"] = found
    return reattach(earlier, model, plan.get("activations"), example)


def _part(entry: str | list[str]) -> str:
    return entry if isinstance(entry, str) else entry[-1]


def sentence_of(kind: type[Method]) -> str:
    """Return what a method does in one plain sentence: the first of its docstring, without the paper it is from.

    A class without a docstring of its own is told by ``use_when``.

    >>> sentence_of(Method)
    'Base of all methods: validated data that round-trips through JSON and YAML.'
    """
    own = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    if own.startswith(f"{kind.__name__}("):  # which dataclasses write where nobody did
        own = ""
    text = own.partition("\n\n")[0] or kind.use_when
    return _PAPER.sub("", _MARKUP.sub(r"\1", " ".join(text.split())))
