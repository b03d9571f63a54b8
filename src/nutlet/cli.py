"""The command line: parse, call a verb, print. Heavy imports wait until a command runs."""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from nutlet.errors import ConfigError, NutletError

__all__ = ["app", "main"]

app = typer.Typer(
    name="nutlet",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INTERRUPTED = 130

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, nothing else.")]
DataSpec = Annotated[
    str,
    typer.Option("--data", "-d", help="An .npz, a folder of npz or of images, hf:NAME, or package.module:factory."),
]
TestSpec = Annotated[str | None, typer.Option("--test", help="Where the test set is, if not beside the training set.")]
Mean = Annotated[str, typer.Option("--mean", help="Per-channel mean after scaling to [0, 1], as 0.48,0.45,0.40.")]
Std = Annotated[str, typer.Option("--std", help="Per-channel standard deviation, likewise.")]
TeacherSpec = Annotated[str | None, typer.Option("--teacher", help="For Distill: an .onnx, an address, or as MODEL.")]
EndpointConfig = Annotated[Path | None, typer.Option("--endpoint-config", help="YAML: how the endpoint is asked.")]
Owned = Annotated[bool, typer.Option("--i-own-this-endpoint", help="Your word that it is yours.")]
Seconds = Annotated[float, typer.Option("--seconds", min=0.01, help="Time for each latency setting.")]
Seed = Annotated[int, typer.Option("--seed", help="The only source of randomness.")]


def main() -> None:
    """Run the command line; errors become one message on standard error and an exit code of their own."""
    app(prog_name="nutlet")


def _reported(command: Callable[..., None]) -> Callable[..., None]:
    """Turn our errors and Ctrl-C into one message and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except NutletError as error:
            typer.echo(f"nutlet: {type(error).__name__}: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("nutlet: interrupted; run the same command again to go on from here", err=True)
            raise typer.Exit(_INTERRUPTED) from None

    return run


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Let Ctrl-C end the process at once while modules load.

    Nothing is written yet, and a torch that is half loaded turns the interruption into errors of its own.
    """
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _print_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(importlib.metadata.version("nutlet"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """A small model in a hard shell: compress a model, ship it, and measure the file that ships."""


@app.command()
@_reported
def compress(
    model: Annotated[str, typer.Argument(help="package.module:factory, path/file.py:factory, or a .pt2 program.")],
    data: DataSpec,
    recipe: Annotated[Path, typer.Option("--recipe", "-r", help="YAML file with the steps; see `nutlet methods`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files and the report.")] = Path("out"),
    weights: Annotated[Path | None, typer.Option("--weights", "-w", help=".safetensors or .pt (state dict).")] = None,
    teacher: TeacherSpec = None,
    endpoint: EndpointConfig = None,
    owned: Owned = False,
    test: TestSpec = None,
    mean: Mean = "",
    std: Std = "",
    augment: Annotated[str, typer.Option(help="none, crop or flip-crop, applied while training.")] = "none",
    calibration: Annotated[int, typer.Option(help="Training examples used for ranges and scores.")] = 512,
    validation: Annotated[float, typer.Option(help="Share of the training set held out.")] = 0.1,
    seconds: Seconds = 2.0,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compress a model by a recipe, export it, measure the file, and write a report."""
    with _loading():
        from nutlet.delivery import deliver
        from nutlet.inputs import load_data, load_model
        from nutlet.pipeline import compress as run_chain
        from nutlet.progress import Progress
        from nutlet.recipe import load_recipe
        from nutlet.storage import prepare_folder
        from nutlet.teacher import load_teacher

    progress = Progress(quiet=quiet or as_json)
    steps = load_recipe(recipe)
    guide = None if teacher is None else load_teacher(teacher, config=endpoint, i_own_this_endpoint=owned)
    prepare_folder(out)
    original = load_model(model, weights)
    examples = load_data(
        data,
        test,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        augment=augment,
        calibration=calibration,
        validation=validation,
        seed=seed,
    )
    result = run_chain(original, steps, examples, teacher=guide, seed=seed, workdir=out / "steps", progress=progress)
    figures, parity = deliver(
        result,
        original,
        examples,
        out,
        command=_command(),
        names=(_short(model), _short(data)),
        seconds=seconds,
        progress=progress,
    )
    _print(out, result, figures, parity, as_json=as_json, quiet=quiet)


@app.command()
@_reported
def measure(
    file: Annotated[Path, typer.Argument(help="The ONNX file to measure.")],
    data: DataSpec,
    against: Annotated[Path | None, typer.Option("--against", "-a", help="The original's ONNX file.")] = None,
    test: TestSpec = None,
    mean: Mean = "",
    std: Std = "",
    seconds: Seconds = 2.0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a shipped file in its runtime: bytes, accuracy, agreement, latency and memory."""
    with _loading():
        from nutlet.inputs import load_examples
        from nutlet.measurement import measure as take_figures
        from nutlet.progress import Progress

    examples = load_examples(data, test, mean=_numbers("--mean", mean), std=_numbers("--std", std))
    figures = take_figures(file, examples, against, seconds=seconds, progress=Progress(quiet=quiet or as_json))
    if as_json:
        typer.echo(json.dumps(figures.to_dict(), indent=1))
    elif not quiet:
        _show(figures)


@app.command()
@_reported
def audit(
    file: Annotated[str, typer.Argument(help="The ONNX file to audit, or the address of an endpoint.")],
    data: DataSpec,
    against: Annotated[Path | None, typer.Option("--against", "-a", help="The original's ONNX file.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the report and what a rerun goes on from.")
    ] = Path("audit"),
    test: TestSpec = None,
    mean: Mean = "",
    std: Std = "",
    augment: Annotated[str, typer.Option(help="none, crop or flip-crop, applied while clones are trained.")] = "none",
    transfer: Annotated[str | None, typer.Option(help="What the thief asks with, in the forms of --data.")] = None,
    same_task: Annotated[bool, typer.Option("--same-task", help="The labels of --transfer are of this task.")] = False,
    model: Annotated[str | None, typer.Option(help="The thief's architecture, package.module:factory.")] = None,
    queries: Annotated[str, typer.Option(help="Budgets, as 250,1000,4000.")] = "",
    validation: Annotated[float, typer.Option(help="Share of the training set held out, as for compress.")] = 0.1,
    seeds: Annotated[int, typer.Option(help="Repetitions; intervals need two or more.")] = 3,
    answers: Annotated[str, typer.Option(help="What is shown: probabilities, labels, logits, top-3, rounded-2.")] = (
        "probabilities"
    ),
    attacks: Annotated[str, typer.Option(help="Names, as Knockoff,RMIA, or all; see `nutlet attacks`.")] = "",
    effort: Annotated[float, typer.Option(help="Scales the thief's training; below 1 overstates safety.")] = 1.0,
    shadow_models: Annotated[int, typer.Option(help="Most models trained for membership inference.")] = 16,
    price: Annotated[float, typer.Option(help="Price of one answer in USD.")] = 0.001,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", help="How the file was made, YAML: known to the attacker.")
    ] = None,
    retrained: Annotated[
        bool | None, typer.Option("--retrained/--not-retrained", help="Whether training data were used again.")
    ] = None,
    endpoint: EndpointConfig = None,
    owned: Owned = False,
    processes: Annotated[int, typer.Option(min=0, help="Processes at a time; 0: chosen by a short timing.")] = 0,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster, or local.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure how hard a shipped file is to steal, before and after compression."""
    with _loading():
        from nutlet.auditing import Protocol, audit_files
        from nutlet.inputs import load_data, load_inputs, load_model
        from nutlet.oracle import Answers, Kept, load_endpoint
        from nutlet.progress import Progress
        from nutlet.recipe import load_recipe
        from nutlet.storage import prepare_folder

    progress = Progress(quiet=quiet or as_json)
    protocol = Protocol(
        queries=tuple(int(number) for number in _numbers("--queries", queries)),
        seeds=seeds,
        first_seed=seed,
        answers=Answers.parse(answers),
        attacks=tuple(name for name in attacks.split(",") if name),
        effort=effort,
        shadow_models=shadow_models,
        price_per_query=price,
    )
    prepare_folder(out)
    centre, scale = _numbers("--mean", mean), _numbers("--std", std)
    examples = load_data(data, test, mean=centre, std=scale, augment=augment, validation=validation, seed=seed)
    asked = None if transfer is None else load_inputs(transfer, mean=centre, std=scale)
    victim: Any = file
    if file.startswith(("http://", "https://")):
        victim = Kept(load_endpoint(endpoint, url=file, i_own_this_endpoint=owned), out / "answers")
        # One after the other: an endpoint is not to be flooded.
        processes = 1
    result = audit_files(
        victim,
        examples,
        against,
        out,
        protocol=protocol,
        transfer=asked,
        same_task=same_task,
        architecture=None if model is None else load_model(model),
        recipe=() if recipe is None else load_recipe(recipe),
        retrained=retrained,
        transfer_name="" if transfer is None else _short(transfer),
        command=_command(),
        processes=processes,
        ray=ray,
        progress=progress,
    )
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=1))
    elif not quiet:
        _show(result)
        typer.echo(f"report: {out / 'audit.html'}")


@app.command()
@_reported
def report(
    folder: Annotated[Path, typer.Argument(help="A folder with a report.json, as `nutlet compress` writes it.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write report.html anew from a report.json, and print its verdict."""
    from nutlet.report import load_report, render, verdict
    from nutlet.storage import write_text

    source = folder / "report.json" if folder.is_dir() else folder
    content = load_report(source)
    page = source.with_suffix(".html")
    write_text(page, render(content))
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    elif not quiet:
        typer.echo(verdict(content))
        typer.echo(f"report: {page}")


@app.command()
@_reported
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files and the report.")] = Path("demo"),
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a small network on scikit-learn's digits and send it through the whole chain; needs no download."""
    with _loading():
        from nutlet.demo import run_demo
        from nutlet.progress import Progress

    quietly = Progress(quiet=quiet or as_json)
    result, figures, parity, audit = run_demo(out, seed=seed, command=_command(), progress=quietly)
    _print(out, result, figures, parity, as_json=as_json, quiet=quiet)
    if not (as_json or quiet):
        _show(audit)
        typer.echo(f"audit: {out / 'audit.html'}")


@app.command()
@_reported
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its documentation.")] = None,
    as_json: AsJson = False,
) -> None:
    """List every method, its options, and when to pick it."""
    with _loading():
        from nutlet.method import known_methods

    _list("method", known_methods(), name, as_json=as_json, shared=("include", "exclude"))


@app.command()
@_reported
def attacks(
    name: Annotated[str | None, typer.Argument(help="One attack, with its documentation.")] = None,
    as_json: AsJson = False,
) -> None:
    """List every attack, what it needs, and when an attacker would pick it."""
    with _loading():
        from nutlet.attack import known_attacks

    _list("attack", known_attacks(), name, as_json=as_json)


def _list(
    what: str, known: dict[str, type[Any]], name: str | None, *, as_json: bool, shared: tuple[str, ...] = ()
) -> None:
    import inspect

    from nutlet.catalogue import listed, listing

    chosen = listed(what, known, name)
    if as_json:
        typer.echo(json.dumps(chosen, indent=1))
        return
    _show(listing(what, chosen, shared))
    if name is not None:
        typer.echo(inspect.getdoc(known[name]))


def _print(out: Path, result: Any, figures: Any, parity: Any, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        typer.echo((out / "report.json").read_text(encoding="utf-8"))
    elif not quiet:
        _show(result, figures)
        typer.echo(str(parity))
        typer.echo(f"shipped file: {out / 'model.onnx'}\nreport: {out / 'report.html'}")


def _show(*things: Any) -> None:
    from rich.console import Console

    # Where the output is no terminal, rich would fold tables at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    for thing in things:
        console.print(thing)


def _short(spec: str) -> str:
    """Return how a report names a model or data: without the folders, which are nobody's business."""
    return Path(spec.rpartition(":")[2]).name


def _command() -> str:
    return "nutlet " + shlex.join(sys.argv[1:])


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; expected numbers with commas between them, as 0.5,0.5,0.5") from None
