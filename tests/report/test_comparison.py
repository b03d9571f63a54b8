from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from job import Job, invoke
from nutlet import errors
from nutlet.report.comparison import compare, results


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs."""
    folder = tmp_path_factory.mktemp("runs")
    job = Job(folder)
    for name, recipe in (("a", "steps: [Quantize]"), ("b", "steps: [{PruneChannels: {ratio: 0.5}}, Quantize]")):
        job.out = folder / "out" / name
        assert job.compress("--max-loss", "100", recipe=recipe).exit_code == 0
    return folder / "out"


def changed(runs: Path, folder: Path, **parts: Any) -> Path:
    """Return a copy of a run whose report says something else."""
    report = json.loads((runs / "b" / "report.json").read_text())
    for part, values in parts.items():
        report[part] = copy.deepcopy(report[part]) | values
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_two_runs(runs: Path) -> None:
    found = compare([runs / "a", runs / "b" / "report.json"])
    assert found.differences == ()
    a, b = found.rows()
    assert (a["recipe"], b["recipe"]) == ("Quantize", "PruneChannels → Quantize")
    assert a["bytes"] == (runs / "a" / "model.onnx").stat().st_size > b["bytes"]
    assert (a["goal"], a["speedup_b1_t1"] > 0) == ("met", True)
    shown = invoke("compare", runs / "a", runs / "b")
    assert shown.exit_code == 0
    assert f"{a['bytes']:,}" in shown.stdout
    assert json.loads(invoke("compare", runs / "a", runs / "b", "--json").stdout)["runs"][1]["bytes"] == b["bytes"]


def test_what_differs_is_said(runs: Path, tmp_path: Path) -> None:
    other = changed(runs, tmp_path / "other", data={"name": "mnist"}, environment={"cpu": "an abacus"})
    found = compare([runs / "a", other])
    assert [text.partition(" of ")[0] for text in found.differences] == ["the data", "the processor"]
    assert "NOT COMPARABLE: the data" in str(found)
    task = {"task": "regression", "metric": "mean absolute error", "unit": "hours", "higher_is_better": False}
    measurement = json.loads((runs / "b" / "report.json").read_text())["measurement"] | {"task": task}
    with pytest.raises(errors.ConfigError, match="expected runs of one task"):
        compare([runs / "a", changed(runs, tmp_path / "task", measurement=measurement)])
    with pytest.raises(errors.ConfigError, match="expected two or more"):
        compare([runs / "a"])
    assert invoke("compare", runs / "a", tmp_path / "nothing").exit_code == errors.StorageError.exit_code


def test_names_of_strangers_are_made_visible(runs: Path, tmp_path: Path) -> None:
    other = changed(runs, tmp_path / "other", data={"name": "a\u202eb"})
    assert "\u202e" not in str(compare([runs / "a", other]))


def test_results_are_a_data_frame(runs: Path) -> None:
    pytest.importorskip("pandas")
    frame = results(runs)
    assert list(frame["run"]) == [str(runs / "a"), str(runs / "b")]
    assert list(frame["recipe"]) == ["Quantize", "PruneChannels → Quantize"]
    assert (frame["bytes"] > 0).all()
    assert len(results([runs / "a", runs / "b"])) == 2


def test_without_pandas_the_line_to_type_is_said(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(errors.MissingExtra, match=r"pip install 'nutlet\[tables\]'"):
        results(runs)
