"""Trying a removal of channels: does every call get the channels that it expects, and are the answers right?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nutlet.errors import NutletError, first_line
from nutlet.graph.comparison import ROUNDING, answers, difference, run
from nutlet.graph.coupling.channels import Channels, NoSliceError
from nutlet.graph.coupling.cut import Attributes, Cuts, put_attributes, thin_copy
from nutlet.graph.coupling.follow import Call, Follower
from nutlet.graph.coupling.numbers import lines
from nutlet.graph.coupling.rules import RULES, unknown
from nutlet.graph.coupling.silence import Silenced
from nutlet.tasks.inputs import Inputs

__all__ = ["OffenceError", "Trial"]


class OffenceError(Exception):
    """A call that a thinner model cannot make, or that would get other channels than it expects.

    Args:
        reason: what is wrong.
        labels: of the channels that meet there.
        call: the call, None where it is not known.
    """

    def __init__(self, reason: str, labels: set[int], call: Call | None = None) -> None:
        super().__init__(reason)
        self.labels = labels
        self.call = call


class _Mismatch(Exception):
    def __init__(self, labels: set[int]) -> None:
        super().__init__("channels no longer meet those that they belong to")
        self.labels = labels


class _Checking:
    """In the place of a ledger: channels that meet have to be the same."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        stays = torch.zeros(len(channels.labels), dtype=torch.bool)
        stays[list(channels.fixed)] = True
        self.stays = stays[channels.labels]

    def issue(self, count: int, *, elements: bool = False) -> Tensor:
        # No channel: what it meets is fixed, or of a parameter that the first walk did not reach.
        return torch.zeros(count, dtype=torch.long)

    def only_elements(self, numbers: Tensor) -> bool:
        return bool(self.channels.element[numbers[numbers > 0]].all())

    def join(self, one: Tensor, other: Tensor) -> None:
        try:
            one, other = one + 0 * other, other + 0 * one
        except RuntimeError:  # of other widths
            raise _Mismatch({*one.flatten().tolist(), *other.flatten().tolist()}) from None
        apart = (one != other) & (one > 0) & (other > 0) & ~self.stays[one] & ~self.stays[other]
        if bool(apart.any()):
            raise _Mismatch({*one[apart].tolist(), *other[apart].tolist()})

    def fix(self, numbers: Tensor, reason: str) -> None:
        pass


class _Checker(Follower):
    """Walks through a thinner model whose parameters have the labels that they should have.

    Args:
        model: the thinner one.
        channels: of the whole one.
        cuts: what was taken away.
        thinned: labels of all channels of families that lose some.
    """

    def __init__(self, model: nn.Module, channels: Channels, cuts: Cuts, thinned: set[int]) -> None:
        super().__init__(model, RULES, unknown, heads=channels.heads)
        self.channels = channels
        self.ledger = _Checking(channels)  # type: ignore[assignment]
        self.recent: list[set[int]] = []
        self.thinned = thinned
        keep = {name: dict(places) for name, places in cuts.items()}

        def left(name: str, dim: int, labels: Tensor) -> Tensor:
            return labels[keep[name][dim]] if dim in keep.get(name, {}) else labels

        self.axes = {
            name: {dim: left(name, dim, labels) for dim, labels in dims.items()} for name, dims in channels.axes.items()
        }
        self.elements = dict(channels.elements)
        for name, labels in self.elements.items():
            for dim, places in keep.get(name, {}).items():
                self.elements[name] = labels.index_select(dim, places)

    def make(self, call: Call) -> Any:
        meeting = {label for tensor in call.tensors for label in self.of(tensor).flatten().tolist()} - {0}
        if meeting:
            self.recent.append(meeting)
        try:
            return super().make(call)
        except _Mismatch as error:
            raise OffenceError(f"{error} in {call}", error.labels, call) from None
        except NutletError:
            raise
        except Exception as error:  # a call with wrong shapes may raise anything
            raise OffenceError(f"{call}: {type(error).__name__}: {first_line(error)}", self.gone_lately, call) from None

    def as_before(self, call: Call, decided: Any) -> Any:
        return self.channels.decided.get(call.number, decided)

    def shaped(self, call: Call, numbers: Tensor) -> None:
        # Channels of one head that lie in another, say, though those of all heads have the same labels.
        before = self.channels.reshaped.get(call.number, numbers)
        for line, whole in zip(lines(numbers), lines(before), strict=False):
            if len(set(line)) < len(line) and len(set(whole)) == len(whole):
                raise _Mismatch(set(line))

    @property
    def gone_lately(self) -> set[int]:
        """The channels with which the last call was made whose tensors have lost some."""
        return next((labels for labels in reversed(self.recent) if labels & self.thinned), set())


@dataclass(eq=False)
class Trial:
    """Tries removals on copies of one model.

    Args:
        model: without constraints; not changed.
        example: real inputs, batch first.
        channels: of the model.
    """

    model: nn.Module
    example: Inputs
    channels: Channels

    def thinned(self, gone: set[int]) -> set[int]:
        """Return the labels of all channels of families that lose some."""
        families = (set(family.labels.tolist()) for family in self.channels.families)
        return set().union(*(labels for labels in families if labels & gone))

    def walk(self, gone: set[int]) -> tuple[nn.Module, Attributes]:
        """Return a thinner copy that makes all its calls, and the attributes that were changed for it.

        Raises:
            OffenceError: it does not.
        """
        try:
            cuts = self.channels.cuts(gone)
        except NoSliceError as error:
            raise OffenceError(str(error), error.labels) from None
        attributes: Attributes = {}
        offence = self._offence(cuts, attributes, gone)
        while offence is not None:
            offence = self._mended(cuts, attributes, offence, gone)
        return self._thin(cuts, attributes), attributes

    def _thin(self, cuts: Cuts, attributes: Attributes) -> nn.Module:
        thinner = thin_copy(self.model, cuts)
        put_attributes(thinner, attributes)
        return thinner

    def _offence(
        self, cuts: Cuts, attributes: Attributes, gone: set[int]
    ) -> tuple[int, OffenceError, list[Any]] | None:
        """Walk; return how far it came, what stopped it and the shapes there."""
        checker = _Checker(self._thin(cuts, attributes), self.channels, cuts, self.thinned(gone))
        try:
            checker.walk(self.example[:1])
        except OffenceError as error:
            return len(checker.shapes), error, checker.shapes[-1]
        except NutletError:
            raise
        except Exception as error:  # an assertion of the forward itself
            reason = f"{type(error).__name__}: {first_line(error)}"
            return len(checker.shapes), OffenceError(reason, checker.gone_lately), []
        return None

    def _mended(
        self, cuts: Cuts, attributes: Attributes, offence: tuple[int, OffenceError, list[Any]], gone: set[int]
    ) -> tuple[int, OffenceError, list[Any]] | None:
        """Change one attribute so that the walk comes further, and return what stops it then.

        Raises:
            OffenceError: none does.
        """
        reached, error, shapes = offence
        if error.call is None:
            raise error
        for changes in self._candidates(error.call, shapes, gone):
            if changes.keys() & attributes.get(error.call.path, {}).keys():
                continue
            changed = {**attributes, error.call.path: {**attributes.get(error.call.path, {}), **changes}}
            further = self._offence(cuts, changed, gone)
            if further is None or further[0] > reached:
                attributes.clear()
                attributes.update(changed)
                return further
        raise error

    def _candidates(self, call: Call, shapes: list[tuple[int, ...]], gone: set[int]) -> Iterator[dict[str, Any]]:
        """Yield values of attributes that may have to follow a width, the likeliest first."""
        held = vars(self.model.get_submodule(call.path))
        numbers = {
            name: list(value) if isinstance(value, tuple) else value for name, value in held.items() if _is_sizes(value)
        }
        if parts := self.channels.parts.get(call.number):
            yield from self._split_sizes(call, parts, numbers, gone)
        before = self.channels.shapes[call.number]
        widths = {
            (old, new) for one, two in zip(before, shapes, strict=False) for old, new in zip(one, two, strict=False)
        }
        for name, value in numbers.items():
            for old, new in sorted(widths):
                if old != new and (scaled := _scaled(value, old, new)) != value:
                    yield {name: scaled}

    def _split_sizes(
        self, call: Call, parts: list[Tensor], numbers: dict[str, Any], gone: set[int]
    ) -> Iterator[dict[str, Any]]:
        """Yield the sizes that a call splits by, as one attribute or each as one."""
        before, dim = list(call.get(1, "split_size_or_sections")), call.get(2, "dim", 0)
        after = [
            sum(label not in gone for label in line) if len(line := lines(part)[dim]) == size else size
            for size, part in zip(before, parts, strict=True)
        ]
        yield from ({name: after} for name, value in numbers.items() if value == before)
        sizes = dict(zip(before, after, strict=True))
        if each := {name: sizes[value] for name, value in numbers.items() if isinstance(value, int) and value in sizes}:
            yield each

    def disagreement(self, thinner: nn.Module, gone: set[int]) -> str:
        """Return how the answers of a thinner model differ from the model with nothing reading those channels."""
        silenced = Silenced(self.model, self.model, self.example, self.channels, gone)
        if difference(run(thinner, self.example), run(silenced, self.example)) <= ROUNDING:
            return ""
        # Copies, because a thinner model shares parameters and double precision is put into them in place.
        expected, found = (answers(copy.deepcopy(model), self.example) for model in (silenced, thinner))
        apart = difference(found.best, expected.best)
        if apart <= expected.tolerance:
            return ""
        return f"without those chosen, answers are {apart:.2g} of the largest from those with nothing reading them"


def _is_sizes(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return len(value) > 0 and all(isinstance(item, int) for item in value)
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


def _scaled(value: Any, old: int, new: int) -> Any:
    """Return what becomes of a number that follows a width, or of a list with such numbers."""
    if isinstance(value, (tuple, list)):
        return [_scaled(item, old, new) for item in value]
    return value * new // old if value > 1 and value * new % old == 0 else value
