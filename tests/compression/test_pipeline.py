"""The chain from outside: cache, resuming, history, saved folders nobody should trust, methods from elsewhere."""

from __future__ import annotations

import copy
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nutlet as nl
import tiny
from nutlet.compression.compressed import Compressed
from nutlet.data.examples import Data
from nutlet.errors import ConfigError, DataError, ModelError, StorageError
from nutlet.methods.base import Plan
from nutlet.tasks import CLASSIFICATION
from nutlet.tasks.predict import predict

TESTS = Path(__file__).parents[1]


@nl.register
@dataclass(frozen=True, kw_only=True)
class ScaleHead(nl.Method):
    """A third party's method, written against the public names alone: doubles the outputs.

    Args:
        factor: by how much.
    """

    use_when: ClassVar[str] = "never; it is a test"
    recoverable: ClassVar[bool] = True
    calls: ClassVar[list[str]] = []

    factor: float = 2.0

    def plan(self, model: nn.Module, context: nl.Context) -> Plan:
        self.calls.append("decide")
        return {"factor": self.factor, "notes": ["doubled"]}

    @staticmethod
    def apply(model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
        with torch.no_grad():
            model.get_parameter("fc2.weight").mul_(plan["factor"])
            model.get_parameter("fc2.bias").mul_(plan["factor"])
        return model


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, Data]:
    return tiny.tiny("mlp")


@pytest.fixture
def mlp(made: tuple[nn.Module, Data]) -> tuple[nn.Module, Data]:
    ScaleHead.calls.clear()
    return copy.deepcopy(made[0]), made[1]


def tensors(folder: Path) -> bytes:
    return (folder / "model.packed").read_bytes()


# The chain


def test_a_third_partys_method_is_a_method_like_any_other(mlp: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, data = mlp
    (tmp_path / "recipe.yaml").write_text("steps: [ScaleHead: {factor: 3.0}, Quantize]\n")
    result = nl.compress(model, tmp_path / "recipe.yaml", data)
    assert [step.name for step in result.steps] == ["original", "ScaleHead", "Quantize"]
    assert result.steps[1].notes[0] == "doubled"
    plain = nl.compress(model, [ScaleHead(factor=3.0)], data)
    torch.testing.assert_close(predict(plain.model, data.validation), predict(model, data.validation) * 3)
    with pytest.raises(nl.ConfigError, match="factor"):
        nl.method_from_dict({"ScaleHead": {"facotr": 1.0}})
    with pytest.raises(nl.ConfigError, match="expected a finite number"):
        ScaleHead(factor="2")  # type: ignore[arg-type]
    loaded = Compressed.load(result.save(tmp_path / "saved"), tiny.TinyMLP())
    assert torch.equal(predict(loaded.model, data.validation), predict(result.model, data.validation))


def test_a_name_can_be_taken_once() -> None:
    assert nl.register(ScaleHead) is ScaleHead
    with pytest.raises(nl.ConfigError, match="Quantize"):
        nl.register(type("Quantize", (nl.Method,), {}))


PLUGIN = '''
from dataclasses import dataclass
import nutlet as nl

@dataclass(frozen=True, kw_only=True)
class Nothing(nl.Method):
    """Does nothing."""
'''


def test_an_installed_package_brings_its_methods(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(PLUGIN)
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nutlet.methods]\nNothing = elsewhere:Nothing\n")
    script = (
        "import tiny, nutlet as nl\n"
        "model, data = tiny.tiny('mlp')\n"
        "result = nl.compress(model, ['Nothing', {'Nothing': {'exclude': ['fc1']}}], data)\n"
        "print([step.method for step in result.steps], result.steps[1].notes)\n"
    )
    paths = [str(tmp_path), str(TESTS), *sys.path]
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "[{}, {'Nothing': {}}, {'Nothing': {'exclude': ['fc1']}}]" in run.stdout
    assert "neither smaller nor faster" in run.stdout


def test_the_history_says_what_each_step_did(mlp: tuple[nn.Module, Data]) -> None:
    model, data = mlp
    result = nl.compress(model, [nl.DropBlocks(drop=1), nl.PruneWeights(sparsity=0.5), nl.Quantize()], data)
    original, dropped, pruned, quantized = result.steps
    assert original.method == {} == original.plan
    assert original.size.parameters == sum(p.numel() for p in model.parameters())
    assert original.size.bytes == 4 * original.size.parameters
    assert original.size.macs == 10 * 16 + 4 * 16 * 16 + 16 * 4
    assert dropped.size.macs == original.size.macs - 2 * 16 * 16
    assert dropped.plan["dropped"][0] in dropped.notes[0]
    assert pruned.size.bytes == dropped.size.bytes
    assert pruned.size.bytes_packed < dropped.size.bytes_packed
    assert pruned.size.effective_macs == round(pruned.size.macs * 0.5)
    assert quantized.size.bytes < 0.5 * pruned.size.bytes
    assert {layer.bits for layer in quantized.size.layers} == {8}
    assert all(step.seconds > 0 for step in result.steps)
    accuracy = (predict(result.model, data.validation).argmax(1) == data.validation.y).float().mean()
    assert quantized.accuracy == pytest.approx(float(accuracy))
    assert json.loads(json.dumps([s.to_dict() for s in result.steps]))
    text = str(result.table())
    assert all(name in text for name in ("DropBlocks", "PruneWeights", "Quantize"))
    assert "<table" in result._repr_html_()


def test_a_step_that_does_not_help_says_so(mlp: tuple[nn.Module, Data]) -> None:
    model, data = mlp
    result = nl.compress(model, [nl.Factorize(energy=1.0), nl.Quantize(), nl.Quantize()], data)
    assert any("nothing factorized" in note for note in result.steps[1].notes)
    assert "this step made the model neither smaller nor faster" in result.steps[1].notes
    assert "this step made the model neither smaller nor faster" not in result.steps[2].notes
    assert "this step made the model neither smaller nor faster" in result.steps[3].notes


def test_recovery_follows_each_run_of_steps_it_can_repair(mlp: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, data = mlp
    recover = nl.FineTune(epochs=1, batch_size=16)
    chain = [nl.DropBlocks(drop=1), nl.PruneChannels(ratio=0.2), nl.Quantize()]
    result = nl.compress(model, chain, data, recover=recover)
    names = [step.name for step in result.steps[1:]]
    assert names == ["DropBlocks", "PruneChannels", "FineTune", "Quantize"]
    assert result.recipe == [*chain[:2], recover, chain[2]]
    again = nl.compress(model, result.save(tmp_path) / "recipe.yaml", data)
    assert [step.name for step in again.steps[1:]] == names, "a saved recipe does not insert recovery twice"
    assert torch.equal(predict(again.model, data.validation), predict(result.model, data.validation))


class Untouchable:
    def __len__(self) -> int:
        return 1  # that there is one, and what for, anybody may know

    def __getattribute__(self, name: str) -> object:
        if name == "task":
            return CLASSIFICATION
        raise AssertionError(f"somebody read test.{name}")


def test_the_test_split_is_not_looked_at(mlp: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, data = mlp
    sealed = replace(data, test=Untouchable())  # type: ignore[arg-type]
    chain = [nl.DropBlocks(drop=1), nl.PruneChannels(ratio=0.2), nl.Factorize(), nl.PruneWeights(sparsity=0.2)]
    chain += [nl.Distill(epochs=1, batch_size=16), nl.Quantize()]
    nl.compress(model, chain, sealed, workdir=tmp_path)


@pytest.mark.parametrize("recipe", [[], [{"Quantise": {}}], ["Quantise"], [{"Quantize": {"bit": 8}}], [{}], [3]])
def test_a_wrong_recipe_is_refused(recipe: list[Any], mlp: tuple[nn.Module, Data]) -> None:
    with pytest.raises(nl.ConfigError, match=r"expected|Quantize|bits"):
        nl.compress(mlp[0], recipe, mlp[1])


# The cache


def test_a_second_run_does_nothing_and_gives_the_same_bytes(mlp: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, data = mlp
    chain = [ScaleHead(), nl.FineTune(epochs=1, batch_size=16), nl.Quantize()]
    first = nl.compress(model, chain, data, workdir=tmp_path / "work")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("*")}
    second = nl.compress(model, chain, data, workdir=tmp_path / "work")
    assert ScaleHead.calls == ["decide"]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("*")} == stamps
    for file in ("compressed.json", "recipe.yaml", "model.packed"):
        one, two = (result.save(tmp_path / name) / file for result, name in ((first, "one"), (second, "two")))
        assert one.read_bytes() == two.read_bytes()
    without = nl.compress(model, chain, data)
    assert tensors(without.save(tmp_path / "three")) == tensors(tmp_path / "one")
    assert not list((tmp_path / "work").rglob("*.pt")), "finished training leaves no checkpoint"


def test_a_changed_last_step_reuses_the_earlier_ones(mlp: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, data = mlp
    train = nl.FineTune(epochs=1, batch_size=16)
    nl.compress(model, [ScaleHead(), train, nl.Quantize()], data, workdir=tmp_path / "work")
    second = nl.compress(model, [ScaleHead(), train, nl.Quantize(activations=False)], data, workdir=tmp_path / "work")
    assert ScaleHead.calls == ["decide"]
    fresh = nl.compress(model, [ScaleHead(), train, nl.Quantize(activations=False)], data)
    assert tensors(second.save(tmp_path / "a")) == tensors(fresh.save(tmp_path / "b"))
    assert [s.plan for s in second.steps] == [s.plan for s in fresh.steps]


def test_a_damaged_intermediate_is_made_anew(mlp: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, data = mlp
    chain = [ScaleHead(), nl.Quantize()]
    first = nl.compress(model, chain, data, workdir=tmp_path / "work")
    for file in (tmp_path / "work").glob("*/model.packed"):  # both: the first step has to be done again as well
        file.write_bytes(file.read_bytes()[:-9])
    second = nl.compress(model, chain, data, workdir=tmp_path / "work")
    assert ScaleHead.calls == ["decide"] * 2
    assert tensors(second.save(tmp_path / "a")) == tensors(first.save(tmp_path / "b"))
    third = nl.compress(model, chain, data, workdir=tmp_path / "work")
    assert ScaleHead.calls == ["decide"] * 2
    assert tensors(third.save(tmp_path / "c")) == tensors(tmp_path / "b")


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inner(x)  # type: ignore[no-any-return]


def test_a_plain_attribute_makes_another_model(mlp: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, data = mlp
    first, second = (
        nl.compress(Scaled(model, factor), [nl.Quantize(bits=4)], data, workdir=tmp_path) for factor in (1.0, -1.0)
    )
    assert first.steps[0].accuracy != second.steps[0].accuracy


def test_integer_activations_are_worth_a_step(mlp: tuple[nn.Module, Data]) -> None:
    model, data = mlp
    steps = nl.compress(model, [nl.Quantize(activations=False), nl.Quantize(), nl.Quantize()], data).steps
    idle = "this step made the model neither smaller nor faster"
    assert [idle in step.notes for step in steps] == [False, False, False, True]


@pytest.mark.parametrize("seed", [1.5, "a", -1, 2**70])
def test_a_seed_that_is_none(mlp: tuple[nn.Module, Data], seed: Any) -> None:
    with pytest.raises(nl.ConfigError, match=r"the seed is .*; expected a whole number"):
        nl.compress(mlp[0], [nl.Quantize()], mlp[1], seed=seed)


def test_no_model_and_no_recovery(mlp: tuple[nn.Module, Data]) -> None:
    with pytest.raises(nl.ModelError, match=r"the model is a NoneType; expected a torch\.nn\.Module"):
        nl.compress(None, [nl.Quantize()], mlp[1])  # type: ignore[arg-type]
    with pytest.raises(nl.ConfigError, match="recover is Quantize; expected a method that trains"):
        nl.compress(mlp[0], [nl.PruneWeights(sparsity=0.5)], mlp[1], recover=nl.Quantize())


def test_anything_that_matters_makes_another_entry(mlp: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, data = mlp
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter("fc1.bias")[0] += 1e-3
    moved = replace(data, calibration=data.train.subset(slice(8, 40)))

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        return x

    runs: list[Callable[[], object]] = [
        lambda: nl.compress(model, [ScaleHead()], data, workdir=tmp_path),
        lambda: nl.compress(model, [ScaleHead()], data, workdir=tmp_path, seed=1),
        lambda: nl.compress(model, [ScaleHead(factor=3.0)], data, workdir=tmp_path),
        lambda: nl.compress(other, [ScaleHead()], data, workdir=tmp_path),
        lambda: nl.compress(model, [ScaleHead()], moved, workdir=tmp_path),
        lambda: nl.compress(model, [ScaleHead()], replace(data, augment=augment), workdir=tmp_path),
    ]
    for count, run in enumerate(runs, 1):
        run()
        assert len(ScaleHead.calls) == count


SCRIPT = '''
import os, signal, sys
import tiny, torch
from dataclasses import replace
import nutlet as nl

# A shell that runs the tests in the background lets its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
calls = 0

def augment(x, generator):
    """Kills the process in the middle of the second epoch, if asked to."""
    global calls
    calls += 1
    if calls == 6 and os.environ.get("NUTLET_TEST_KILL"):
        os.kill(os.getpid(), int(os.environ["NUTLET_TEST_KILL"]))
    return x + 0.1 * torch.randn(x.shape, generator=generator)

model, data = tiny.tiny("mlp")
data = replace(data, augment=augment)
train = nl.FineTune(epochs=4, batch_size=16, **eval(sys.argv[2]))
result = nl.compress(model, [nl.PruneWeights(sparsity=0.3), train, nl.Quantize()], data, workdir=sys.argv[1])
'''


@pytest.mark.parametrize(
    ("how", "options"),
    [(signal.SIGKILL, {}), (signal.SIGINT, {"optimizer": "adamw", "patience": 3, "lr": 0.01})],
    ids=["SIGKILL", "SIGINT"],
)
def test_a_killed_training_goes_on_and_ends_the_same(
    how: signal.Signals, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    killed = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "work"), repr(options)],
        env={**os.environ, "NUTLET_TEST_KILL": str(int(how)), "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True,
    )
    assert killed.returncode != 0
    (checkpoint,) = (tmp_path / "work").rglob("training.pt")
    assert not (checkpoint.parent / "compressed.json").exists()

    def run(folder: str) -> Compressed:
        monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / folder), repr(options)])
        result: Compressed = runpy.run_path(str(script), run_name="__main__")["result"]
        return result

    resumed, whole = run("work"), run("whole")
    assert any(note.startswith("continued after epoch 1") for note in resumed.steps[2].notes)
    assert tensors(resumed.save(tmp_path / "a")) == tensors(whole.save(tmp_path / "b"))
    assert [s.accuracy for s in resumed.steps] == [s.accuracy for s in whole.steps]
    assert [s.plan for s in resumed.steps] == [s.plan for s in whole.steps]
    assert not list((tmp_path / "work").rglob(".*.part"))


# Saved folders


@pytest.fixture(scope="module")
def saved(made: tuple[nn.Module, Data], tmp_path_factory: pytest.TempPathFactory) -> Path:
    chain = [nl.DropBlocks(drop=1), nl.PruneChannels(ratio=0.2), nl.Factorize(energy=0.5, include=("fc1",))]
    chain += [nl.PruneWeights(sparsity=0.2), nl.Quantize()]
    return nl.compress(*made[:1], chain, made[1]).save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def damage(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "compressed.json").read_text())
    change(manifest)
    (folder / "compressed.json").write_text(json.dumps(manifest))


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no seed": lambda m: m.pop("seed"),
    "a seed that is none": lambda m: m.update(seed="x"),
    "an endless seed": lambda m: m.update(seed=float("inf")),
    "another format": lambda m: m.update(format=99),
    "no format": lambda m: m.pop("format"),
    "steps that are none": lambda m: m.update(steps=3),
    "a huge example": lambda m: m["inputs"]["tensors"]["x"].update(shape=[2, 10**9]),
    "a larger example than memory": lambda m: m["inputs"]["tensors"]["x"].update(shape=[10**30]),
    "a negative example": lambda m: m["inputs"]["tensors"]["x"].update(shape=[-2, 10]),
    "no example": lambda m: m["inputs"]["tensors"]["x"].update(shape=[]),
    "an example of other width": lambda m: m["inputs"]["tensors"]["x"].update(shape=[2, 11]),
    "other inputs": lambda m: m["inputs"].update(sha256="0" * 64),
    "an unknown method": lambda m: m["steps"][1].update(method={"Evil": {}}),
    "an unknown option": lambda m: m["steps"][1].update(method={"DropBlocks": {"drop": 1, "evil": 1}}),
    "two methods": lambda m: m["steps"][1].update(method={"Quantize": {}, "Factorize": {}}),
    "a block that is none": lambda m: m["steps"][1]["plan"].update(dropped=["nowhere"]),
    "a block named as an attribute": lambda m: m["steps"][1]["plan"].update(dropped=["forward"]),
    "a dunder": lambda m: m["steps"][1]["plan"].update(dropped=["__class__"]),
    "the model itself": lambda m: m["steps"][1]["plan"].update(dropped=[""]),
    "channels of nothing": lambda m: m["steps"][2]["plan"].update(removed={"nowhere": [0]}),
    "channels that are none": lambda m: m["steps"][2]["plan"].update(removed={"fc1": [10**6]}),
    "all channels": lambda m: m["steps"][2]["plan"].update(removed={"fc1": list(range(16))}),
    "a rank that fills memory": lambda m: m["steps"][3]["plan"].update(ranks={"fc1": 10**12}),
    "a negative rank": lambda m: m["steps"][3]["plan"].update(ranks={"fc1": -1}),
    "a mask on nothing": lambda m: m["steps"][4]["plan"]["masked"].append("nowhere"),
    "a mask that is not there": lambda m: m["steps"][4]["plan"]["masked"].pop(),
    "an activation nowhere": lambda m: m["steps"][5]["plan"]["activations"].update({"x/y/0": {"same_as": "/input/0"}}),
    "a scale of zero": lambda m: m["steps"][5]["plan"]["activations"]["/input/0"].update(scale=0.0),
    "a scale that is text": lambda m: m["steps"][5]["plan"]["activations"]["/input/0"].update(scale="1"),
    "a scale that is no number": lambda m: m["steps"][5]["plan"]["activations"]["/input/0"].update(scale=float("nan")),
    "a zero point out of range": lambda m: m["steps"][5]["plan"]["activations"]["/input/0"].update(zero_point=256),
    "a step left out": lambda m: m["steps"].pop(2),
    "no steps": lambda m: m["steps"].clear(),
    "an accuracy that is text": lambda m: m["steps"][0].update(accuracy="good"),
    "a size that is text": lambda m: m["steps"][0]["size"].update(bytes="few"),
    "a size of unknown kind": lambda m: m["steps"][0]["size"].update(evil=1),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_manifest_is_a_storage_error(name: str, folder: Path) -> None:
    damage(folder, DAMAGES[name])
    with pytest.raises(nl.StorageError, match="expected"):
        Compressed.load(folder, tiny.TinyMLP())


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"x"', "{}", "\0", "[" * 100_000, '{"format": 1}', "9" * 5000])
def test_a_manifest_of_garbage_is_a_storage_error(text: str, folder: Path) -> None:
    (folder / "compressed.json").write_text(text)
    with pytest.raises(nl.StorageError, match="expected"):
        Compressed.load(folder, tiny.TinyMLP())


@pytest.mark.parametrize("keep", [0, 4, 16, 17, 100, 300, -1])
def test_truncated_tensors_are_a_storage_error(keep: int, folder: Path) -> None:
    content = tensors(folder)
    (folder / "model.packed").write_bytes(content[:keep])
    with pytest.raises(nl.StorageError, match="expected"):
        Compressed.load(folder, tiny.TinyMLP())


@pytest.mark.parametrize("file", ["compressed.json", "model.packed"])
def test_a_missing_file_is_a_storage_error(file: str, folder: Path) -> None:
    (folder / file).unlink()
    with pytest.raises(nl.StorageError, match="expected"):
        Compressed.load(folder, tiny.TinyMLP())
    (folder / file).mkdir()
    with pytest.raises(nl.StorageError, match="expected"):
        Compressed.load(folder, tiny.TinyMLP())


def test_another_architecture_is_a_storage_error(folder: Path) -> None:
    for stranger in (tiny.TinyCNN(), nn.Linear(10, 4), nn.Sequential()):
        with pytest.raises(nl.StorageError, match=type(stranger).__name__):
            Compressed.load(folder, stranger)


def test_loading_does_not_change_the_original(folder: Path) -> None:
    original = tiny.TinyMLP().train()
    before = copy.deepcopy(original.state_dict())
    Compressed.load(folder, original)
    assert original.training
    assert all(torch.equal(before[n], t) for n, t in original.state_dict().items())


JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [-1, 0, 1, 2, 255, 10**9, 10**40, 0.5, float("inf"), float("nan"), "", "fc1", "/input/0", "..", "weight"]
    ),
    st.builds(list),
    st.builds(dict),
    st.lists(st.integers(-2, 20), max_size=3),
    st.dictionaries(st.sampled_from(["fc1", "scale", "Quantize", "same_as"]), st.integers(-2, 300), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into nested JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, item in inside for p in places(item, (*path, key)))]


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_change_of_the_manifest_gets_past_as_anything_but_a_storage_error(
    folder: Path, saved: Path, data: Any
) -> None:
    manifest = json.loads((saved / "compressed.json").read_text())
    *way, last = data.draw(st.sampled_from(places(manifest)[1:]))
    holder = manifest
    for key in way:
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[last] = data.draw(JSON)
    else:
        del holder[last]
    (folder / "compressed.json").write_text(json.dumps(manifest))
    try:
        loaded = Compressed.load(folder, tiny.TinyMLP())
    except nl.StorageError:
        return
    assert str(loaded.table())
    assert loaded.recipe is not None
    assert loaded.model(loaded.example).shape[-1] == tiny.CLASSES


def test_what_is_given_is_checked_first(mlp: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, data = mlp
    for recover in (True, 3):
        with pytest.raises(ConfigError, match="expected a method that trains"):
            nl.compress(model, [nl.Quantize()], data, recover=recover)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"expected nutlet\.Data"):
        nl.compress(model, [nl.Quantize()], (data.train.x, data.train.y))  # type: ignore[arg-type]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="could not write"):
        nl.compress(model, [nl.Quantize()], data, workdir=tmp_path / "file")
    single = nl.compress(model, nl.Quantize(include=["*"]), data, recover="FineTune")  # type: ignore[arg-type]
    assert [step.name for step in single.steps] == ["original", "Quantize"]
    assert repr(single).startswith("<Compressed original → Quantize: ")
    assert "validation accuracy" in str(single)


def test_channels_that_cannot_be_followed_are_an_error_in_words() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(8, 32), nn.Linear(32, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.fft.rfft(self.hidden(x), n=62).abs())

    examples = nl.Examples.from_arrays(torch.randn(60, 8), torch.arange(60) % 3)
    with pytest.raises(ModelError, match=r"hidden: .*fft_rfft in the model is a call through which"):
        nl.compress(Sorted(), [nl.PruneChannels(ratio=0.5)], nl.split(examples))


@pytest.mark.parametrize("only", [0, 3])
def test_one_class_is_nothing_to_learn(only: int) -> None:
    with pytest.raises(DataError, match=f"all training labels are {only}"):
        nl.split(nl.Examples.from_arrays(torch.randn(20, 4), torch.full((20,), only)))


def test_a_sound_original_of_two_classes_is_not_called_chance(tmp_path: Path) -> None:
    x = torch.randn(300, 2)
    labels = (x[:, 0] > 0).long()
    labels[::8] = 1 - labels[::8]  # nobody gets more than seven in eight right
    model = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0]] * 8))
        model[1].weight.copy_(torch.tensor([[-1.0] * 8, [1.0] * 8]))
        for layer in model:
            layer.bias.zero_()
    examples = nl.Examples.from_arrays(x, labels)

    def warnings(original: nn.Module, name: str) -> str:
        data = nl.split(examples, examples)
        small = nl.compress(original, nl.Quantize(), data)
        nl.ship(small, original, data, tmp_path / name, seconds=0.01)
        found = json.loads((tmp_path / name / "report.json").read_text())["findings"]
        return " ".join(finding["words"] for finding in found)

    assert "near chance" not in warnings(model, "sound")
    with torch.no_grad():
        model[1].weight.neg_()
    assert "near chance" in warnings(model, "upside-down")
