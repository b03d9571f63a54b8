"""Commands that help to choose: try several recipes for a goal, and put runs side by side."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nutlet.cli.common import (
    AsJson,
    Augmented,
    Calibration,
    DataSpec,
    Drop,
    Label,
    MaxBytes,
    MaxLoss,
    Mean,
    MinSpeedup,
    ModelSpec,
    Quiet,
    Replace,
    Seconds,
    Seed,
    Std,
    TaskName,
    TestSpec,
    Unpacked,
    Validation,
    Weights,
    app,
    goal_of,
    loading,
    print_found,
    read_data,
    reported,
    short,
)
from nutlet.errors import ConfigError
from nutlet.redaction import without_secrets

__all__ = ["compare", "suggest"]


@app.command()
@reported
def suggest(
    context: typer.Context,
    model: ModelSpec,
    data: DataSpec,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder: one inside for each recipe.")] = Path("suggest"),
    max_loss: MaxLoss = None,
    max_bytes: MaxBytes = "",
    min_speedup: MinSpeedup = None,
    minutes: Annotated[float, typer.Option("--minutes", help="What all may take; recipes that do not fit go.")] = 20.0,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of each training in the stock recipes.")] = 5,
    weights: Weights = None,
    test: TestSpec = None,
    task: TaskName = "classification",
    label: Label = None,
    drop: Drop = "",
    mean: Mean = "",
    std: Std = "",
    augment: Augmented = "none",
    calibration: Calibration = 512,
    validation: Validation = 0.1,
    seconds: Seconds = 1.0,
    unpacked: Unpacked = False,
    replace: Replace = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Try several recipes for a goal, and name the smallest file that is shown to meet it."""
    with loading():
        from nutlet.compression.suggest import suggest as search
        from nutlet.loading import load_model
        from nutlet.locks import locked
        from nutlet.progress import Progress

    goal = goal_of(max_loss, max_bytes, min_speedup)
    if goal is None:
        raise ConfigError(
            "no goal is given; expected one or more of --max-loss 1.0, --max-bytes 300kB, --min-speedup 2"
        )
    progress = Progress(quiet=quiet or as_json)
    with locked(out, progress):
        examples = read_data(context)
        found = search(
            load_model(model, weights),
            examples,
            goal,
            out,
            minutes=minutes,
            epochs=epochs,
            seconds=seconds,
            seed=seed,
            names=(short(model), short(data)),
            command=_alone(context),
            packed=not unpacked,
            replace=replace,
            progress=progress,
        )
    print_found(found, as_json=as_json, quiet=quiet)
    if found.best is not None and not (as_json or quiet):
        # A command is not folded: it is there to be copied.
        typer.echo(f"the file: {found.best.folder / 'model.onnx'}\nto make it alone: {found.best.command}")
    if code := found.verdict.exit_code:
        raise typer.Exit(code)


@app.command()
@reported
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Two or more folders that `nutlet compress` wrote.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Put runs side by side: bytes, speed, loss and goal, and where they cannot be compared."""
    from nutlet.report.comparison import compare as side_by_side

    print_found(side_by_side(folders), as_json=as_json, quiet=quiet)


def _alone(context: typer.Context) -> Callable[[Path], str]:
    """Return what gives the command that makes one recipe alone, with the options that this command was given."""
    group: Any = context.parent.command if context.parent else None
    shared = {parameter.name for parameter in group.commands["compress"].params} - {"out", "as_json", "quiet"}
    words: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name not in shared or value in (None, parameter.default, ""):
            continue
        flag = [parameter.opts[0]] if parameter.param_type_name == "option" else []
        words += flag if value is True else [*flag, str(value)]

    def command(folder: Path) -> str:
        tail = ["--recipe", str(folder / "recipe.yaml"), "--out", f"{folder}-alone"]
        return without_secrets("nutlet compress " + shlex.join([*words, *tail]))

    return command
