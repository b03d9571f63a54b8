from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from nutlet.data.examples import Examples
from nutlet.errors import ConfigError
from nutlet.measurement import Goal, Measurement, Speedup, measure
from nutlet.measurement.goal import GoalVerdict, byte_count, goal_sentence, judge, judged, plain
from nutlet.measurement.results import FileFigures, Metric

FILE = FileFigures(0.9, 0.8, 0.95, 100, "model.onnx", "a runtime", 1000, 900, (), None, None)
HOURS = Metric("regression", "mean absolute error", "hours", False)


def figures(low: float, high: float, task: Metric | None = None, speed: Speedup | None = None) -> Measurement:
    speeds = (speed,) if speed else ()
    return Measurement(FILE, FILE, 1.0, 1.0, 1.0, (low + high) / 2, low, high, speeds, "test", {}, task or Metric())


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.002, 0.01, "met"), (0.0101, 0.03, "missed"), (-0.002, 0.0104, "not shown"), (0.01, 0.02, "not shown")],
)
def test_a_loss_is_judged_by_its_whole_interval(low: float, high: float, verdict: str) -> None:
    (part,) = judge(Goal(max_loss=1.0), figures(low, high))
    assert (part.verdict, part.unit) == (verdict, "points")


def test_rounding_hides_no_verdict() -> None:
    (part,) = judge(Goal(max_loss=1.0), figures(-0.002, 0.0104))
    assert part.words == "loss of at most 1 points: not shown (0.42, 95 % interval -0.20 to 1.04)"


def test_a_loss_is_in_the_unit_of_the_task() -> None:
    (part,) = judge(Goal(max_loss=0.5), figures(0.1, 0.4, HOURS))
    assert (part.verdict, part.unit, part.high) == ("met", "hours", 0.4)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(2, 2.2, "met"), (1.8, 2.2, "not shown"), (1.5, 1.9, "missed"), (None, None, "not shown")],
)
def test_speed(low: float | None, high: float | None, verdict: str) -> None:
    found = figures(0, 0, speed=Speedup(1, 1, 2.1, 2.1, low, high))
    assert [part.verdict for part in judge(Goal(min_speedup=2.0), found)] == [verdict]


def test_the_whole_is_as_its_worst_part() -> None:
    parts = judge(Goal(max_loss=1.0, max_bytes=999), figures(0, 0.02))
    assert [part.verdict for part in parts] == ["not shown", "missed"]
    assert judged(parts) is GoalVerdict.MISSED
    assert judged(()) is GoalVerdict.MET
    assert goal_sentence(plain(parts)) == goal_sentence(parts)


def test_goals_that_cannot_be_judged_are_refused(save: Callable[..., Path], examples: Examples) -> None:
    path = save(np.eye(4))
    with pytest.raises(ConfigError, match="about an original"):
        measure(path, examples, goal=Goal(max_loss=1.0))
    with pytest.raises(ConfigError, match="needs the original's file"):
        measure(path, examples, nn.Linear(4, 4), goal=Goal(min_speedup=2.0))
    with pytest.raises(ConfigError, match="Goal is empty"):
        Goal()
    with pytest.raises(ConfigError, match="max_loss is -1"):
        Goal(max_loss=-1.0)


@pytest.mark.parametrize("text", ["x", "1.2.3MB", "3 tons", "-5"])
def test_bytes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a number of bytes"):
        byte_count("--max-bytes", text)
