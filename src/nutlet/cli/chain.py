"""Commands on a chain: try it, run it, find out what went wrong in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nutlet.cli.common import (
    AsJson,
    Augmented,
    Calibration,
    DataSpec,
    Drop,
    EndpointConfig,
    Expected,
    Label,
    MaxBytes,
    MaxLoss,
    Mean,
    MinSpeedup,
    ModelSpec,
    Owned,
    Quiet,
    Replace,
    Seconds,
    Seed,
    Std,
    TaskName,
    TeacherSpec,
    TestSpec,
    Unpacked,
    Validation,
    Weights,
    app,
    command_line,
    goal_of,
    judged_exit,
    loading,
    print_found,
    read_data,
    reported,
    short,
    show_result,
)

__all__ = ["check", "compress", "diagnose"]


@app.command()
@reported
def check(
    context: typer.Context,
    model: ModelSpec,
    data: DataSpec,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", help="YAML file with the steps; without one every method is asked.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder that a run is to write.")] = None,
    weights: Weights = None,
    teacher: TeacherSpec = None,
    endpoint: EndpointConfig = None,
    owned: Owned = False,
    test: TestSpec = None,
    label: Label = None,
    drop: Drop = "",
    task: TaskName = "classification",
    mean: Mean = "",
    std: Std = "",
    expect: Expected = None,
    calibration: Calibration = 512,
    validation: Validation = 0.1,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say before a run what it would meet: layers, methods, time, problems. Exit code 1 where there is a problem."""
    with loading():
        from nutlet.compression.check import check as ask
        from nutlet.compression.teacher import load_teacher
        from nutlet.loading import load_model
        from nutlet.progress import Progress

    examples = read_data(context)
    found = ask(
        load_model(model, weights),
        examples,
        recipe,
        teacher=load_teacher(teacher, config=endpoint, i_own_this_endpoint=owned),
        workdir=out,
        expect=expect,
        progress=Progress(quiet=quiet or as_json),
    )
    print_found(found, as_json=as_json, quiet=quiet)
    if not found.ok:
        raise typer.Exit(1)


@app.command()
@reported
def compress(
    context: typer.Context,
    model: ModelSpec,
    data: DataSpec,
    recipe: Annotated[Path, typer.Option("--recipe", "-r", help="YAML file with the steps; see `nutlet methods`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files and the report.")] = Path("out"),
    weights: Weights = None,
    teacher: TeacherSpec = None,
    endpoint: EndpointConfig = None,
    owned: Owned = False,
    test: TestSpec = None,
    label: Label = None,
    drop: Drop = "",
    task: TaskName = "classification",
    mean: Mean = "",
    std: Std = "",
    expect: Expected = None,
    augment: Augmented = "none",
    calibration: Calibration = 512,
    validation: Validation = 0.1,
    seconds: Seconds = 2.0,
    unpacked: Unpacked = False,
    max_loss: MaxLoss = None,
    max_bytes: MaxBytes = "",
    min_speedup: MinSpeedup = None,
    replace: Replace = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compress a model by a recipe, export it, measure the file, and write a report."""
    with loading():
        from nutlet.compression.pipeline import compress as run_chain
        from nutlet.compression.recipe import load_recipe
        from nutlet.compression.ship import refuse_other, ship
        from nutlet.compression.teacher import load_teacher
        from nutlet.loading import load_model
        from nutlet.locks import locked
        from nutlet.progress import Progress

    progress = Progress(quiet=quiet or as_json)
    goal = goal_of(max_loss, max_bytes, min_speedup)
    steps = load_recipe(recipe)
    guide = load_teacher(teacher, config=endpoint, i_own_this_endpoint=owned)
    with locked(out, progress):
        if not replace:
            refuse_other(out, steps)
        original = load_model(model, weights)
        examples = read_data(context)
        result = run_chain(
            original, steps, examples, teacher=guide, seed=seed, workdir=out / "steps", expect=expect, progress=progress
        )
        figures, parity = ship(
            result,
            original,
            examples,
            out,
            command=command_line(),
            names=(short(model), short(data)),
            seconds=seconds,
            packed=not unpacked,
            goal=goal,
            expect=expect,
            progress=progress,
        )
    show_result(out, result, figures, parity, as_json=as_json, quiet=quiet)
    judged_exit(figures)


@app.command()
@reported
def diagnose(
    context: typer.Context,
    model: ModelSpec,
    data: DataSpec,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that `nutlet compress` wrote.")] = Path("out"),
    step: Annotated[str | None, typer.Option(help="Number or name of a step; else the one that lost most.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Validation examples to measure layers on, at most.")] = 1000,
    weights: Weights = None,
    teacher: TeacherSpec = None,
    endpoint: EndpointConfig = None,
    owned: Owned = False,
    test: TestSpec = None,
    label: Label = None,
    drop: Drop = "",
    task: TaskName = "classification",
    mean: Mean = "",
    std: Std = "",
    expect: Expected = None,
    augment: Augmented = "none",
    calibration: Calibration = 512,
    validation: Validation = 0.1,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say which step and which layer lost accuracy, and what to do. Give model and data as to `nutlet compress`."""
    with loading():
        from nutlet.compression.diagnose import diagnose as look_into
        from nutlet.compression.sanity import look, warn
        from nutlet.compression.teacher import load_teacher
        from nutlet.loading import load_model
        from nutlet.locks import locked
        from nutlet.progress import Progress
        from nutlet.report import write_diagnosis

    data_of_run = read_data(context)
    original = load_model(model, weights)
    progress = Progress(quiet=quiet or as_json)
    warn(look(original, data_of_run, expect=expect), progress)
    # A folder that no run wrote is told by who reads it, and not made.
    with locked(out if out.is_dir() else None, progress):
        found = look_into(
            out / "saved",
            original,
            data_of_run,
            step=int(step) if step is not None and step.isdecimal() else step,
            examples=examples,
            teacher=load_teacher(teacher, config=endpoint, i_own_this_endpoint=owned),
            workdir=out / "steps",
            progress=progress,
        )
        write_diagnosis(found.to_dict(), out)
    print_found(found, as_json=as_json, quiet=quiet)
    if not (as_json or quiet):
        typer.echo(f"diagnosis: {out / 'diagnosis.json'}")
