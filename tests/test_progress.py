"""What is shown of long work on a terminal."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import tiny
from nutlet.graph.statistics import run_through
from nutlet.progress import Progress
from nutlet.training.context import Context


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> Progress:
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, a terminal
    monkeypatch.setenv("COLUMNS", "100")
    return Progress()


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)


def test_a_bar_within_a_bar_is_a_line_below_it(progress: Progress, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.task("layers", total=2), progress.task("examples", total=5):
        pass
    assert re.search(r"layers .* 0/2 .*\n *examples .* 0/5 ", shown(capsys))


def test_a_pass_over_calibration_data_is_counted_by_examples(
    progress: Progress, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = tiny.tiny("mlp")
    context = Context(data=data, teacher=model, progress=progress)
    count = len(data.calibration)
    for passing in (context.calibration("ranges", 10),) * 2:  # each loop is a pass of its own
        batches = list(passing)
        assert [len(x) for x, _ in batches[:-1]] == [10] * (len(batches) - 1)
        assert torch.equal(torch.cat([x for x, _ in batches]), data.calibration.x)
        assert torch.equal(torch.cat([y for _, y in batches]), data.calibration.y)
        assert re.search(rf"ranges .* {count}/{count} ", shown(capsys))


def test_the_bar_of_a_pass_that_fails_is_gone_at_once(progress: Progress) -> None:
    context = Context(data=tiny.tiny("mlp")[1], teacher=nn.Identity(), progress=progress)
    passing = context.calibration("ranges")
    with pytest.raises(RuntimeError) as error:  # whose traceback holds the frames of the loop
        run_through(nn.Linear(3, 3), passing)
    assert error.traceback
    assert progress._console._live_stack == []
