from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import onnx
import pytest

from job import Job, invoke
from nutlet import errors, signals
from nutlet.cli.common import command_line, loading
from nutlet.formats import Runtime
from nutlet.methods import known_methods
from nutlet.report.load import schema
from nutlet.storage import write_atomic

INTERRUPTED = (130, -signal.SIGINT)
"""A shell reports 130 for either."""


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start the command as a user does."""
    return subprocess.Popen(
        [sys.executable, "-m", "nutlet", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        # A test run in the background of a shell ignores the signal, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(sys, "path", sys.path[:])
    return Job(tmp_path)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str, float]:
    """The folder of one run of the demo, what it printed, and how long it took."""
    folder = tmp_path_factory.mktemp("demo")
    began = time.perf_counter()
    process = start("demo", "--out", folder, COLUMNS="140")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return folder, out, err, time.perf_counter() - began


def test_the_demo(demo: tuple[Path, str, str, float]) -> None:
    folder, out, err, seconds = demo
    assert seconds < 120
    assert {path.name for path in folder.iterdir()} == {
        *("model.onnx", "original.onnx", "report.json", "report.html", "saved", "steps"),
        *("audit.json", "audit.html", "jobs"),
    }  # fmt: skip
    assert list(folder.rglob("*.part")) == []
    report = json.loads((folder / "report.json").read_text())
    jsonschema.validate(report, schema())
    measured = report["measurement"]
    assert measured["compressed"]["bytes"] == (folder / "model.onnx").stat().st_size
    assert measured["original"]["bytes"] > 8 * measured["compressed"]["bytes"]
    assert measured["compressed"]["accuracy"] > 0.95
    assert report["parity"]["examples"] == 256
    assert report["parity"]["agreement"] >= 0.98
    assert [*(next(iter(step["method"])) for step in report["history"][1:])] == [
        *("DropBlocks", "PruneChannels", "Distill", "Factorize", "Distill", "Quantize"),
    ]  # fmt: skip
    assert "x smaller" in out
    assert "shipped file:" in out
    assert "6/6 Quantize" in err
    assert "" not in err.strip().splitlines()


def test_report_is_rebuilt(demo: tuple[Path, str, str, float]) -> None:
    page = demo[0] / "report.html"
    before = page.read_text()
    page.unlink()
    result = invoke("report", demo[0])
    assert result.exit_code == 0
    assert "report.html" in result.stdout
    assert page.read_text() == before
    content = json.loads((demo[0] / "report.json").read_text())
    assert json.loads(invoke("report", demo[0] / "report.json", "--json").stdout) == content
    quiet = invoke("report", demo[0], "-q")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_compress(job: Job) -> None:
    recipe = "recover: {FineTune: {epochs: 1}}\nsteps:\n- PruneChannels: {ratio: 0.5}\n- Quantize"
    result = job.compress(recipe=recipe)
    assert result.exit_code == 0, result.output
    assert "1/3 PruneChannels" in result.stderr
    assert "2/3 FineTune" in result.stderr
    for text in ("What each step did", "top-1 accuracy", "the file agrees with PyTorch", str(job.out / "report.html")):
        assert text.replace(" ", "") in result.stdout.replace("\n", "").replace(" ", ""), text
    assert Runtime(job.out / "model.onnx").inputs["x"].shape[1:] == (1, 8, 8)
    assert job.halves() == []


def test_a_file_for_runtimes_that_fold_no_constants(job: Job) -> None:
    recipe = "steps:\n- Ternarize: {edges: true}"
    assert job.compress(recipe=recipe).exit_code == 0
    packed = (job.out / "model.onnx").read_bytes()
    assert job.compress("--unpacked", recipe=recipe).exit_code == 0
    plain = job.out / "model.onnx"
    operators = {node.op_type for node in onnx.load(plain).graph.node}
    assert not operators & {"BitShift", "BitwiseAnd", "CumSum"}
    assert len(packed) < plain.stat().st_size


def test_a_goal_decides_the_exit_code(job: Job) -> None:
    missed = job.compress("--max-bytes", "10", "--max-loss", "100")
    assert missed.exit_code == 20
    sentence = "Goal missed: loss of at most 100 points: met"
    assert sentence in " ".join(missed.stdout.split())
    assert sentence in " ".join((job.out / "report.html").read_text().split())
    common = (job.out / "model.onnx", "-d", job.folder / "data.npz", "--seconds", 0.02)
    assert invoke("measure", *common, "--max-bytes", "1MB").exit_code == 0
    assert invoke("measure", *common, "-a", job.out / "original.onnx", "--max-loss", "0").exit_code == 21
    assert invoke("measure", *common, "--max-loss", "1").exit_code == errors.ConfigError.exit_code


def test_another_recipe_overwrites_nothing_unasked(job: Job) -> None:
    assert job.compress().exit_code == 0
    before = (job.out / "model.onnx").read_bytes()
    other = "steps: [{PruneChannels: {ratio: 0.5}}, Quantize]"
    refused = job.compress(recipe=other)
    assert refused.exit_code == errors.ConfigError.exit_code
    assert "holds the result of another recipe (Quantize)" in refused.stderr
    assert (job.out / "model.onnx").read_bytes() == before
    assert job.compress().exit_code == 0  # the same one goes on
    assert job.compress("--replace", recipe=other).exit_code == 0
    assert (job.out / "model.onnx").read_bytes() != before


def test_a_step_that_gains_nothing_says_so(job: Job) -> None:
    recipe = "steps:\n- Factorize: {rank: 8, include: [conv]}\n- PruneWeights: {sparsity: 0.0}\n- Quantize\n- Quantize"
    result = job.compress(recipe=recipe)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "Factorize: nothing factorized: no layer in scope would have become smaller" in shown
    assert "PruneWeights: this step made the model neither smaller nor faster" in shown
    assert "Quantize: this step made the model neither smaller nor faster" in shown


def test_json_is_json_and_nothing_else(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    result = job.compress("--json")
    assert result.exit_code == 0
    jsonschema.validate(json.loads(result.stdout), schema())
    assert json.loads(result.stdout) == json.loads((job.out / "report.json").read_text())
    assert result.stderr == ""
    assert capfd.readouterr() == ("", "")  # neither do libraries write past Python


def test_quiet_is_quiet(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    result = job.compress("--quiet", recipe="steps: [{FineTune: {epochs: 1}}, {Distill: {epochs: 1}}, Quantize]")
    assert (result.exit_code, result.output) == (0, "")
    assert capfd.readouterr() == ("", "")
    measured = invoke("measure", job.out / "model.onnx", "-d", job.folder / "data.npz", "--seconds", 0.02, "-q")
    assert (measured.exit_code, measured.output) == (0, "")
    assert capfd.readouterr() == ("", "")


def test_measure(demo: tuple[Path, str, str, float], job: Job) -> None:
    assert job.compress("-q").exit_code == 0
    shipped, original = job.out / "model.onnx", job.out / "original.onnx"
    common = ("-d", job.folder / "data.npz", "--seconds", 0.02)
    alone = invoke("measure", shipped, *common)
    assert alone.exit_code == 0
    assert "20 examples (given)" in alone.stdout
    assert "original" not in alone.stdout
    both = invoke("measure", shipped, "--against", original, *common, "--json")
    assert both.exit_code == 0
    figures = json.loads(both.stdout)
    assert figures["original"]["bytes"] == original.stat().st_size
    assert figures["compressed"]["bytes"] == shipped.stat().st_size
    assert both.stderr == ""
    wrong = invoke("measure", demo[0] / "model.onnx", "--against", original, "-d", job.folder / "none.npz")
    assert wrong.exit_code == errors.StorageError.exit_code
    assert "found no file" in wrong.stderr


def test_methods() -> None:
    listed = invoke("methods")
    assert listed.exit_code == 0
    shown = " ".join(listed.stdout.replace("│", " ").split())
    for name, kind in known_methods().items():
        assert name in shown
        assert kind.use_when.split()[0] in shown
    assert "drop=required" in shown
    data = json.loads(invoke("methods", "--json").stdout)
    assert [entry["name"] for entry in data] == list(known_methods())
    assert all(entry["when"] and entry["options"] for entry in data)


def test_one_method() -> None:
    shown = invoke("methods", "Quantize").stdout
    assert "reduce_range=None" in shown
    assert "Post-training" not in shown
    assert "a whole number from 2 to 8" in " ".join(shown.split())
    assert "reduce_range: choose scales" in shown
    assert "PruneWeights" not in shown
    assert [entry["name"] for entry in json.loads(invoke("methods", "Quantize", "--json").stdout)] == ["Quantize"]
    wrong = invoke("methods", "Quantise")
    assert wrong.exit_code == errors.ConfigError.exit_code
    assert "did you mean 'Quantize'?" in wrong.stderr


def test_completion() -> None:
    process = start(_NUTLET_COMPLETE="complete_bash", COMP_WORDS="nutlet me", COMP_CWORD="1")
    assert sorted(process.communicate(timeout=60)[0].split()) == ["measure", "methods"]
    process = start(_NUTLET_COMPLETE="source_bash")
    assert "complete -o default -F _nutlet_completion nutlet" in process.communicate(timeout=60)[0]
    # The option finds out under which shell it runs.
    shell = subprocess.run(
        ["bash", "-c", '"$0" -m nutlet --show-completion bash; exit $?', sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "_NUTLET_COMPLETE=complete_bash" in shell.stdout


def test_exit_codes_tell_errors_apart() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__ if name[0].isupper()]
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert not {0, 130} & set(codes)
    assert invoke("--help").exit_code == 0
    assert invoke("compres").exit_code == 2


def test_interrupting_and_going_on(job: Job) -> None:
    recipe = "steps: [{FineTune: {epochs: 150, batch_size: 64}}, Quantize]"
    process = start(*job.arguments(recipe=recipe))
    until = time.monotonic() + 120
    while not list(job.out.rglob("training.pt")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode in INTERRUPTED, err
    assert out == ""
    assert err.endswith("nutlet: interrupted; run the same command again to go on from here\n")
    assert "Traceback" not in err
    assert [path.name for path in job.out.rglob("*") if path.is_file()] == ["training.pt"]
    again = job.compress(recipe=recipe)
    assert again.exit_code == 0
    assert "fine-tuning: going on after epoch" in again.stderr
    assert "continued after epoch" in " ".join(again.stdout.split())
    assert list(job.out.rglob("training.pt")) == []
    once_more = job.compress(recipe=recipe)
    assert "steps 1 to 2 were done before" in once_more.stderr


@pytest.mark.parametrize(
    ("place", "left"),
    [
        ("os.fsync", set()),
        ("onnx.checker.check_model", set()),
        ("nutlet.formats.runtime.Runtime.run_raw", {"model.onnx", "original.onnx"}),
        ("subprocess.run", {"model.onnx", "original.onnx"}),  # the process that measures memory
        ("nutlet.report.html.view", {"model.onnx", "original.onnx"}),
    ],
)
def test_interrupting_anywhere(job: Job, monkeypatch: pytest.MonkeyPatch, place: str, left: set[str]) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    result = job.compress()
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == "nutlet: interrupted; run the same command again to go on from here"
    assert job.halves() == []
    assert {path.name for path in job.out.iterdir() if path.is_file()} == left


def test_an_interruption_that_a_writer_hides(tmp_path: Path) -> None:
    """Interrupted, torch fails to end its file and raises that error over the interruption."""

    def write(aside: Path) -> None:
        aside.write_text("half")
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("unexpected pos 64 vs 0") from error

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "training.pt", write)
    assert list(tmp_path.iterdir()) == []


def test_sigterm_puts_work_away(job: Job) -> None:
    process = start(*job.arguments(recipe="steps: [{FineTune: {epochs: 3000, batch_size: 64}}]"))
    until = time.monotonic() + 120
    while not list(job.out.rglob("training.pt")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    refused = job.compress()  # while the first one runs
    assert refused.exit_code == 6
    assert f"out is in use: the process {process.pid} is writing there" in refused.stderr
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    assert err.endswith("nutlet: terminated; run the same command again to go on from here\n")
    assert "Traceback" not in err
    assert [path.name for path in job.out.rglob("*") if path.is_file()] == ["training.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_output_to_a_full_device() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nutlet", "attacks"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 6
    assert done.stderr.startswith("nutlet: StorageError: could not write the output: No space left on device")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_secrets_of_an_address_are_in_no_message_and_no_report(monkeypatch: pytest.MonkeyPatch, job: Job) -> None:
    addresses = ["https://me:pear@a.example/x", "https://a.example/x?v=1&sig=pear", "http://a.example/?api_key=pear"]
    for address in addresses:
        monkeypatch.setattr(sys, "argv", ["nutlet", "audit", address])
        assert "pear" not in command_line()
        assert "a.example" in command_line()
        result = invoke("audit", address, "-d", job.folder / "data.npz", "-o", job.out)
        assert result.exit_code == 2
        assert "pear" not in result.stderr


def test_ctrl_c_while_modules_load() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with loading():
            assert signal.getsignal(signal.SIGINT) is signals._end
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started us wants none: it stays so
        with loading():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_every_exit_code_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs/reference/cli.md").read_text()
    documented = {name: int(code) for code, name in re.findall(r"^\| (\d+) \|.*\(`(\w+)`\) \|$", page, re.MULTILINE)}
    kinds = errors.NutletError.__subclasses__()
    assert documented == {kind.__name__: kind.exit_code for kind in kinds if kind.__module__ == errors.__name__}
