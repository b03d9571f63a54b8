"""What the commands share: the application, options, how errors end, how results print."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from nutlet.errors import ConfigError, NutletError, StorageError
from nutlet.redaction import without_secrets
from nutlet.signals import at_once as loading
from nutlet.signals import interruption, raising

__all__ = [
    "AsJson", "Augmented", "Calibration", "DataSpec", "Drop", "EndpointConfig", "Expected", "Label", "MaxBytes",
    "MaxLoss", "Mean", "MinSpeedup", "ModelSpec", "Output", "Owned", "Quiet", "Replace", "Seconds", "Seed", "Std",
    "TaskName", "TeacherSpec", "TestSpec", "Unpacked", "Validation", "Weights", "app", "command_line", "counts",
    "goal_of", "judged_exit", "listed", "loading", "numbers", "print_found", "read_data", "reported", "short",
    "show", "show_result",
]  # fmt: skip

app = typer.Typer(
    name="nutlet",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, nothing else.")]
DataSpec = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        help="An .npz, .csv or .parquet, a folder of npz or of images, hf:NAME, or package.module:factory.",
    ),
]
Label = Annotated[str | None, typer.Option("--label", help="Of a table (.csv, .parquet): the column of the targets.")]
Drop = Annotated[str, typer.Option("--drop", help="Of a table: columns to leave out, as id,name.")]
TestSpec = Annotated[str | None, typer.Option("--test", help="Where the test set is, if not beside the training set.")]
Mean = Annotated[str, typer.Option("--mean", help="Per-channel mean after scaling to [0, 1], as 0.48,0.45,0.40.")]
Std = Annotated[str, typer.Option("--std", help="Per-channel standard deviation, likewise.")]
TeacherSpec = Annotated[str | None, typer.Option("--teacher", help="For Distill: an .onnx, an address, or as MODEL.")]
EndpointConfig = Annotated[Path | None, typer.Option("--endpoint-config", help="YAML: how the endpoint is asked.")]
Owned = Annotated[bool, typer.Option("--i-own-this-endpoint", help="Your word that it is yours.")]
Output = Annotated[str | None, typer.Option("--output", help="The output with the scores, of a file with several.")]
Seconds = Annotated[float, typer.Option("--seconds", min=0.01, help="Time for each latency setting.")]
TaskName = Annotated[
    str,
    typer.Option(
        "--task",
        help="What the targets mean: classification, multi_label, regression, embedding, segmentation or "
        "language_modeling.",
    ),
]
Unpacked = Annotated[
    bool, typer.Option("--unpacked", help="Every weight a whole number of bytes: for runtimes that fold no constants.")
]
Augmented = Annotated[str, typer.Option("--augment", help="none, crop or flip-crop, applied while training.")]
Calibration = Annotated[int, typer.Option("--calibration", help="Training examples used for ranges and scores.")]
Validation = Annotated[float, typer.Option("--validation", help="Share of the training set held out.")]
Expected = Annotated[
    float | None,
    typer.Option("--expect", help="The original's metric as you know it, as 93.1 (per cent): told where it is not."),
]
Weights = Annotated[Path | None, typer.Option("--weights", "-w", help=".safetensors or .pt (state dict).")]
ModelSpec = Annotated[str, typer.Argument(help="package.module:factory, path/file.py:factory, or a .pt2 program.")]
MaxLoss = Annotated[
    float | None, typer.Option("--max-loss", help="Goal: most points lost (or units of the task's metric).")
]
MaxBytes = Annotated[str, typer.Option("--max-bytes", help="Goal: most bytes of the file, as 300000, 300kB or 0.3MB.")]
MinSpeedup = Annotated[
    float | None, typer.Option("--min-speedup", help="Goal: least times faster, at the smallest batch, fewest threads.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace what another recipe left in the folder.")]
Seed = Annotated[int, typer.Option("--seed", help="The only source of randomness.")]


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Turn our errors, Ctrl-C and SIGTERM into one message and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with raising(), _printing():
                command(*args, **kwargs)
        except typer.Exit:
            raise
        except BaseException as error:
            if (stopped := interruption(error)) is not None:
                typer.echo(str(stopped), err=True)
                raise typer.Exit(stopped.exit_code) from None
            if not isinstance(error, NutletError):
                raise
            # An address may hold a secret, and any message an address.
            typer.echo(f"nutlet: {type(error).__name__}: {without_secrets(str(error))}", err=True)
            raise typer.Exit(error.exit_code) from None

    return run


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """Say it in words where standard output goes to a disk that is full; what no reader waits for is dropped."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        # Errors about files are errors of ours by now, and name the file.
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE):
            raise
        # What is still to be flushed at the end of the process would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise StorageError(
                f"could not write the output: {error.strerror}; expected a place that takes it: free some space"
            ) from error


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


def show_result(out: Path, result: Any, figures: Any, parity: Any, *, as_json: bool, quiet: bool) -> None:
    """Print what a finished chain came to: as JSON, as tables, or not at all."""
    if as_json:
        typer.echo((out / "report.json").read_text(encoding="utf-8"))
    elif not quiet:
        from nutlet.report import load_report, verdict

        show(result, figures)
        typer.echo(str(parity))
        # The very sentence at the head of the page.
        typer.echo(verdict(load_report(out / "report.json")))
        typer.echo(f"shipped file: {out / 'model.onnx'}\nreport: {out / 'report.html'}")


def print_found(found: Any, *, as_json: bool, quiet: bool) -> None:
    """Print one result: as JSON, as a table, or not at all."""
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    elif not quiet:
        show(found)


def show(*things: Any) -> None:
    """Print tables and texts on standard output."""
    from rich.console import Console

    # Where the output is no terminal, rich would fold tables at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    for thing in things:
        console.print(thing)


def short(spec: str) -> str:
    """Return how a report names a model or data: without the folders, which are nobody's business."""
    return Path(spec.rpartition(":")[2]).name


def command_line() -> str:
    """Return how this run was started, for a report, without the secrets that an address holds."""
    return without_secrets("nutlet " + shlex.join(sys.argv[1:]))


def read_data(context: typer.Context) -> Any:
    """Read and split the data that the options of a command name, as far as it has those options."""
    from nutlet.loading import load_data

    given = context.params
    passed = ("task", "label", "augment", "calibration", "validation", "seed")
    return load_data(
        given["data"],
        given["test"],
        drop=listed(given["drop"]),
        mean=numbers("--mean", given["mean"]),
        std=numbers("--std", given["std"]),
        **{name: given[name] for name in passed if name in given},
    )


def goal_of(max_loss: float | None, max_bytes: str, min_speedup: float | None) -> Any:
    """Return the goal that was asked for, or None.

    Raises:
        ConfigError: a part is out of range.
    """
    from nutlet.measurement.goal import Goal, byte_count

    size = byte_count("--max-bytes", max_bytes)
    if max_loss is None and size is None and min_speedup is None:
        return None
    return Goal(max_loss=max_loss, max_bytes=size, min_speedup=min_speedup)


def judged_exit(figures: Any) -> None:
    """End with the exit code of the goal, where one was given and is not met."""
    from nutlet.measurement.goal import judged

    if code := judged(figures.goal).exit_code:
        raise typer.Exit(code)


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Read numbers with commas between them.

    Raises:
        ConfigError: a part is no finite number.
    """
    try:
        found = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise ConfigError(f"{option} is {text!r}; expected numbers with commas between them, as 0.5,0.5,0.5")
    return found


def listed(text: str) -> tuple[str, ...]:
    """Return names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def counts(option: str, text: str) -> tuple[int, ...]:
    """Read whole numbers with commas between them.

    Raises:
        ConfigError: a part is no whole number above 0.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isascii() and part.isdecimal() and 0 < len(part) < 10 and int(part) for part in parts):
        raise ConfigError(f"{option} is {text!r}; expected numbers, whole and above 0, as 1,32")
    return tuple(map(int, parts))
