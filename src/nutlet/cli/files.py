"""Commands on what was made: measure it, report it; and the demonstration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nutlet.cli.common import (
    AsJson,
    DataSpec,
    Drop,
    Expected,
    Label,
    MaxBytes,
    MaxLoss,
    Mean,
    MinSpeedup,
    Output,
    Quiet,
    Seconds,
    Seed,
    Std,
    TaskName,
    TestSpec,
    app,
    command_line,
    counts,
    goal_of,
    judged_exit,
    listed,
    loading,
    numbers,
    print_found,
    reported,
    show,
    show_result,
)

__all__ = ["demo", "fix_batch", "measure", "report"]


@app.command()
@reported
def measure(
    file: Annotated[Path, typer.Argument(help="The ONNX file to measure.")],
    data: DataSpec,
    against: Annotated[Path | None, typer.Option("--against", "-a", help="The original's ONNX file.")] = None,
    test: TestSpec = None,
    label: Label = None,
    drop: Drop = "",
    task: TaskName = "classification",
    mean: Mean = "",
    std: Std = "",
    expect: Expected = None,
    output: Output = None,
    batches: Annotated[
        str, typer.Option(help="Batch sizes for latency and memory, as 1,32; by default that, or the file's own.")
    ] = "",
    seconds: Seconds = 2.0,
    max_loss: MaxLoss = None,
    max_bytes: MaxBytes = "",
    min_speedup: MinSpeedup = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a shipped file in its runtime: bytes, accuracy, agreement, latency and memory."""
    with loading():
        from nutlet.data.columns import COLUMNS_FILE, Columns
        from nutlet.formats import format_of
        from nutlet.loading import load_examples
        from nutlet.measurement import measure as take_figures
        from nutlet.progress import Progress

    goal = goal_of(max_loss, max_bytes, min_speedup)
    # What a run wrote beside the file: its test set is to be encoded as its training set was.
    beside = file.parent / COLUMNS_FILE
    examples = load_examples(
        data,
        test,
        task=task,
        label=label,
        drop=listed(drop),
        columns=Columns.read(beside) if beside.is_file() else None,
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
    )
    sizes = counts("--batches", batches) or None
    progress = Progress(quiet=quiet or as_json)
    figures = take_figures(
        file,
        examples,
        against,
        batches=sizes,
        seconds=seconds,
        output=output,
        goal=goal,
        expect=expect,
        progress=progress,
    )
    print_found(figures, as_json=as_json, quiet=quiet)
    if not (as_json or quiet) and (told := format_of(file).described(file)):
        entries = ", ".join(f"{name} {json.dumps(value)}" for name, value in told.items())
        typer.echo(f"the file says of its input: {entries}")
    judged_exit(figures)


@app.command()
@reported
def report(
    folder: Annotated[
        Path, typer.Argument(help="A folder of `nutlet compress`, `nutlet diagnose` or `nutlet audit`, or its .json.")
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the page of a report, an audit or a diagnosis anew from its data, and print its verdict."""
    from nutlet.report import rebuilt

    content, sentence, pages = rebuilt(folder)
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    elif not quiet:
        typer.echo(sentence)
        for page in pages:
            typer.echo(f"{page.stem}: {page}")


@app.command()
@reported
def fix_batch(
    file: Annotated[Path, typer.Argument(help="An ONNX file that nutlet exported.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the new file goes.")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows of a batch.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Write an exported file again for batches of one size, as runtimes on phones want it."""
    with loading():
        from nutlet.formats.onnx.fixed import fix_batch as fixed

    path = fixed(file, out, batch)
    if not quiet:
        typer.echo(f"file for batches of {batch}: {path} ({path.stat().st_size:,} bytes)")


@app.command()
@reported
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files and the report.")] = Path("demo"),
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a small network on scikit-learn's digits and send it through the whole chain; needs no download."""
    with loading():
        from nutlet.cli.demo import run_demo
        from nutlet.progress import Progress

    quietly = Progress(quiet=quiet or as_json)
    result, figures, parity, audit = run_demo(out, seed=seed, command=command_line(), progress=quietly)
    show_result(out, result, figures, parity, as_json=as_json, quiet=quiet)
    if not (as_json or quiet):
        show(audit)
        typer.echo(f"audit: {out / 'audit.html'}")
