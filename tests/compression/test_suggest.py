from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from job import Job, invoke
from nutlet import errors
from nutlet.compression.recipe import load_recipe
from nutlet.compression.stock import stock_recipes
from nutlet.compression.suggest import STEPS, Suggestion, suggest
from nutlet.compression.time_estimate import Estimate, Stopwatch
from nutlet.data.examples import Data, Examples, split
from nutlet.errors import ConfigError
from nutlet.measurement import Goal
from nutlet.measurement.goal import GoalVerdict
from nutlet.methods import DropBlocks, FineTune, PruneWeights, Quantize
from nutlet.methods.base import Method
from nutlet.report import load_report, verdict

LOOSE = Goal(max_loss=100.0)
RECIPES: dict[str, list[Method]] = {
    "int8": [Quantize()],
    "pruned": [PruneWeights(sparsity=0.5), FineTune(epochs=1), Quantize()],
    "pruned-twice": [PruneWeights(sparsity=0.5), FineTune(epochs=1), PruneWeights(sparsity=0.9), Quantize()],
}


@pytest.fixture(scope="module")
def data() -> Data:
    torch.manual_seed(0)
    x = torch.rand(120, 6)
    y = (x[:, 0] * 3).long()
    return split(Examples(x[:80], y[:80]), Examples(x[80:], y[80:]), calibration=20)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def tried(net: nn.Module, data: Data, folder: Path, *names: str, **options: object) -> Suggestion:
    recipes = {name: RECIPES[name] for name in names or RECIPES}
    return suggest(net, data, LOOSE, folder, recipes=recipes, seconds=0.01, **options)  # type: ignore[arg-type]


def test_the_smallest_that_meets_the_goal(net: nn.Module, data: Data, tmp_path: Path) -> None:
    found = tried(net, data, tmp_path, command=lambda folder: f"nutlet compress -r {folder}/recipe.yaml")
    assert found.verdict is GoalVerdict.MET
    assert found.best is not None
    sizes = {c.name: c.measurement.compressed.bytes for c in found.candidates if c.measurement}
    assert list(sizes) == list(RECIPES)
    assert sizes[found.best.name] == min(sizes.values())
    assert f"Best: {found.best.name}. Goal met: loss of at most 100 points: met" in found.sentence
    # Two steps are shared, and the original is exported and timed once.
    assert len([path for path in (tmp_path / STEPS).iterdir() if path.is_dir()]) == 1 + 3 + 2
    assert [*tmp_path.rglob("original.onnx")] == [tmp_path / "original.onnx"]
    originals = {c.measurement.original for c in found.candidates if c.measurement}
    assert len(originals) == 1
    for name, steps in RECIPES.items():
        assert load_recipe(tmp_path / name / "recipe.yaml") == steps
        report = load_report(tmp_path / name / "report.json")
        assert report["command"].endswith(f"{name}/recipe.yaml")
        assert "Goal met" in verdict(report)
    assert json.loads((tmp_path / "suggest.json").read_text())["best"] == found.best.name


def test_a_second_run_goes_on_from_the_finished_steps(
    net: nn.Module, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> list[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nutlet.compression.suggest.measure_all", killed)
        with pytest.raises(KeyboardInterrupt):
            tried(net, data, tmp_path, "pruned")
    monkeypatch.setattr(FineTune, "train", killed)  # trains no more
    assert tried(net, data, tmp_path, "pruned").verdict is GoalVerdict.MET


def test_what_does_not_fit_or_work_is_left_out(
    net: nn.Module, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Stopwatch.estimate

    def estimate(watch: Stopwatch, name: str, step: Method, **options: bool) -> Estimate:
        return Estimate(name, 1.0, 10_000.0) if name == "FineTune" else plain(watch, name, step, **options)

    monkeypatch.setattr(Stopwatch, "estimate", estimate)
    recipes = {**RECIPES, "blocks": [DropBlocks(drop=1)]}
    found = suggest(net, data, Goal(max_bytes=10), tmp_path / "a", recipes=recipes, seconds=0.01)
    told = {candidate.name: candidate.left_out for candidate in found.candidates}
    assert told["int8"] == ""
    assert "needs about" in told["pruned"]
    assert "needs about" in told["pruned-twice"]
    assert "does not work here: DropBlocks found no block" in told["blocks"]
    assert "left out: blocks" in " ".join(str(found).split())
    assert (found.best, found.verdict) == (None, GoalVerdict.MISSED)
    with pytest.raises(ConfigError, match=r"no recipe was left to measure .* expected one"):
        suggest(net, data, LOOSE, tmp_path / "b", recipes={"slow": RECIPES["pruned"]}, minutes=0.01)


def test_a_search_proposes_by_what_came_before(net: nn.Module, data: Data, tmp_path: Path) -> None:
    seen: list[dict[str, bool]] = []

    def propose(before: dict[str, object]) -> tuple[str, list[Method]] | None:
        seen.append({name: result is not None for name, result in before.items()})
        return None if before else ("first", [Quantize()])

    found = suggest(net, data, LOOSE, tmp_path, recipes=propose, seconds=0.01)  # type: ignore[arg-type]
    assert seen == [{}, {"first": True}]
    assert found.best is not None


def test_results_of_other_recipes_stay(net: nn.Module, data: Data, tmp_path: Path) -> None:
    one = {"a": [Quantize()]}
    suggest(net, data, LOOSE, tmp_path, recipes=one, seconds=0.01)
    other = {"a": [PruneWeights(sparsity=0.5), Quantize()]}
    with pytest.raises(ConfigError, match="another recipe"):
        suggest(net, data, LOOSE, tmp_path, recipes=other, seconds=0.01)
    with pytest.raises(ConfigError, match="a folder of its own"):
        suggest(net, data, LOOSE, tmp_path / "a", recipes=one, seconds=0.01)
    for name in ("../b", STEPS, ""):
        with pytest.raises(ConfigError, match="expected a name"):
            suggest(net, data, LOOSE, tmp_path / "new", recipes={name: [Quantize()]}, seconds=0.01)


def test_stock_recipes_share_their_first_steps() -> None:
    recipes = stock_recipes(nn.TransformerEncoderLayer(8, 2), epochs=3)
    assert 4 <= len(recipes) <= 6
    assert recipes["channels"][:2] == recipes["channels-low-rank"][:2] == recipes["channels-twice"][:2]
    assert recipes["blocks"][:2] == recipes["blocks-channels"][:2]
    assert recipes["channels"][1].to_dict() == {"Distill": {"epochs": 3, "optimizer": "adamw", "lr": 1e-3}}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tmp_path)
    common = (f"{tmp_path / 'net_of_job.py'}:make", "-d", tmp_path / "data.npz", "-o", tmp_path / "try")
    small = ("--calibration", 40, "--seconds", 0.02, "--epochs", 1)
    assert invoke("suggest", *common).exit_code == errors.ConfigError.exit_code
    result = invoke("suggest", *common, *small, "--max-bytes", "1MB", "--unpacked")
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stdout.splitlines() if line.startswith("to make it alone: nutlet compress"))
    words = line.removeprefix("to make it alone: nutlet ").split()
    assert "--unpacked" in words
    assert "--epochs" not in words
    assert invoke(*words).exit_code == 0  # what is told works
    assert job.halves() == []
