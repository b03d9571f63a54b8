"""Where a piecewise linear function bends along a line, and its gradient between two bends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Ask", "Line"]

Ask = Callable[[Tensor], Tensor]


class Line:
    """A function on ``start + t direction``: linear in ``t`` but for bends.

    Args:
        ask: ``(N, inputs)`` float64 to ``(N, outputs)`` float64; every row is a query.
        start, direction: ``(inputs,)``.
        eps: relative error of the answers.
        loose: the function is what is left of answers after taking away what is known of them.
    """

    def __init__(self, ask: Ask, start: Tensor, direction: Tensor, eps: float, loose: bool) -> None:
        self.ask, self.start, self.direction, self.eps = ask, start, direction, eps
        self.step = eps**0.2
        """How far apart two questions are, as a part of what lies free around them: the fewer digits, the farther."""
        self.loose = 30 * eps**0.5 if loose else 0.0
        """Relative error of what is known of the victim already."""
        self.found: list[tuple[float, Tensor]] = []
        self.probes: list[_Probe] = []
        self.slope = torch.empty(0)
        """``(outputs,)`` before the first bend, once :meth:`bends` was called."""

    def bends(self) -> list[tuple[float, Tensor]]:
        """Return ``t`` and the change of slope ``(outputs,)`` of each bend, in order."""
        end = math.atan(1 / self.step)
        left, right = (self._probe(angle, self.step) for angle in (-end, end))
        self.slope = left.slope
        self._search(-end, end, left, right)
        merged: list[tuple[float, Tensor]] = []
        for time, jump in sorted(self.found, key=lambda bend: bend[0]):
            if merged and self._one(merged[-1], (time, jump)):
                earlier, part = merged.pop()
                total = part + jump
                time = earlier + float((jump * total).sum() / (total * total).sum()) * (time - earlier)
                jump = total
            merged.append((time, jump))
        return merged

    def _one(self, a: tuple[float, Tensor], b: tuple[float, Tensor]) -> bool:
        """Whether two bends are one that lay between the two questions of a probe: it shows as one at each of them."""
        between = any(
            abs(a[0] - (probe.time - probe.apart / 2)) + abs(b[0] - (probe.time + probe.apart / 2)) < 0.1 * probe.apart
            for probe in self.probes
        )
        return between and float(torch.cosine_similarity(a[1], b[1], dim=0)) > 1 - 1e-6

    def _at(self, *times: float) -> Tensor:
        return self.ask(self.start + torch.tensor(times, dtype=torch.float64)[:, None] * self.direction)

    def _probe(self, angle: float, width: float) -> _Probe:
        time = math.tan(angle)
        apart = self.step * width / math.cos(angle) ** 2
        values = self._at(time - apart / 2, time + apart / 2)
        slope = (values[1] - values[0]) / apart
        size = float(values.abs().max() + abs(time) * slope.abs().max())
        probe = _Probe(time, apart, values.mean(0), slope, (40 * self.eps + self.loose) * size / apart)
        self.probes.append(probe)
        return probe

    def _search(self, begin: float, end: float, left: _Probe, right: _Probe) -> None:
        width, jump = right.time - left.time, right.slope - left.slope
        error = left.error + right.error
        gap = right.value - left.value - left.slope * width
        if float(gap.abs().max()) <= error * width and float(jump.abs().max()) <= 2 * error:
            return  # linear
        time = right.time - float((gap * jump).sum() / (jump * jump).sum().clamp_min(1e-300))
        if left.time < time < right.time and float((gap - jump * (right.time - time)).abs().max()) <= 2 * error * width:
            # The two ends meet here. Two questions close to it tell whether they do, and where exactly.
            near = 0.01 * self.step * min(time - left.time, right.time - time)
            before, after = self._at(time - near, time + near)
            wrong = torch.stack([before - left.at(time - near), after - right.at(time + near)])
            if float(wrong.abs().max()) <= 2 * error * width:
                shift = float(((wrong[0] - wrong[1]) * jump).sum() / (jump * jump).sum())
                self.found.append((time + shift, jump))
                return
        if end - begin < 1e-10:
            return  # not the answers of a piecewise linear function
        middle = (begin + end) / 2
        probe = self._probe(middle, (end - begin) / 2)
        self._search(begin, middle, left, probe)
        self._search(middle, end, probe, right)

    def gradient(self, time: Tensor, half: Tensor, slope: Tensor) -> Tensor:
        """Return the gradient ``(outputs, inputs)`` in a cell, by differences that stay inside it.

        That they do shows in the slope along the line, which is known; a step that crossed into another cell is
        taken again, shorter.
        """
        x = self.start + time * self.direction
        step = float(half) * self.step
        for _ in range(3):
            answers = self.ask(torch.cat([x[None], x + step * torch.eye(len(x), dtype=torch.float64)]))
            result: Tensor = (answers[1:] - answers[0]).T / step
            error = (40 * self.eps + self.loose) * float(answers.abs().max()) / step
            if float((result @ self.direction - slope).abs().max()) <= 2 * error * float(self.direction.abs().sum()):
                break
            step /= 30
        return result


@dataclass(frozen=True, eq=False)
class _Probe:
    """Value and slope at one place of a line, by two questions that far apart, and the error of the slope."""

    time: float
    apart: float
    value: Tensor
    slope: Tensor
    error: float

    def at(self, time: float) -> Tensor:
        return self.value + (time - self.time) * self.slope
