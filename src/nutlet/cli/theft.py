"""The command that measures how hard a file is to steal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nutlet.cli.common import (
    AsJson,
    DataSpec,
    Drop,
    EndpointConfig,
    Label,
    Mean,
    Output,
    Owned,
    Quiet,
    Seed,
    Std,
    TestSpec,
    app,
    command_line,
    counts,
    listed,
    loading,
    numbers,
    print_found,
    read_data,
    reported,
    short,
)
from nutlet.errors import AttackFault, ConfigError

__all__ = ["audit"]


def _confirm(where: str, inputs: int, price: float, kept: int, *, yes: bool) -> None:
    """Say what an endpoint is going to be asked, and go on only where somebody agrees.

    Raises:
        ConfigError: there is nobody to ask.
    """
    found = (
        f"about {inputs:,} inputs will be sent to {where}, {inputs * price:,.2f} USD at {price:g} USD each; "
        f"{kept:,} answers are on disk already, and not paid for again"
    )
    if yes:
        typer.echo(found, err=True)
    elif not sys.stdin.isatty():
        raise ConfigError(f"{found}; expected your agreement: give --yes, or ask less (--queries, --seeds, --attacks)")
    elif not typer.confirm(f"{found}. Go on?", err=True):
        raise typer.Exit(1)


@app.command()
@reported
def audit(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="The ONNX file to audit, or the address of an endpoint.")],
    data: DataSpec,
    against: Annotated[Path | None, typer.Option("--against", "-a", help="The original's ONNX file.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the report and what a rerun goes on from.")
    ] = Path("audit"),
    test: TestSpec = None,
    label: Label = None,
    drop: Drop = "",
    mean: Mean = "",
    std: Std = "",
    augment: Annotated[str, typer.Option(help="none, crop or flip-crop, applied while clones are trained.")] = "none",
    transfer: Annotated[str | None, typer.Option(help="What the thief asks with, in the forms of --data.")] = None,
    same_task: Annotated[bool, typer.Option("--same-task", help="The labels of --transfer are of this task.")] = False,
    model: Annotated[str | None, typer.Option(help="The thief's architecture, package.module:factory.")] = None,
    queries: Annotated[str, typer.Option(help="Budgets, as 250,1000,4000.")] = "",
    validation: Annotated[float, typer.Option(help="Share of the training set held out, as for compress.")] = 0.1,
    seeds: Annotated[
        int | None, typer.Option(help="Repetitions; by default 3, and up to 10 until a verdict is reached.")
    ] = None,
    margin: Annotated[float, typer.Option(help="Differences in points below this are none that matter.")] = 2.0,
    answers: Annotated[
        str | None,
        typer.Option(
            help="What is shown: labels, probabilities, logits, values, top-3, rounded-2; what the task usually shows."
        ),
    ] = None,
    compare_answers: Annotated[
        str, typer.Option("--compare-answers", help="Ways of answering side by side, as labels,top-1,rounded-2.")
    ] = "",
    attacks: Annotated[
        str,
        typer.Option(help="Names, with options: Knockoff,RMIA(models=16); a YAML file; all. See `nutlet attacks`."),
    ] = "",
    effort: Annotated[float, typer.Option(help="Scales the thief's training; below 1 overstates safety.")] = 1.0,
    shadow_models: Annotated[int, typer.Option(help="Most models trained for membership inference.")] = 16,
    price: Annotated[float, typer.Option(help="Price of one answer in USD.")] = 0.001,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", help="How the file was made, YAML: known to the attacker.")
    ] = None,
    retrained: Annotated[
        bool | None, typer.Option("--retrained/--not-retrained", help="Whether training data were used again.")
    ] = None,
    output: Output = None,
    endpoint: EndpointConfig = None,
    owned: Owned = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask an endpoint without asking you first.")] = False,
    processes: Annotated[int, typer.Option(min=0, help="Processes at a time; 0: chosen by a short timing.")] = 0,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster, or local.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure how hard a shipped file is to steal, before and after compression."""
    with loading():
        from nutlet.auditing import Protocol, audit_files, read_attacks
        from nutlet.auditing.estimate import inputs_to_send
        from nutlet.compression.recipe import load_recipe
        from nutlet.loading import load_inputs, load_model
        from nutlet.locks import locked
        from nutlet.oracle import CachedSource, Disclosure, load_endpoint
        from nutlet.progress import Progress

    progress = Progress(quiet=quiet or as_json)
    protocol = Protocol(
        queries=counts("--queries", queries),
        seeds=seeds,
        margin=margin / 100,
        first_seed=seed,
        answers=None if answers is None else Disclosure.parse(answers),
        compare_answers=tuple(Disclosure.parse(shown) for shown in listed(compare_answers)),
        attacks=read_attacks(attacks),
        effort=effort,
        shadow_models=shadow_models,
        price_per_query=price,
    )
    with locked(out, progress):
        centre, scale = numbers("--mean", mean), numbers("--std", std)
        examples = read_data(context)
        asked = None
        if transfer is not None:
            asked = load_inputs(transfer, columns=examples.columns, mean=centre, std=scale)
        victim: Any = file
        if file.startswith(("http://", "https://")):
            asks = load_endpoint(endpoint, url=file, i_own_this_endpoint=owned, columns=examples.columns)
            victim = CachedSource(asks, out / "answers")
            kept = len(victim)
            _confirm(asks.where, inputs_to_send(examples, asked, protocol), price, kept, yes=yes)
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
            output=output,
            architecture=None if model is None else load_model(model),
            recipe=() if recipe is None else load_recipe(recipe),
            retrained=retrained,
            transfer_name="" if transfer is None else short(transfer),
            command=command_line(),
            processes=processes,
            ray=ray,
            progress=progress,
        )
        if isinstance(victim, CachedSource):
            sent = len(victim) - kept
            progress.say(f"{sent:,} inputs were sent to {asks.where}, {sent * price:,.2f} USD in all")
    print_found(result, as_json=as_json, quiet=quiet)
    if not (as_json or quiet):
        typer.echo(f"report: {out / 'audit.html'}")
    if result.faults:
        raise AttackFault(
            f"{'; '.join(result.faults)}; expected attacks that run or say why they cannot: everything else was audited"
        )
