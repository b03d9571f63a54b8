"""Hidden features of student and teacher: where both have some, and loss terms that compare them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.errors import ConfigError, ModelError, nearest
from nutlet.graph.scope import Layer
from nutlet.graph.trace import body_of
from nutlet.tasks.inputs import Inputs
from nutlet.tasks.predict import evaluating

__all__ = ["Features", "attention", "relations"]

_MOST_RELATED = 128
"""Examples of a batch whose relations are compared: angles are as many as their cube."""


@dataclass(frozen=True)
class _Stage:
    """What a module gives: ``(B, *positions, channels)`` in some order."""

    name: str
    positions: tuple[int, ...]
    channels: int
    last: bool
    """Whether the channels are the last axis."""

    def rows(self, feature: Tensor) -> Tensor:
        """Return the feature as ``(B, channels, *positions)``, float32."""
        return (feature.movedim(-1, 1) if self.last else feature).float()


class Features:
    """Compares hidden features where teacher and student both have some.

    By default these are the outputs of the last block at each resolution (modules that hold layers; the layers
    themselves where a model has no blocks), matched by their resolution, or by order from the end where none agree.
    Features of other channels are compared through a learned linear projection (a 1 x 1 convolution), those of other
    resolution after average pooling to the smaller one.

    Args:
        student: what is trained.
        teacher: what it follows.
        example: two inputs.
        sites: ``student_module:teacher_module``, or one name for both; empty finds them.
        hints: weight of the hints.
        attention: weight of attention transfer.
        relations: weight of the relations.

    Raises:
        ConfigError: a name in ``sites`` is no module that gives one float tensor for a batch.
        ModelError: no features match.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        example: Inputs,
        *,
        sites: Iterable[str] = (),
        hints: float = 0.0,
        attention: float = 0.0,
        relations: float = 0.0,
    ) -> None:
        self.hints, self.attention, self.relations = hints, attention, relations
        body = body_of(student)
        ours = _stages(student, body, example)
        theirs = _stages(teacher, teacher, example)
        self.pairs = _named(ours, theirs, sites) if sites else _matched(body, ours, teacher, theirs)
        if not self.pairs:
            raise ModelError(
                "Distill found no hidden features that student and teacher both have; expected a module before the "
                "output that gives one float tensor: name some with sites=('student_module:teacher_module',)"
            )
        self.mapped = [(s, t) for s, t in self.pairs if prod(s.positions) > 1 and prod(t.positions) > 1]
        self.projections = nn.ModuleList(
            nn.Linear(s.channels, t.channels, bias=False) if hints and s.channels != t.channels else nn.Identity()
            for s, t in self.pairs
        )
        self._seen: dict[tuple[str, str], Tensor] = {}

    @property
    def notes(self) -> list[str]:
        """What is compared, for the history."""
        names = ", ".join(s.name if s.name == t.name else f"{s.name} with {t.name}" for s, t in self.pairs)
        notes = [f"compared hidden features of {names}"]
        if self.attention and not self.mapped:
            notes.append("no attention was transferred: none of these has more than one position")
        return notes

    @contextmanager
    def watching(self, student: nn.Module, teacher: nn.Module) -> Iterator[None]:
        """Take the features of every forward within the block."""
        body = body_of(student)
        handles = []
        for who, model, stages in (
            ("student", body, [s for s, _ in self.pairs]),
            ("teacher", teacher, [t for _, t in self.pairs]),
        ):
            for stage in stages:
                handles.append(model.get_submodule(stage.name).register_forward_hook(self._taker(who, stage)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen.clear()

    def _taker(self, who: str, stage: _Stage) -> Any:
        def take(module: nn.Module, args: Any, output: Tensor) -> None:
            # No call of the model's own, whatever mode is counting those.
            with torch._C.DisableTorchFunction():
                self._seen[who, stage.name] = stage.rows(output)

        return take

    def loss(self) -> Tensor:
        """Return the weighted sum of the terms on the features of the last forward of both."""
        seen = [(self._seen["student", s.name], self._seen["teacher", t.name]) for s, t in self.pairs]
        terms: list[Tensor] = []
        if self.hints:
            each = [hint(s, t, p) for (s, t), p in zip(seen, self.projections, strict=True)]
            terms.append(self.hints * torch.stack(each).mean())
        if self.attention and self.mapped:
            maps = [pair for pair, names in zip(seen, self.pairs, strict=True) if names in self.mapped]
            terms.append(self.attention * torch.stack([attention(s, t) for s, t in maps]).mean())
        if self.relations:
            last = [feature[:_MOST_RELATED].flatten(2).mean(2) if feature.ndim > 2 else feature[:_MOST_RELATED]
                    for feature in seen[-1]]  # fmt: skip
            terms.append(self.relations * relations(*last))
        return torch.stack(terms).sum() if terms else torch.zeros(())


def hint(student: Tensor, teacher: Tensor, projection: nn.Module) -> Tensor:
    """Return the mean square of what the projected feature misses (Romero et al. 2015, arXiv:1412.6550, eq. 3)."""
    student, teacher = _same_positions(student, teacher)
    return F.mse_loss(projection(student.movedim(1, -1)).float(), teacher.movedim(1, -1))


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of the maps of attention, mean over the batch, 0 to 2.

    A map is the sum of squares over channels at each position, as a unit vector (Zagoruyko & Komodakis 2017,
    arXiv:1612.03928, equation 2 with p = 2), so that numbers of channels may differ.

    Args:
        student: ``(B, channels, *positions)``.
        teacher: likewise.

    >>> x = torch.rand(2, 3, 4, 4)
    >>> float(attention(x, 7 * x)) < 1e-9
    True
    """
    student, teacher = _same_positions(student, teacher)
    one, other = (F.normalize(feature.square().sum(1).flatten(1)) for feature in (student, teacher))
    return (one - other).square().sum(1).mean()


def relations(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how much distances and angles between examples differ (Park et al. 2019, arXiv:1904.05068).

    The Huber loss of all distances, each divided by the mean distance, plus twice that of the cosines of all angles,
    the share that the paper gives them. Neither scale, shift nor rotation of the features changes anything.

    Args:
        student: ``(B, any)``.
        teacher: ``(B, any)``.
    """
    distances, angles = zip(*(_relations(feature) for feature in (student, teacher)), strict=True)
    return F.smooth_l1_loss(*distances) + 2 * F.smooth_l1_loss(*angles)


def _relations(x: Tensor) -> tuple[Tensor, Tensor]:
    differences = x.unsqueeze(0) - x.unsqueeze(1)  # (B, B, F)
    # The root has no gradient at zero, where an example meets itself or its double.
    distances = differences.square().sum(2).clamp_min(1e-12).sqrt()
    mean = distances.sum() / max(1, len(x) * (len(x) - 1))
    directions = F.normalize(differences, dim=2)
    return distances / mean.clamp_min(1e-6), directions @ directions.transpose(1, 2)


def _same_positions(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the feature of more positions down to the other's."""
    if one.shape[2:] == other.shape[2:]:
        return one, other
    if one.ndim != other.ndim:  # a vector is a map of one position
        one, other = one.reshape(*one.shape[:2], -1), other.reshape(*other.shape[:2], -1)
    size = tuple(min(a, b) for a, b in zip(one.shape[2:], other.shape[2:], strict=True))
    pool: Any = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(size)]
    return pool(one, size), pool(other, size)


def _stages(model: nn.Module, body: nn.Module, example: Inputs) -> dict[str, _Stage]:
    """Return what every module gives, by name, in the order in which they are done; the model's output is left out."""
    given: dict[str, Tensor] = {}
    sequences = any(isinstance(module, nn.Conv1d) for module in body.modules())

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            given.pop(name, None)
            if isinstance(output, Tensor) and output.is_floating_point() and len(output) == len(example):
                given[name] = output

        return hook

    names = [name for name, _ in body.named_modules() if name and "parametrizations" not in name]
    handles = [body.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        # With gradients, as the student will run: without them, transformer layers run no submodule.
        with evaluating(model), torch.enable_grad():
            final = model(example)
    finally:
        for handle in handles:
            handle.remove()
    stages = {}
    for name, tensor in given.items():
        if tensor is final or tensor.ndim < 2 or tensor.ndim > 5:
            continue
        shape = tuple(tensor.shape[1:])
        # Images with the channels last are told by their equal sides.
        last = (len(shape) == 2 and not sequences) or (len(shape) == 3 and shape[0] == shape[1] != shape[2])
        stages[name] = _Stage(name, shape[:-1] if last else shape[1:], shape[-1] if last else shape[0], last)
    return stages


def _matched(
    student: nn.Module, ours: dict[str, _Stage], teacher: nn.Module, theirs: dict[str, _Stage]
) -> list[tuple[_Stage, _Stage]]:
    mine, other = _last_at_each_resolution(student, ours), _last_at_each_resolution(teacher, theirs)
    common = [(mine[size], other[size]) for size in mine if size in other]
    # Maps with maps, from the end; where one has none, the last features of both.
    maps = [[stage for stage in found.values() if stage.positions][::-1] for found in (mine, other)]
    ends = [list(found.values())[-1:] for found in (mine, other)]
    return common or list(zip(*maps, strict=False))[::-1] or list(zip(*ends, strict=False))


def _last_at_each_resolution(model: nn.Module, stages: dict[str, _Stage]) -> dict[tuple[int, ...], _Stage]:
    blocks = {name: stage for name, stage in stages.items() if _is_block(model.get_submodule(name))}
    chosen = {stage.positions: stage for stage in blocks.values()}
    if len(chosen) < 2:  # the one block of a plain net (`features`) runs through several resolutions inside
        chosen = {stage.positions: stage for stage in stages.values()} | chosen
    order = list(stages)
    return dict(sorted(chosen.items(), key=lambda item: order.index(item[1].name)))


def _is_block(module: nn.Module) -> bool:
    return not isinstance(module, Layer) and any(isinstance(child, Layer) for child in module.modules())


def _named(ours: dict[str, _Stage], theirs: dict[str, _Stage], sites: Iterable[str]) -> list[tuple[_Stage, _Stage]]:
    pairs = []
    for site in sites:
        names = (site, site) if ":" not in site else site.split(":", 1)
        for name, stages, whose in zip(names, (ours, theirs), ("student", "teacher"), strict=True):
            if name not in stages:
                raise ConfigError(
                    f"Distill.sites names {name!r}, which gives no hidden float tensor in the {whose}; "
                    f"{nearest(name, stages)}"
                )
        pairs.append((ours[names[0]], theirs[names[1]]))
    return pairs
